"""A file that is the whole result of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxprune.backends.placed_file import check_file_target, placed_file
from fxprune.backends.seen import Seen
from fxprune.ir.errors import FxpruneError, RequestError

MAGIC = b"GGUF"


def write(out: Path, content: bytes, *, force: bool = False) -> None:
    seen = check_file_target(out, force=force, begins=MAGIC)
    with placed_file(out, seen) as path:
        path.write_bytes(content)


def fail_halfway(out: Path, seen: Seen) -> None:
    with placed_file(out, seen) as path:
        path.write_bytes(b"GGUF half")
        raise OSError("no such disk")


def be_overtaken(out: Path, seen: Seen) -> None:
    with placed_file(out, seen) as path:
        path.write_bytes(b"GGUF2")
        out.write_bytes(b"of another")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_complete_in_a_new_folder(tmp_path: Path) -> None:
    write(tmp_path / "new" / "a.gguf", b"GGUF1")
    assert (tmp_path / "new" / "a.gguf").read_bytes() == b"GGUF1"
    assert names(tmp_path / "new") == ["a.gguf"]


def test_force_replaces_a_file_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", b"GGUF1")
    write(tmp_path / "a.gguf", b"GGUF2", force=True)
    assert (tmp_path / "a.gguf").read_bytes() == b"GGUF2"
    assert names(tmp_path) == ["a.gguf"]


def test_an_error_leaves_nothing_or_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "old", b"GGUF1")
    for name in ("old", "new"):
        seen = check_file_target(tmp_path / name, force=True, begins=MAGIC)
        with pytest.raises(FxpruneError, match="no such disk"):
            fail_halfway(tmp_path / name, seen)
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"GGUF1"


@pytest.mark.parametrize("before", [None, b"GGUF1"])
def test_what_another_has_made_meanwhile_stays(before: bytes | None, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    if before:
        out.write_bytes(before)
    seen = check_file_target(out, force=True, begins=MAGIC)
    with pytest.raises(RequestError, match=r"a\.gguf") as caught:
        be_overtaken(out, seen)
    assert out.read_bytes() == b"of another"
    assert "nothing is lost" in caught.value.hint
    assert (tmp_path / "a.gguf.fxprune-2").read_bytes() == b"GGUF2"


def test_without_a_single_step_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.backends.change_places._rename", lambda *_: False)
    write(tmp_path / "a.gguf", b"GGUF1")
    write(tmp_path / "a.gguf", b"GGUF2", force=True)
    assert (tmp_path / "a.gguf").read_bytes() == b"GGUF2"
    assert names(tmp_path) == ["a.gguf"]


REFUSED = [
    ("there.gguf", False, "already exists"),
    ("other.txt", True, "is no file of this format"),
    ("folder", True, "is a directory"),
    ("pipe", True, "is no file of this format"),
    ("other.txt/a.gguf", False, "is a file, not a directory"),
    ("model/a.gguf", False, "would be a file of the model"),
    ("x" * 250, False, "too long"),
]


@pytest.mark.parametrize(("name", "force", "message"), REFUSED)
def test_refused(name: str, force: bool, message: str, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"GGUF1")
    (tmp_path / "other.txt").write_bytes(b"notes of mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        check_file_target(tmp_path / name, force=force, begins=MAGIC, source=tmp_path / "model")
    assert caught.value.hint
    assert names(tmp_path) == before


@pytest.mark.parametrize(("name", "place"), [("folder", "folder/model.gguf"), ("model", "model.gguf")])
def test_the_place_of_the_hint_is_free(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(RequestError, match="is a directory") as caught:
        check_file_target(tmp_path / name, force=False, begins=MAGIC, source=source)
    assert caught.value.hint == f"write --out {tmp_path / place}"
    check_file_target(tmp_path / place, force=False, begins=MAGIC, source=source)


def test_a_name_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"g\.onnx is named like a file of another format") as caught:
        check_file_target(tmp_path / "g.onnx", force=False, begins=MAGIC)
    assert caught.value.hint == "give --out a name that ends in .gguf"
    assert check_file_target(tmp_path / "g.v2", force=False, begins=MAGIC)
