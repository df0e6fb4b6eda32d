"""Sha256 of files, and of a source that is read meanwhile."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fxprune.backends import digests as module
from fxprune.backends.digests import begin_source_digests, digests, sha256, source_digests


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 4096, 3 * 4096 + 7])
def test_a_file_is_hashed_window_by_window(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_WINDOW", 4096)
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == digest(data)


def test_the_files_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"weights")
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "folder").mkdir()
    assert list(digests(tmp_path)) == ["a.json", "b.safetensors"]
    assert digests(tmp_path, ".safetensors") == {"b.safetensors": digest(b"weights")}
    assert digests(tmp_path, ".safetensors", known={"b.safetensors": "known"}) == {"b.safetensors": "known"}


def test_what_was_begun_is_taken_once_and_only_while_the_files_are_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, hashed = tmp_path / "model.safetensors", []
    weights.write_bytes(b"first")

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(module, "sha256", counted)
    for times in (1, 2):
        begin_source_digests(tmp_path)
        begin_source_digests(tmp_path)
        assert source_digests(tmp_path) == {"model.safetensors": digest(b"first")}
        assert len(hashed) == times
    begin_source_digests(tmp_path)
    weights.write_bytes(b"second")
    assert source_digests(tmp_path) == {"model.safetensors": digest(b"second")}


def test_a_source_that_is_no_directory_has_none(tmp_path: Path) -> None:
    begin_source_digests(tmp_path / "none")
    assert source_digests(tmp_path / "none") == {}
