"""No model is measured on text that it was calibrated or trained on: what is remembered, and what is refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.api.inputs.seen_texts import read_so_far
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.tracer.texts.corpus import Text, from_string, load_text
from fxprune.tracer.texts.fingerprints import Fingerprint, TrackedText
from fxprune.tracer.texts.overlap import MeasuredText, overlap
from fxprune.tracer.texts.passages import KEPT, PASSAGE

from ..corpora import word_tokenizer

WORDS = [f"{first}{second}nda" for first in "bcdfgklmnp" for second in "aeiou"]
"""Fifty words of five letters: a passage is twenty of them."""


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def text(content: str, name: str = "calib.txt") -> Text:
    return from_string(name, content, word_tokenizer(WORDS))


def fingerprint(content: str, length: int = 64, count: int | None = None, seed: int | None = None) -> Fingerprint:
    tracked_text = TrackedText(text(content))
    tracked_text.windows(length, count, seed)
    found = tracked_text.fingerprint("calibration", "calib.txt")
    assert found is not None
    return found


def shared(read: Fingerprint, content: str, length: int = 64) -> Any:
    other = text(content, "eval.txt")
    return overlap(read, MeasuredText.of(other.windows(length), other))


def test_a_window_holds_its_passages_side_by_side() -> None:
    read = fingerprint(words(0, 400), length=64, count=3)
    assert (read.pieces, len(read.passages)) == (3, 3 * (64 * 5 // PASSAGE))
    assert fingerprint(words(0, 400), length=64, count=3).to_json() == read.to_json()


def test_windows_read_twice_count_once() -> None:
    tracked_text = TrackedText(text(words(0, 400)))
    tracked_text.windows(64, 3)
    tracked_text.windows(64, 2)
    found = tracked_text.fingerprint("calibration", "calib.txt")
    assert found is not None
    assert found.pieces == 3
    assert found.to_json() == fingerprint(words(0, 400), count=3).to_json()


@pytest.mark.parametrize("shift", [0, 1, 7, 19, 20, 63])
def test_shared_text_is_found_wherever_it_stands(shift: int) -> None:
    content = words(0, 128)
    read = fingerprint(content)
    found = shared(read, " ".join([words(1, shift), content, words(2, 128)]) if shift else content)
    assert found.passages == len(read.passages) == 6
    # 128 words from word `shift` on, of which the last 4 of each window of 64 belong to no passage.
    last = shift + 128 - 4 - 1
    assert found.windows == len({(shift + at) // 64 for at in range(19, 128)} & set(range(last // 64 + 1)))


def test_the_example_is_what_both_hold() -> None:
    content = words(0, 64)
    found = shared(fingerprint(content), f"{words(1, 10)} {content} {words(2, 64)}")
    assert found.example == content.replace(" ", "")[:PASSAGE]


def test_other_text_shares_nothing() -> None:
    assert shared(fingerprint(words(0, 6400)), words(1, 6400)) is None


def test_one_passage_may_be_chance() -> None:
    content = words(0, 64).split()
    read = fingerprint(" ".join(content))
    assert shared(read, " ".join([*content[:20], *words(1, 108).split()])) is None
    assert shared(read, " ".join([*content[:40], *words(1, 88).split()])).passages == 2


def test_text_that_was_not_read_is_not_remembered() -> None:
    content = words(0, 640)
    read = fingerprint(content, count=2)
    assert shared(read, " ".join(content.split()[128:])) is None
    drawn = fingerprint(content, count=2, seed=1)
    assert drawn.to_json() != read.to_json()


def test_rows_of_recovery_data_are_remembered(tmp_path: Path) -> None:
    rows = [words(seed, 50) for seed in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    tracked_text = TrackedText(load_text(str(tmp_path / "rows.jsonl"), word_tokenizer(WORDS)))
    assert len(tracked_text.examples(128)) == 4
    found = tracked_text.fingerprint("recovery", "rows.jsonl")
    assert found is not None
    assert (found.pieces, len(found.passages.whole), len(found.passages.short)) == (4, 4 * 2, 4)
    assert shared(found, f"{words(9, 64)} {rows[2]} {words(8, 64)}").passages == 3


def test_of_long_texts_a_part_is_remembered() -> None:
    content = words(0, 64 * 2000)
    read = fingerprint(content)
    assert len(read.passages) == KEPT
    assert shared(read, " ".join(content.split()[: 64 * 100])).passages > 100


def test_nothing_read_leaves_nothing() -> None:
    assert TrackedText(text(words(0, 100))).fingerprint("calibration", "calib.txt") is None
    assert read_so_far({"calibration": TrackedText(text(words(0, 100))), "recovery": None}) == []


def test_what_earlier_runs_read_comes_first_and_once() -> None:
    first, tracked_text = fingerprint(words(0, 64)).to_json(), TrackedText(text(words(1, 64)))
    tracked_text.windows(64)
    entries = read_so_far({"calibration": tracked_text}, {"texts": [first]}, {"texts": [first]}, {})
    assert entries == [first, fingerprint(words(1, 64)).to_json()]


def test_a_fingerprint_survives_json() -> None:
    read = fingerprint(words(0, 128))
    again = Fingerprint.from_json(json.loads(json.dumps(read.to_json())))
    assert (again.read_as, again.name, again.pieces) == ("calibration", "calib.txt", 2)
    assert again.passages.whole.dtype == np.uint64
    assert again.to_json() == read.to_json()


@pytest.mark.parametrize("damage", [{"passages": "?"}, {"passages": "AAAA"}, {"pieces": "many"}, {"name": ...}])
def test_a_damaged_record_is_refused(damage: Mapping[str, Any]) -> None:
    data = {**fingerprint(words(0, 64)).to_json(), **damage}
    with pytest.raises(RequestError, match="the record of a text that was read is damaged"):
        Fingerprint.from_json({name: value for name, value in data.items() if value is not ...})


@dataclass(frozen=True)
class Made:
    model: Path
    out: Path
    calib: Path
    other: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny Llama, calibrated on the first ten windows of one text, and another text."""
    folder = tmp_path_factory.mktemp("overlap")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    word_tokenizer(WORDS).save_pretrained(folder / "model")
    (folder / "calib.txt").write_text(words(0, 64 * 12))
    (folder / "other.txt").write_text(words(1, 64 * 12))
    result = Made(folder / "model", folder / "out", folder / "calib.txt", folder / "other.txt")
    fxprune.apply(result.model, "taylor{length=64}", calib=result.calib, out=result.out)
    return result


MESSAGE = (
    "'{text}' overlaps the {read} text 'calib.txt' of {out}: {found} of {windows} windows share {shared} of its 30 "
    "passages, such as '"
)


def refused(made: Made, out: Path, *, found: int, windows: int | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        fxprune.evaluate([made.model, out], made.calib, window=64, windows=windows)
    expected = MESSAGE.format(
        text=made.calib, read="calibration", out=out, found=found, windows=windows or 12, shared=3 * found
    )
    assert caught.value.message.startswith(expected)
    assert "--allow-overlap" in caught.value.hint
    return caught.value.message


def test_calibration_text_is_refused_for_evaluation(made: Made) -> None:
    message = refused(made, made.out, found=10)
    assert re.search(r"such as '[a-z]{100}'$", message)
    refused(made, made.out, found=4, windows=4)


def test_other_text_and_the_dense_model_are_measured(made: Made) -> None:
    assert len(fxprune.evaluate([made.model, made.out], made.other, window=64)) == 2
    assert len(fxprune.evaluate(made.model, made.calib, window=64)) == 1


def test_the_command_line_refuses_and_measures_all_the_same(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(made.out), "--text", str(made.calib), "--window", "64"]
    assert main(command) == 2
    assert "overlaps the calibration text 'calib.txt'" in capsys.readouterr().err.replace("\n", " ")
    assert main([*command, "--allow-overlap"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_model_made_from_an_artifact_has_seen_what_it_has_seen(made: Made, tmp_path: Path) -> None:
    fxprune.apply(made.out, "magnitude", out=tmp_path / "again")
    refused(made, tmp_path / "again", found=10)
    fxprune.apply(made.model, plan=made.out / "fxprune.plan", out=tmp_path / "replayed")
    refused(made, tmp_path / "replayed", found=10)


@pytest.mark.slow
def test_an_export_has_seen_what_its_source_has_seen(made: Made, tmp_path: Path) -> None:
    fxprune.export(made.out, tmp_path / "onnx")
    refused(made, tmp_path / "onnx", found=10)


def test_training_text_is_refused_too(made: Made, tmp_path: Path) -> None:
    recovery = "magnitude,lora{steps=1,batch=2,micro_batch=2,length=64}"
    fxprune.apply(made.model, recovery, data=made.calib, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"overlaps the recovery text 'calib.txt' of .*: 12 of 12 windows share 36 "):
        fxprune.evaluate(tmp_path / "out", made.calib, window=64)


def test_calibration_on_nothing_is_recorded_as_nothing(made: Made, tmp_path: Path) -> None:
    fxprune.apply(made.model, "magnitude", calib=made.calib, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "fxprune.json").read_text())["texts"] == []
