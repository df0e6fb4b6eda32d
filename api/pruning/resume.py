"""``--resume``: after a pass its result is saved beside OUT, so that an interrupted run can continue from there.

A stage is the state of the pipeline between two passes. There is one at a time, in ``.OUT.stages``. It is replaced in
one step, and removed when OUT has been written. It holds data only: see :mod:`.stage_file` for its files and
:mod:`.stored_state` for what of a state is in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from ...backends.artifact import RECORD
from ...backends.atomic_directory import atomic_directory, clear_leftovers
from ...ir.errors import FxpruneError, RequestError
from ...passes.base import Pass
from ...passes.halfway import Halfway
from ...passes.pipeline import print_pipeline
from ...passes.recover.kept_training import STATE, STATE_FILES
from ...passes.state import Finished
from ...runtime.generators import generator_states, set_generator_states
from ..progress import Progress
from ..stage_places import HALFWAY_SUFFIX, SUFFIX, beside
from .run_identity import changes
from .stage_file import TENSORS, Packed, StageFile, UnsavableError, read_stage, write_stage

WORTH = 60.0
"""A stage is saved without ``--resume`` once this many seconds of work would be lost."""

ROOM = 3
"""A stage is saved only where the disk has room for this many copies of it, since OUT needs room too."""

EVERY = 60.0
"""Seconds of a pass that may be lost, where it can keep how far it got."""

_STAGE_FILES = {
    SUFFIX: (RECORD, "stage", re.compile(re.escape(RECORD) + "|" + re.escape(TENSORS))),
    HALFWAY_SUFFIX: (STATE, "run", STATE_FILES),
}
"""Ending of a directory -> the file in it that says that a run of fxprune wrote it, the entry that says so, and the
names of all its files."""

Parts = dict[str, Any]

StoredT = TypeVar("StoredT")


class Stages:
    """The saved stage of one run.

    Args:
        out: the directory that the run writes.
        pipeline: the passes that it runs.
        identity: what its result depends on, see :func:`~fxprune.api.pruning.run_identity.identity`.
        asked: whether ``--resume`` was given: continue from the saved stage, and save a stage after every pass.
        progress: told what is saved and what is not.

    Raises:
        RequestError: with ``asked``, when the saved stage is of a different run or another version of fxprune, is
            damaged, was changed, or is a link.
    """

    def __init__(
        self, out: Path, pipeline: Sequence[Pass], identity: Mapping[str, Any], *, asked: bool, progress: Progress
    ) -> None:
        self._out = out.resolve()
        self.folder = beside(self._out, SUFFIX)
        self._halfway = beside(self._out, HALFWAY_SUFFIX)
        self._pipeline = [print_pipeline([step], defaults=True) for step in pipeline]
        self._identity = dict(identity)
        self._asked, self._progress = asked, progress
        self._since = time.monotonic()
        self._file: StageFile | None = None
        self._generators: Parts = {}
        clear_leftovers(self.folder)
        self.done = self._found()

    def _found(self) -> int:
        """How many passes the saved stage covers."""
        stage = self.folder.is_dir() or self.folder.is_symlink()
        if not stage and not _is_own(self._halfway, HALFWAY_SUFFIX):
            if self._asked:
                self._progress(f"no interrupted run of {self._out} found; starting from the beginning")
            return 0
        if not self._asked:
            self._progress(f"an interrupted run of {self._out} exists; --resume would continue it")
        if not self._asked or not stage:
            return 0
        self._file = read_stage(self.folder, _RESUME_HINT)
        with self._damages():
            changed = changes(self._file.data.get("run") or {}, self._identity)
        if changed:
            raise RequestError(f"cannot resume {self._out}: {changed}", _RESUME_HINT)
        done = self._file.data.get("done")
        if type(done) is not int or not 0 < done <= len(self._pipeline):
            raise RequestError(f"{self.folder} is damaged: it covers {done} passes", _RESUME_HINT)
        return done

    def read(self, decode: Callable[[Parts], StoredT]) -> StoredT:
        """What :meth:`keep` saved.

        Args:
            decode: makes something of it; what it raises for data of another form says that the stage is damaged.

        Raises:
            RequestError: it is damaged.
        """
        assert self._file is not None, "done is 0 without a stage"
        self._progress(f"resuming after {self._pipeline[self.done - 1]} ({self.done} of {len(self._pipeline)})")
        with self._damages():
            parts = self._file.whole()
            self._generators = parts["generators"]
            return decode(parts)

    @contextmanager
    def resuming(self) -> Iterator[None]:
        """Inside, what was read is put back; afterwards the random number generators are as they were then too.

        Raises:
            RequestError: what was read does not fit.
        """
        try:
            yield
        except FxpruneError as error:
            raise RequestError(f"cannot resume {self._out}: {error.message}", _RESUME_HINT) from error
        with self._damages():
            set_generator_states(self._generators)
        self._file, self._generators = None, {}

    @contextmanager
    def _damages(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, *_MISSHAPEN) as error:
            raise RequestError(f"{self.folder} is damaged: {error!r}", _RESUME_HINT) from error

    def keep(self, done: int, finished: Sequence[Finished], parts: Callable[[], Parts]) -> None:
        """Save the state after the first ``done`` passes, if it is worth it. If that fails, the run continues.

        Args:
            done: how many passes are done.
            finished: what they did.
            parts: makes what is to be saved: JSON data, in which tensors and arrays may stand.
        """
        if done <= self.done or (not self._asked and time.monotonic() - self._since < WORTH):
            return
        try:
            self._keep(done, finished, parts)
        except (FxpruneError, UnsavableError, OSError, MemoryError) as error:
            self._progress(f"not saved for --resume: {error or type(error).__name__}")

    def _keep(self, done: int, finished: Sequence[Finished], parts: Callable[[], Parts]) -> None:
        for one in finished:
            if not one.can_be_repeated:
                raise UnsavableError(f"pass {one.name} cannot be repeated")
        if self.folder.is_symlink():
            raise UnsavableError(f"{self.folder} is a link")
        if os.path.lexists(self.folder) and not _is_own(self.folder, SUFFIX):
            raise UnsavableError(f"{self.folder} was made by something else")
        packed = Packed.of({"done": done, "run": self._identity, **parts(), "generators": generator_states()})
        free = shutil.disk_usage(self._out.parent if self._out.parent.is_dir() else "/").free
        if free < ROOM * packed.size:
            raise UnsavableError(f"needs {ROOM * packed.size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        with atomic_directory(self.folder, force=True, keep=False) as folder:
            write_stage(folder, packed)
        if not done < _place(self._halfway) <= len(self._pipeline):  # a later pass will go on from what it kept
            _remove(self._halfway, HALFWAY_SUFFIX)
        self.done, self._since = done, time.monotonic()

    def halfway(self, place: int) -> Halfway:
        """Where a pass may keep how far it got; ``place``: its number, from 1."""
        return Halfway(
            folder=self._halfway,
            run=self._identity,
            place=place,
            go_on=self._asked,
            differs=lambda run: changes(run, self._identity),
            tell=self._progress,
            every=EVERY,
        )

    def clear(self) -> None:
        """Remove the stage; to be called when OUT has been written. What a user has in these places stays."""
        _remove(self.folder, SUFFIX)
        _remove(self._halfway, HALFWAY_SUFFIX)


def _record(folder: Path, ending: str) -> dict[str, Any]:
    """What is in the file that says that a run of fxprune wrote a directory; empty where none did, and for a link."""
    name, entry, _ = _STAGE_FILES[ending]
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode) or not stat.S_ISREG((folder / name).lstat().st_mode):
            return {}
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get(entry), dict) else {}


def _is_own(folder: Path, ending: str) -> bool:
    """Whether a run of fxprune wrote a directory."""
    return bool(_record(folder, ending))


def _place(folder: Path) -> int:
    """The number of the pass that keeps in a directory how far it got; 0 where none does."""
    place = _record(folder, HALFWAY_SUFFIX).get("place")
    return place if type(place) is int else 0


def _remove(folder: Path, ending: str) -> None:
    """Remove what runs of fxprune wrote into a directory, and the directory if nothing else is in it."""
    if not _is_own(folder, ending):
        return
    first, _, names = _STAGE_FILES[ending]
    with contextlib.suppress(OSError):
        # The file that says whose it is goes last: where a run is killed here, the next one removes the rest.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == first):
            if names.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        folder.rmdir()


_RESUME_HINT = "repeat the interrupted command as it was, or leave out --resume to start again"

_MISSHAPEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
"""What data of another form raises."""
