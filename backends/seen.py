"""What a run found when it began: at the place of its result, and in the files of its model. Both are compared again
before the result takes its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..ir.errors import FxpruneError
from ..runtime.model_files import files_read

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file's content, in nanoseconds."""


@dataclass(frozen=True)
class Seen:
    """What was there.

    Attributes:
        place: relative path -> stamp of all that stood at the place of the result, with the directory itself as "";
            empty when nothing did.
        source: the model directory; None when there is none.
        files: name -> stamp of the files in it that are read or copied.
    """

    place: Mapping[str, Stamp] = field(default_factory=dict)
    source: Path | None = None
    files: Mapping[str, Stamp] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Path, source: Path | None = None) -> Seen:
        """What is there now."""
        return cls(place_stamps(out), source, _source_stamps(source))

    def check_source(self) -> None:
        """Compare the files of the model with what they were.

        Raises:
            FxpruneError: one is another file now, has other content, is gone, or is new.
        """
        now = _source_stamps(self.source)
        for name in sorted(now.keys() | self.files.keys()):
            if now.get(name) != self.files.get(name):
                raise FxpruneError(
                    f"{self.source}: {name} changed while it was read",
                    "nothing was written; run again when nothing changes the model",
                )


def place_stamps(out: Path) -> dict[str, Stamp]:
    """Relative path -> stamp of a directory and all in it; links are not followed. Empty when there is nothing."""
    found: dict[str, Stamp] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop()
        path = out / name if name else out
        try:
            about = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(about.st_mode):
            found[name] = _stamp(about)
            continue
        found[name] = (about.st_dev, about.st_ino, 0, 0)  # on some file systems a move changes its times
        waiting += (f"{name}/{entry}" if name else entry for entry in os.listdir(path))
    return found


def _source_stamps(source: Path | None) -> dict[str, Stamp]:
    return {} if source is None or not source.is_dir() else {name: _stamp(about) for name, about in files_read(source)}


def _stamp(about: os.stat_result) -> Stamp:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
