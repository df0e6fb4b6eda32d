"""Large files: the same bytes past the system's cache and through it, whatever pieces they come in."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from fxprune.backends.huggingface import direct_file
from fxprune.backends.huggingface.direct_file import DirectFile

BLOCK = 1 << 16
SIZES = (0, 1, BLOCK - 1, BLOCK, 5 * BLOCK, 7 * BLOCK + 333)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_file, "WRITE_BLOCK", BLOCK)


def write(path: Path, data: bytes, piece: int) -> str:
    with DirectFile(path, len(data)) as file:
        for start in range(0, len(data), piece):
            file.write(np.frombuffer(data[start : start + piece], np.uint8))
    return file.sha256()


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["past the cache", "through the cache"])
@pytest.mark.parametrize("piece", [1000, BLOCK, 3 * BLOCK + 1])
def test_the_bytes_and_their_digest(large: int, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_file, "DIRECT_SIZE", large)
    for size in SIZES:
        data = os.urandom(size)
        assert write(tmp_path / "file", data, piece) == hashlib.sha256(data).hexdigest()
        assert (tmp_path / "file").read_bytes() == data


def test_a_file_system_that_wants_another_alignment_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_file, "DIRECT_SIZE", 0)
    real, refused = os.write, []

    def picky(file: int, data: memoryview) -> int:
        if hasattr(os, "O_DIRECT") and direct_file.fcntl.fcntl(file, direct_file.fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, data)

    monkeypatch.setattr(os, "write", picky)
    data = os.urandom(4 * BLOCK + 5)
    assert write(tmp_path / "file", data, 1000) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "file").read_bytes() == data
    assert len(refused) <= 1


def test_an_error_of_the_writing_thread_is_raised_where_the_bytes_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    for size in (5, 9 * BLOCK):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "file", bytes(size), BLOCK)
