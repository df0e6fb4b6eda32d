"""How rows of texts are read, as a request says it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from fxprune.api.inputs.reading import Reading, Readings
from fxprune.api.inputs.seen_inputs import check_reading
from fxprune.api.request_checks import CALIBRATION, RECOVERY, GivenFiles, GivenRows, paths_of, read_text
from fxprune.api.terminal.texts.options import add_reading_options
from fxprune.ir.errors import RequestError
from fxprune.tracer.texts.formats import ROW_FORMATS


def test_a_name_is_for_all_texts_or_for_one() -> None:
    both = Readings.parse("body", "test")
    assert both.for_part(CALIBRATION) == both.for_part(RECOVERY) == Reading("body", "test")
    one = Readings.parse(["data=q,a", "body"], "calib=dev")
    assert one.for_part(RECOVERY) == Reading("q,a")
    assert one.for_part(CALIBRATION) == Reading("body", "dev")
    assert Readings.parse(None, None).to_json() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [(["a", "b"], "--field b and --field a are for the same text"), ([" "], "field is ' ', which is no name")],
)
def test_names_that_cannot_be(given: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Readings.parse(given, None)
    assert message in caught.value.message


def test_a_field_that_no_text_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {CALIBRATION: "a.txt", RECOVERY: "b.jsonl"}
    with pytest.raises(RequestError, match=r"there is no text file 'a.txt'"):
        check_reading(Readings.parse(None, None), texts, language=True)
    for name in texts.values():
        Path(name).touch()
    check_reading(Readings.parse("body", None), texts, language=True)
    with pytest.raises(RequestError, match=r"--field calib=body: a.txt is no rows with fields"):
        check_reading(Readings.parse("calib=body", None), texts, language=True)
    with pytest.raises(RequestError, match=r"--split test: a.txt, b.jsonl is no data set with splits"):
        check_reading(Readings.parse(None, "test"), texts, language=True)
    with pytest.raises(RequestError, match="--field body: the text in use, built in or in memory, is no rows"):
        check_reading(Readings.parse("body", None), {CALIBRATION: GivenRows("calib", ("a",))}, language=True)
    with pytest.raises(RequestError, match="--field body"):
        check_reading(Readings.parse("body", None), texts, language=False)


def test_paths_in_a_list_are_files_and_strings_are_rows(tmp_path: Path) -> None:
    two = [tmp_path / "a.txt", tmp_path / "b.csv"]
    found = read_text(two, "calib")
    assert found == GivenFiles(tuple(map(str, two)))
    assert isinstance(found, GivenFiles)
    assert found.name == "a.txt, b.csv"
    assert read_text(two[:1], "calib") == str(two[0])
    assert isinstance(read_text(["a", "b"], "calib"), GivenRows)
    assert paths_of("--calib", two) == {"--calib 1": two[0], "--calib 2": two[1]}
    assert paths_of("--calib", "a.txt") == {"--calib": "a.txt"}
    assert paths_of("--calib", ["a", "b"]) == {}


def test_help_names_the_forms_of_rows_in_the_order_in_which_they_are_looked_for() -> None:
    parser = argparse.ArgumentParser()
    add_reading_options(parser, several=False)
    said = next(action.help for action in parser._actions if action.dest == "field") or ""
    forms = said.partition("has: ")[2].removesuffix(")")
    assert forms == "; ".join(" and ".join(form.fields) for form in ROW_FORMATS)
