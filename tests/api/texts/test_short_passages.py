"""Texts of short pieces: they are known again, everyday words are not, and what could not be known is told."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune import cli
from fxprune.ir.errors import RequestError
from fxprune.tracer.texts.corpus import Text, from_rows, from_string
from fxprune.tracer.texts.fingerprints import Fingerprint, TrackedText
from fxprune.tracer.texts.overlap import MeasuredText, overlap, unchecked
from fxprune.tracer.texts.passages import KEPT, PASSAGE, SHORTEST, Passages, Sliding

from ...tracer.test_chats import TURNS, chat_tokenizer

SYLLABLES = ["ka", "lo", "mi", "nu", "re", "si", "ta", "vo"]


def sentence(seed: int, letters: int) -> str:
    """Words of four letters, about as many letters."""
    drawn = random.Random(seed)
    return " ".join("".join(drawn.choices(SYLLABLES, k=2)) for _ in range(letters // 4))


def sentences(first: int, count: int, letters: int = 60) -> list[str]:
    return [sentence(seed, letters) for seed in range(first, first + count)]


def rows(given: list[str]) -> Text:
    return from_rows("rows", given, chat_tokenizer(None))


def trained_on(text: Text, length: int = 512) -> Fingerprint:
    tracked = TrackedText(text)
    tracked.examples(length)
    return found_of(tracked)


def calibrated_on(text: Text, length: int, count: int | None = None) -> Fingerprint:
    tracked = TrackedText(text)
    tracked.windows(length, count)
    return found_of(tracked)


def found_of(tracked: TrackedText) -> Fingerprint:
    found = tracked.fingerprint("recovery", "rows")
    assert found is not None
    return Fingerprint.from_json(json.loads(json.dumps(found.to_json())))


def measured(text: Text, window: int = 128, windows: int | None = None) -> MeasuredText:
    return MeasuredText.of(text.windows(window, windows), text)


def test_short_rows_are_known_again() -> None:
    read = trained_on(rows(sentences(0, 50)))
    assert (len(read.passages.whole), len(read.passages.short)) == (0, 50)
    found = overlap(read, measured(rows(sentences(0, 50))))
    assert found is not None
    assert found.passages > 45
    assert found.example == sentence(0, 60).replace(" ", "")
    assert overlap(read, measured(rows(sentences(0, 50)[::-1]))) is not None, "in another order"
    assert overlap(read, measured(rows(sentences(0, 50)), 128, 2)) is not None, "a part of it"
    assert overlap(read, measured(rows(sentences(1000, 500) + sentences(0, 50)))) is not None, "a part of another text"
    assert overlap(read, measured(rows(sentences(1000, 50)))) is None


def test_short_windows_are_known_again() -> None:
    text = rows(sentences(0, 50))
    read = calibrated_on(text, 64, 2)
    assert len(read.passages) == 2
    assert overlap(read, measured(text)) is not None
    assert overlap(read, measured(rows(sentences(1000, 50)))) is None


def test_a_window_that_is_cut_inside_a_character_is_known_again() -> None:
    """The tokens are bytes, of which these characters have three each."""
    text = from_string("t", "".join(random.Random(0).choices("漢字仮名交文章読書", k=2000)), chat_tokenizer(None))
    read = calibrated_on(text, 200, 10)  # 66 and two thirds
    found = overlap(read, measured(text, 1000))
    assert found is not None
    assert found.passages > 7


EVERYDAY = ["Yes.", "Thank you.", "You are very welcome!", "Is there more that I can do?", "No, that is all."]


def test_everyday_words_are_no_overlap() -> None:
    read = trained_on(rows(EVERYDAY + sentences(0, 20)))
    assert len(read.passages) == 20
    assert overlap(read, measured(rows(EVERYDAY * 3 + sentences(1000, 20)))) is None


def test_a_few_longer_words_that_both_say_are_no_overlap() -> None:
    both = ["Is there anything else that I could help you with today?", "I am sorry, but I can not help you with that."]
    read = trained_on(rows(both + sentences(0, 40)))
    assert overlap(read, measured(rows(both + sentences(1000, 40)))) is None


PROMPT = sentence(7, 250)


@pytest.mark.parametrize(
    "read", [trained_on, lambda text: calibrated_on(text, 64), lambda text: calibrated_on(text, 16)]
)
def test_what_every_row_begins_with_is_no_overlap(read: Callable[[Text], Fingerprint]) -> None:
    one, other = (rows([f"{PROMPT} {row}" for row in sentences(first, 30, 150)]) for first in (0, 1000))
    found = read(one)
    assert overlap(found, measured(other)) is None
    if len(found.passages):
        assert overlap(found, measured(one)) is not None
    else:  # 16 bytes
        assert unchecked(found, measured(one))


def test_a_text_that_repeats_itself_is_known_again() -> None:
    text = rows([*EVERYDAY, " ".join(sentences(0, 6) * 50)])
    assert overlap(calibrated_on(text, 128, 10), measured(text)) is not None
    text = from_string("t", " ".join(sentences(0, 6) * 50), chat_tokenizer(None))
    assert overlap(calibrated_on(text, 64, 2), measured(text)) is not None


def test_a_record_stays_small_and_still_knows_a_part_of_the_text() -> None:
    given = sentences(0, 4 * KEPT, 40)
    read = trained_on(rows(given))
    assert (len(read.passages), read.total) == (KEPT, len(set(given)))
    assert len(json.dumps(read.to_json())) < 12 * KEPT
    assert overlap(read, measured(rows(given[5000:5100]))) is not None
    assert overlap(read, measured(rows(sentences(10**6, 100, 40)))) is None
    both = Passages.of([*sentences(0, 6000, 80), *(f"{a} {b}" for a, b in itertools.pairwise(given))])
    assert len(both.thinned()) == KEPT


def test_hashes_are_those_of_earlier_versions() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz" * 4
    assert Sliding(letters).hashes(PASSAGE).tolist() == FIRST_HASHES
    old = {"read_as": "calibration", "name": "a.txt", "pieces": 1, "passages": ""}
    read = Fingerprint.from_json(old)
    assert (len(read.passages), read.total) == (0, 0)


FIRST_HASHES = [
    17318725490611428110, 13721698488976617131, 4663153213876302374, 7116252700813284911, 8062591669298304350,
]  # fmt: skip


@pytest.mark.parametrize("damage", [{"short": "?"}, {"short": "AAAAAAAAAAA="}, {"short": 3}, {"total": "many"}])
def test_a_damaged_record_is_refused(damage: dict[str, object]) -> None:
    data = {**trained_on(rows(sentences(0, 4))).to_json(), **damage}
    with pytest.raises(RequestError, match="the record of a text that was read is damaged"):
        Fingerprint.from_json(data)


def test_what_can_not_be_known_again_is_told() -> None:
    text = rows(sentences(0, 50))
    assert unchecked(trained_on(text), measured(text)) == ""
    for little in (rows(EVERYDAY), rows(sentences(0, 1)), rows([sentence(0, SHORTEST - 4)] * 2)):
        assert unchecked(trained_on(little), measured(text)) == "too little of it was read to know it again"
    assert unchecked(trained_on(text), measured(text, 16, 2)) == "the windows hold 26 characters"


def chats(path: Path, first: int, count: int, letters: int) -> Path:
    said = [
        [{"role": "user", "content": sentence(at, letters)}, {"role": "assistant", "content": sentence(-at, letters)}]
        for at in range(first, first + count)
    ]
    path.write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "model"
    torch.manual_seed(0)
    tokenizer = chat_tokenizer(TURNS)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PASSES = "taylor{samples=2,length=64,ratio=0.2},lora{steps=1,batch=2,micro_batch=2,length=128}"


def test_chats_that_a_model_was_trained_on_are_refused(model: Path, tmp_path: Path) -> None:
    given, other = chats(tmp_path / "a.jsonl", 1, 40, 28), chats(tmp_path / "b.jsonl", 1000, 40, 28)
    fxprune.apply(model, PASSES, calib=given, data=given, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"overlaps the calibration text 'a.jsonl' of .* share 2 of its 2 passages"):
        fxprune.evaluate(tmp_path / "out", given, window=128)
    fxprune.apply(model, PASSES, calib=other, data=given, out=tmp_path / "trained")
    with pytest.raises(RequestError, match=r"overlaps the recovery text 'a.jsonl' of"):
        fxprune.evaluate(tmp_path / "trained", given, window=128)
    (found,) = fxprune.evaluate(tmp_path / "out", other, window=128)
    assert found.texts[0].unchecked == ()


def test_chats_too_short_to_be_known_again_are_told_of(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = chats(tmp_path / "a.jsonl", 1, 40, 4)
    fxprune.apply(model, "lora{steps=1,batch=2,micro_batch=2,length=128}", data=given, out=tmp_path / "out")
    told = f"not checked whether '{given}' overlaps the recovery text 'a.jsonl' of {tmp_path / 'out'}: too little of it"
    command = ["eval", str(tmp_path / "out"), "--text", str(given)]
    assert cli.main(command) == 0
    assert told in capsys.readouterr().out.replace("\n", " ")
    assert cli.main([*command, "--json"]) == 0
    (text,) = json.loads(capsys.readouterr().out)["texts"]
    assert text["models"][0]["unchecked"] == [f"{told} was read to know it again"]
    assert cli.main([*command, "--allow-overlap"]) == 0
    assert "not checked" not in capsys.readouterr().out
