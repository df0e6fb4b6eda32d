"""A base model, and a temporary directory that has to be empty at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from ...checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only temporary directory; it must be empty at the end."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "tiny", dtype=torch.float32)
