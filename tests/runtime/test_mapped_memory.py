"""What is mapped without being writable is no memory of the process, for any limit that the system may set."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
import torch

from fxprune.ir.errors import FxpruneError
from fxprune.runtime.streaming.mapped_files import Checkpoint
from fxprune.runtime.streaming.store import OnDisk

STATUS = Path("/proc/self/status")
SIZE = 64 << 20


def promised() -> int:
    """Bytes that ``RLIMIT_DATA`` limits."""
    return 1024 * int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmData")))


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say what it counts")
def test_values_that_are_only_read_do_not_count_as_memory(tmp_path: Path) -> None:
    value = torch.arange(SIZE // 4, dtype=torch.float32)
    read = OnDisk(lambda: tmp_path).put("weight", value)
    before = promised()
    lent = read(writable=False)
    assert torch.equal(lent, value)
    assert promised() - before < SIZE // 4
    own = read()
    assert promised() - before >= SIZE
    own.add_(1)
    assert torch.equal(read(writable=False), value)


def test_a_limit_that_is_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = OnDisk(lambda: tmp_path).put("weight", torch.ones(4))
    stored = Checkpoint([next(tmp_path.glob("*.safetensors"))]).tensors["weight"]
    assert torch.equal(read(), torch.ones(4))

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refused)
    with pytest.raises(FxpruneError, match=r"refuses to map 'weight' \(16 bytes\)") as caught:
        stored.mapped()
    assert "ulimit" in caught.value.hint
