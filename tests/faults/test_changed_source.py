"""A model that changes while it is read: nothing is written of it, and what is written is compared with the source."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fxprune import api
from fxprune.backends.huggingface import weight_source
from fxprune.backends.huggingface.streamed_weights import StreamedWeights
from fxprune.backends.verify import VerificationError
from fxprune.ir.errors import FxpruneError
from fxprune.runtime.streaming.mapped_files import Checkpoint, require_whole

from ..checkpoints import write_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "source")
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same tensors in another order, so that the header of one file is wrong for the other."""
    folder = tmp_path / "other"
    write_checkpoint(folder, seed=1, dtype=torch.float32)
    return folder


def at_writing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], *, after: bool = False) -> None:
    write = StreamedWeights.write

    def changed(self: Any, model: Any, folder: Path, **how: Any) -> Any:
        if not after:
            act()
        found = write(self, model, folder, **how)
        if after:
            act()
        return found

    monkeypatch.setattr(StreamedWeights, "write", changed)


def replaced(source: Path, other: Path) -> None:
    os.replace(other / WEIGHTS, source / WEIGHTS)


def overwritten(source: Path, other: Path) -> None:
    shutil.copyfile(other / WEIGHTS, source / WEIGHTS)


def one_value_changed(source: Path, _other: Path) -> None:
    with (source / WEIGHTS).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")


def reconfigured(source: Path, _other: Path) -> None:
    text = (source / "config.json").read_text()
    (source / "config.json").write_text(text.replace("1e-06", "1e-05") + "\n")


def licensed_anew(source: Path, _other: Path) -> None:
    (source / "LICENSE").write_text("not free")


def with_an_index(source: Path, _other: Path) -> None:
    (source / f"{WEIGHTS}.index.json").write_text("{}")


def without_a_licence(source: Path, _other: Path) -> None:
    (source / "LICENSE").unlink()


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replaced, WEIGHTS),
        (overwritten, WEIGHTS),
        (one_value_changed, WEIGHTS),
        (reconfigured, "config.json"),
        (licensed_anew, "LICENSE"),
        (with_an_index, f"{WEIGHTS}.index.json"),
        (without_a_licence, "LICENSE"),
    ],
)
def test_a_model_that_changes_is_named_and_nothing_is_written(
    source: Path, other: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None], named: str
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    at_writing(monkeypatch, lambda: change(source, other), after=True)
    with pytest.raises(FxpruneError) as caught:
        api.apply(source, "random", ratio=0.5, out=source.parent / "out")
    assert caught.value.message == f"{source}: {named} changed while it was read"
    assert sorted(path.name for path in source.parent.iterdir()) == ["other", "source"]


def test_a_model_that_does_not_change_is_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    at_writing(monkeypatch, (source / WEIGHTS).read_bytes)
    at_writing(monkeypatch, (source / "training.log").touch)  # nothing that is read
    api.apply(source, "random", ratio=0.5, out=source.parent / "out")
    assert (source.parent / "out" / "LICENSE").read_text() == "free"


def test_the_header_and_the_values_are_of_the_same_file(source: Path, other: Path) -> None:
    before = load_file(source / WEIGHTS)
    checkpoint = Checkpoint([source / WEIGHTS])
    replaced(source, other)
    assert checkpoint.tensors.keys() == before.keys()
    assert all(torch.equal(require_whole(checkpoint.tensors[name], {}), before[name]) for name in before)


def test_a_file_that_was_held_is_closed_with_its_checkpoint(source: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    checkpoint = Checkpoint([source / WEIGHTS])
    assert len(os.listdir("/proc/self/fd")) == open_before + 1
    del checkpoint
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(20)]
    for file in files:
        save_file({file.name: torch.zeros(1)}, file)
    used = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, hard))
    try:
        assert len(Checkpoint(files, keep_open=False).tensors) == 20
        with pytest.raises(FxpruneError, match="cannot be opened: too many files are open") as caught:
            Checkpoint(files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "ulimit" in caught.value.hint


def test_what_was_written_is_compared_with_the_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage() -> None:
        (path,) = source.parent.glob(f".out.partial-*/{WEIGHTS}")
        tensors = load_file(path)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})

    at_writing(monkeypatch, damage, after=True)
    with pytest.raises(VerificationError, match="logits differ"):
        api.apply(source, "random", ratio=0.5, out=source.parent / "out", form="uniform")
    assert [path.name for path in source.parent.iterdir()] == ["source"]
