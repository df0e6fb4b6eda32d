"""A fuzzer over the files that are read: no exception but FxpruneError, no file left, and memory that stays bounded.

Files that once broke something are in ``corpus``, in a folder for each kind; new ones are added as they are found.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import fxprune
from fxprune.api.inputs.seen_texts import record_of
from fxprune.api.pruning.recorded_plan import read_recorded
from fxprune.api.pruning.score_file import SCORES_ENTRY, open_scores
from fxprune.backends.artifact import PLAN, RECORD, read_plan
from fxprune.ir.errors import FxpruneError
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import all_passes
from fxprune.tracer.fitting import check_fit
from fxprune.tracer.model import load_tokenizer, resolve
from fxprune.tracer.texts.corpus import load_text
from fxprune.tracer.texts.fingerprints import Fingerprint

from .mutations import json_files, row_files, tensor_files
from .strangers import copied, write_model

CORPUS = Path(__file__).parent / "corpus"

GROWTH = 1_000_000_000
"""Bytes by which the memory of the process may grow while a kind of file is tried."""

LONG, SOME, FEW = 1_050, 300, 100
"""Examples of each kind in the marked run, by what they cost: 10,100 in all."""

INDEX = "model.safetensors.index.json"
ROWS = b"\n".join(json.dumps({"text": "a b c " * 9, "n": n}).encode() for n in range(3))
ALPACA = json.dumps([{"instruction": "a", "input": "b", "output": "c c a"}] * 2).encode()
SCORED = {"version": 1, "pass": "taylor", "options": {"by": "uniform"}, "model": "0" * 64,
          "read": [{"length": 8, "count": 2, "seed": 0, "sha256": "1" * 64}]}  # fmt: skip


Making = Callable[[bytes], st.SearchStrategy[bytes]]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        file: it is replaced by what the fuzzer makes of it.
        made: from the valid bytes to others.
        read: reads it as fxprune does.
        long: examples in the marked run.
    """

    file: Path
    made: Making
    read: Callable[[], Any]
    long: int = LONG


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Every kind, in directories of its own, all of them valid."""
    place = tmp_path_factory.mktemp("fuzz")
    whole, sharded = write_model(place / "model"), write_model(place / "sharded", shards=True)
    free = place / "free"
    taylor = "taylor{samples=2,length=8,ratio=0.5}"
    fxprune.apply(whole, taylor, calib=place / "text.txt", form="free", out=free)
    scores, rows, alpaca = place / "scores.safetensors", place / "rows.jsonl", place / "alpaca.json"
    save_file({"a:width": np.ones(3), "search a:width": np.ones((2, 3))}, scores, {SCORES_ENTRY: json.dumps(SCORED)})
    rows.write_bytes(ROWS)
    alpaca.write_bytes(ALPACA)
    shard = min(path.name for path in sharded.glob("model-*.safetensors"))
    source, tokenizer = resolve(whole), load_tokenizer(resolve(whole))
    pipeline = parse_pipeline("taylor", all_passes(), {})

    def fits(file: str, made: Making, of: Path = whole, long: int = LONG) -> Kind:
        """A file of a model that is checked before anything is built."""
        folder = copied(of, place / f"fits {file} {made.__name__} {of.name}")
        return Kind(folder / file, made, lambda: check_fit(resolve(folder)), long)

    def tokenizes(file: str) -> Kind:
        folder = copied(whole, place / f"tokenizes {file}")
        return Kind(folder / file, json_files, lambda: load_tokenizer(resolve(folder)), SOME)

    def recorded(folder: Path) -> None:
        for text in record_of(folder).get("texts") or ():
            Fingerprint.from_json(text)
        read_recorded(folder, source)

    def dry_run(folder: Path) -> Any:
        return fxprune.apply(folder, "magnitude", ratio=0.5, dry_run=True)

    record, plan, entry = (copied(free, place / name) for name in ("record", "plan", "entry"))
    trace, dry = (copied(whole, place / name) for name in ("trace", "dry run"))
    return {
        "config": fits("config.json", json_files),
        "trace": Kind(trace / "config.json", json_files, lambda: fxprune.trace(trace), FEW),
        "dry run": Kind(dry / "model.safetensors", tensor_files, lambda: dry_run(dry), FEW),
        "generation": fits("generation_config.json", json_files, long=SOME),
        "index": fits(INDEX, json_files, sharded),
        "header": fits("model.safetensors", tensor_files),
        "shard": fits(shard, tensor_files, sharded, SOME),
        "record": Kind(record / RECORD, json_files, lambda: recorded(record)),
        "free form": Kind(entry / "config.json", json_files, lambda: fxprune.load(entry), SOME),
        "plan": Kind(plan / PLAN, tensor_files, lambda: read_plan(plan)),
        "scores": Kind(scores, tensor_files, lambda: open_scores(scores, pipeline, texts=True)),
        "rows": Kind(rows, row_files, lambda: load_text(str(rows), tokenizer).windows(4)),
        "list of rows": Kind(alpaca, json_files, lambda: load_text(str(alpaca), tokenizer).examples(8)),
        "tokenizer config": tokenizes("tokenizer_config.json"),
        "tokenizer": tokenizes("tokenizer.json"),
    }


NAMES = [
    "config", "trace", "dry run", "generation", "index", "header", "shard", "record", "free form", "plan", "scores",
    "rows", "list of rows", "tokenizer config", "tokenizer",
]  # fmt: skip


def assert_read_or_refused(kind: Kind, data: bytes) -> None:
    """The file is read, or refused with a message that can be shown."""
    kind.file.write_bytes(data)
    told = "read"
    try:
        kind.read()
    except FxpruneError as error:
        told = error.message and f"{error.message} {error.hint}"
    assert told
    assert "is a bug in fxprune" not in told
    assert not [char for char in told if char in "\x1b\x07\u202e\0"]


@pytest.fixture
def bounded(kinds: dict[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file is left, in the directories that are read, the temporary one and the current one; memory stays."""
    temporary, current = tmp_path / "temporary", tmp_path / "current"
    temporary.mkdir()
    current.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(current)
    places = [temporary, current, *{kind.file.parent for kind in kinds.values()}]
    before, grown = [sorted(os.listdir(place)) for place in places], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024 < GROWTH
    assert [sorted(os.listdir(place)) for place in places] == before


def fuzz(kind: Kind, count: int, *, anew: bool) -> None:
    """Try a number of files; ``anew``: others than in the last run."""
    valid = kind.file.read_bytes()

    @settings(max_examples=count, derandomize=not anew, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(kind.made(valid))
    def attempt(data: bytes) -> None:
        assert_read_or_refused(kind, data)

    try:
        attempt()
    finally:
        kind.file.write_bytes(valid)
    kind.read()


@pytest.mark.wide
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_or_refused(kinds: dict[str, Kind], name: str) -> None:
    assert set(kinds) == set(NAMES)
    fuzz(kinds[name], 30 if kinds[name].long > FEW else 6, anew=False)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_files_are_read_or_refused(kinds: dict[str, Kind], name: str) -> None:
    assert sum(kind.long for kind in kinds.values()) >= 10_000
    fuzz(kinds[name], kinds[name].long, anew=True)


FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}/{path.name}" for path in FOUND])
def test_what_was_found_stays_cured(kinds: dict[str, Kind], path: Path) -> None:
    kind = kinds[path.parent.name]
    valid = kind.file.read_bytes()
    try:
        assert_read_or_refused(kind, path.read_bytes())
    finally:
        kind.file.write_bytes(valid)
