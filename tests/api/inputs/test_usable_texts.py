"""Data that a pass cannot use, or that none uses: said before the first pass works, or after the last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.demo import MODEL_DIR
from fxprune.ir.errors import RequestError

SHORT = "taylor{samples=2,length=16}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A running text, one that is too short, and rows without answers."""
    root = tmp_path_factory.mktemp("texts")
    (root / "text.txt").write_text("the function returns a list of names. " * 40)
    (root / "short.txt").write_text("nothing much")
    (root / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n} of some text"}) + "\n" for n in range(8)))
    return root


@pytest.mark.parametrize(
    ("passes", "texts", "message"),
    [
        (f"{SHORT},lora{{train_on=answers}}", {"data": "text.txt"}, "is a running text, which has no answers"),
        (f"{SHORT},finetune{{train_on=answers}}", {"data": "rows.jsonl"}, "is rows of `text`, which has no answers"),
        (f"{SHORT},lora{{length=64}}", {"data": "short.txt"}, "short.txt' is too short: it holds 0 windows of 64"),
        (f"{SHORT},compensate{{samples=4000,length=16}}", {"calib": "text.txt"}, "is too short: it holds"),
        (f"magnitude,{SHORT}", {"calib": "short.txt"}, "is too short: it holds 0 windows of 16"),
        (SHORT, {"calib": "absent.txt"}, "there is no text file '.*absent.txt'"),
        (f"{SHORT},lora", {"data": "absent.jsonl"}, "there is no text file '.*absent.jsonl'"),
        (SHORT, {"data": "text.txt"}, "--data has no effect: no pass trains on it"),
        (f"{SHORT},compensate", {"data": "text.txt"}, "--data has no effect: no pass trains on it"),
    ],
)
def test_it_is_said_before_any_pass_works(
    place: Path, tmp_path: Path, passes: str, texts: dict[str, str], message: str
) -> None:
    said: list[str] = []
    given: dict[str, Any] = {name: place / path for name, path in texts.items()}
    with pytest.raises(RequestError, match=message):
        fxprune.apply("demo", passes, ratio=0.25, out=tmp_path / "out", progress=said.append, **given)
    assert not any(" of 2)" in text or " of 1)" in text for text in said), "a pass began"
    assert not list(tmp_path.iterdir())


def test_a_training_without_text_is_refused_before_any_pass_works(place: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shutil.copytree(MODEL_DIR, tmp_path / "model")  # under its own name, the built-in model has texts of its own
    with pytest.raises(RequestError, match="lora has no text to train on") as caught:
        fxprune.apply(
            tmp_path / "model", f"{SHORT},lora", ratio=0.25, calib=place / "text.txt", out=tmp_path / "out",
            progress=said.append,
        )  # fmt: skip
    assert caught.value.hint == "give --data FILE"
    assert not any(" of 2)" in text for text in said)


def test_what_a_later_pass_reads_of_a_text_that_is_yet_to_be_written_is_not_asked(place: Path) -> None:
    found = fxprune.apply(
        "demo", "generate{windows=6,length=16,first=0},wanda{samples=6,length=16}", ratio=0.25, dry_run=True,
        calib=place / "short.txt",
    )  # fmt: skip
    assert found.groups


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(("passes", "unread"), [("magnitude", ("calib",)), (SHORT, ())])
def test_a_text_that_no_pass_read_is_told_of(place: Path, passes: str, unread: tuple[str, ...]) -> None:
    found = fxprune.apply("demo", passes, ratio=0.25, calib=place / "text.txt", dry_run=True)
    assert found.unread == unread
    assert found.to_json()["unread"] == list(unread)


def test_data_that_trains_no_module_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    with pytest.raises(RequestError, match="--data has no effect: no pass trains on it"):
        fxprune.prune_module(net, x, "magnitude", ratio=0.5, data=[{"input": x}])
