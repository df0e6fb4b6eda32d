"""A text for sources, and a run that broke off."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from fxprune import api
from fxprune.api.pruning import model_run

from .interrupted import VOCABULARY, write_source


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(400)))
    return file


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and the stage of a run that broke off while it wrote."""
    folder = tmp_path_factory.mktemp("begun")
    source = write_source(folder / "source")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run, "save", full)
        with pytest.raises(OSError, match="No space"):
            api.apply(source, "random", ratio=0.5, out=folder / "out", resume=True)
    return folder


@pytest.fixture
def copied(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copied"))  # keeps the times of files, which tell a source
