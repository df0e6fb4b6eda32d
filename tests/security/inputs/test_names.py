"""Names that came from files are shown, never obeyed: no control character of theirs reaches a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fxprune.api.terminal import option_tables, screen, tables
from fxprune.api.terminal.cells import line, new_table
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, is_utf8, printable

from ..strangers import config, content, write_model

CLEAR, TITLE, NEXT, TURNED, HALF, C1 = "\x1b[2J", "\x1b]0;owned\x07", "\nerror: forged", "a\u202eb", "\udcff", "\x9b31m"
EVIL = {
    "clears the screen": CLEAR, "sets the title": TITLE, "forges a line": NEXT, "turns the text": TURNED,
    "is no UTF-8": HALF, "an 8-bit control": C1, "a separator of lines": "a\u2028b", "a backspace": "abc\b\b\b",
    "NUL": "\0",
}  # fmt: skip


def assert_shown(text: str) -> None:
    """No character of a text is obeyed by a terminal."""
    assert not [char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("names") / "model")


@given(st.text())
def test_what_is_printable_is_what_it_was_and_all_else_is_escaped(text: str) -> None:
    found = printable(text)
    assert printable(found) == found
    assert_shown(found)
    assert is_utf8(found)
    if text.isprintable():
        assert found == text


def test_words_of_other_scripts_stay() -> None:
    for word in ("Größe", "模型", "نموذج", "می‌خواهم", "👩‍🔬", "naïve"):
        assert printable(word) == word


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
def test_an_error_says_a_name_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (
        FxpruneError(f"file {name} is odd", f"remove {name}"),
        ValueError(f"no {name}"),
        OSError(5, "no", name),
    ):
        screen.explain(error)
        told = capsys.readouterr().err
        assert_shown(told)
        assert [row for row in told.splitlines() if row.startswith("error: ")] == [told.splitlines()[0]]


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("terminal", [True, False], ids=["a terminal", "a pipe"])
def test_a_table_shows_a_name_escaped(name: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: terminal)
    table = new_table("group", "kind")
    table.add_row(name, "[red]kind[/red] :smile:")
    with contextlib.redirect_stdout(written):
        screen.emit([line(f"{name}: 3 parameters"), table])
    shown = written.getvalue()
    if terminal:
        shown = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")  # rich's own: the titles are bold
    assert_shown(shown)
    assert "[red]kind[/red] :smile:" in shown


def test_every_line_and_every_cell_of_the_tables_goes_through_it() -> None:
    for module in (tables, option_tables):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert "Table(" not in source
        assert source.count("Text(") == source.count('Text("")')


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
def test_progress_shows_a_name_escaped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[object] = []

    def live(get_renderable: Callable[[], object], **_: object) -> AbstractContextManager[None]:
        bars.append(get_renderable)
        return contextlib.nullcontext()

    monkeypatch.setattr(Console, "is_terminal", property(lambda _: True))
    monkeypatch.setattr("rich.live.Live", live)
    with screen.working(debug=False) as progress:
        progress(f"loading {name} [/red]")
        console = Console(file=io.StringIO(), width=500, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(bars[0]())
    shown = capture.get().rstrip("\n ")
    assert_shown(shown)
    assert "[/red]" in shown


@pytest.mark.parametrize("name", EVIL.values(), ids=EVIL)
def test_progress_with_debug_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with screen.working(debug=True) as progress:
        progress(f"loading {name}")
    assert_shown(capsys.readouterr().err)


@pytest.mark.parametrize("name", [CLEAR, TITLE, NEXT, TURNED, C1], ids=["clear", "title", "line", "turned", "8-bit"])
def test_the_command_line_and_files_with_such_names(
    model: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"model{name.replace('/', '')}"
    shutil.copytree(model, folder)
    assert main(["trace", str(folder)]) == 0
    assert_shown(capsys.readouterr().out)
    assert main(["trace", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert_shown(out)
    assert json.loads(out)["model"] == str(folder)
    config(model_type=f"llama{name}")(folder)
    assert main(["trace", str(folder)]) == 2
    assert_shown(capsys.readouterr().err)
    content("config.json", json.dumps({name: 1, "architectures": [{name: name}]}))(folder)
    assert main(["trace", str(folder)]) == 2
    told = capsys.readouterr().err
    assert_shown(told)
    assert told.startswith("error: ")


def test_a_stream_that_cannot_write_a_name_writes_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.api.terminal.streams import complete_streams

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii"))
    complete_streams()
    screen.complain("there is no model 'Größe'", "")
    sys.stderr.flush()
    assert written.getvalue() == b"error: there is no model 'Gr\\xf6\\xdfe'\n"
