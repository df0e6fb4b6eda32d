"""``--resume``: after a pass its result is saved beside OUT, so that an interrupted run can continue from there.

A stage is the state of the pipeline between two passes. There is one at a time, in ``.OUT.stages``. It is replaced in
one step, and removed when OUT has been written.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...backends.artifact import RECORD, read_record, write_json
from ...backends.atomic_directory import atomic_directory
from ...ir.errors import FxpruneError, RequestError
from ...passes.base import Pass
from ...passes.calibrate.generate import Joined
from ...passes.pipeline import print_pipeline
from ...passes.state import KEPT_ON_RESUME, State
from ...tracer.texts.fingerprints import TrackedText
from ..progress import Progress
from .run_identity import changes

WORTH = 60.0
"""A stage is saved without ``--resume`` once this many seconds of work would be lost."""

ROOM = 3
"""A stage is saved only where the disk has room for this many copies of it, since OUT needs room too."""

SUFFIX, STATE = ".stages", "stage.pt"

Parts = dict[str, Any]


class Stages:
    """The saved stage of one run.

    Args:
        out: the directory that the run writes.
        pipeline: the passes that it runs.
        identity: what its result depends on, see :func:`~fxprune.api.pruning.run_identity.identity`.
        asked: whether ``--resume`` was given: continue from the saved stage, and save a stage after every pass.
        progress: told what is saved and what is not.

    Raises:
        RequestError: with ``asked``, when the saved stage is of a different run, of another user, or damaged.
    """

    def __init__(
        self, out: Path, pipeline: Sequence[Pass], identity: Mapping[str, Any], *, asked: bool, progress: Progress
    ) -> None:
        self._out = out.resolve()
        self.folder = self._out.parent / f".{self._out.name}{SUFFIX}"
        self._pipeline = [print_pipeline([step], defaults=True) for step in pipeline]
        self._identity = dict(identity)
        self._asked, self._progress = asked, progress
        self._since = time.monotonic()
        self.done = self._found()

    def _found(self) -> int:
        """How many passes the saved stage covers."""
        if not self.folder.is_dir():
            if self._asked:
                self._progress(f"no interrupted run of {self._out} found; starting from the beginning")
            return 0
        if not self._asked:
            self._progress(f"an interrupted run of {self._out} exists; --resume would continue it")
            return 0
        record = read_record(self.folder)
        if changed := changes(record.get("run") or {}, self._identity):
            raise RequestError(f"cannot resume {self._out}: {changed}", _RESUME_HINT)
        # It is a pickle, which can hold any code: only what this user wrote is read.
        if hasattr(os, "geteuid") and any(
            path.stat().st_uid != os.geteuid() for path in (self.folder, self.folder / STATE)
        ):
            raise RequestError(f"{self.folder} belongs to another user", f"remove it, or {_RESUME_HINT}")
        done: int = record["done"]
        return done

    def read(self) -> Parts:
        """What :meth:`keep` saved. Also restores the random number generators."""
        self._progress(f"resuming after {self._pipeline[self.done - 1]} ({self.done} of {len(self._pipeline)})")
        try:
            parts: Parts = torch.load(self.folder / STATE, weights_only=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
            raise RequestError(f"{self.folder} is damaged: {error}", _RESUME_HINT) from error
        random.setstate(parts["random"])
        np.random.set_state(parts["numpy"])
        torch.set_rng_state(parts["torch"])
        return parts

    def keep(self, done: int, parts: Callable[[], Parts]) -> None:
        """Save the state after the first ``done`` passes, if it is worth it. If that fails, the run continues."""
        if done <= self.done or (not self._asked and time.monotonic() - self._since < WORTH):
            return
        held = parts()
        size, free = _size(held), shutil.disk_usage(self._out.parent if self._out.parent.is_dir() else "/").free
        if free < ROOM * size:
            self._progress(f"not saved for --resume: needs {ROOM * size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            return
        held |= {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        try:
            with atomic_directory(self.folder, force=True) as folder:
                torch.save(held, folder / STATE)
                write_json(folder / RECORD, {"done": done, "run": self._identity})
        except (FxpruneError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            self._progress(f"not saved for --resume: {error}")
            return
        self.done, self._since = done, time.monotonic()

    def clear(self) -> None:
        """Remove the stage; to be called when OUT has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)


_RESUME_HINT = "repeat the interrupted command as it was, or leave out --resume to start again"


def state_parts(state: State) -> Parts:
    """The parts of a state that a stage must hold; see :data:`~fxprune.passes.state.KEPT_ON_RESUME` for the others."""
    return {part.name: getattr(state, part.name) for part in dataclasses.fields(state) if part.metadata[KEPT_ON_RESUME]}


def restore(state: State, parts: Parts) -> None:
    """Put back what :func:`state_parts` gave."""
    for name, part in parts.items():
        setattr(state, name, part)
    for first, windows in state.ledger.written:
        state.data.calibration = Joined(state.data.calibration, first, windows)


def pieces_of(texts: Mapping[str, TrackedText | None]) -> Parts:
    """For every text, the pieces of it that were read."""
    return {part: text.pieces for part, text in texts.items() if text is not None}


def _size(parts: Parts) -> int:
    """Bytes of the tensors of all models in a state."""
    held = [value for part in parts["state"].values() for value in vars(part).values()]
    models = [value for value in held if isinstance(value, torch.nn.Module)]
    tensors = {id(t): t for model in models for t in model.state_dict(keep_vars=True).values() if not t.is_meta}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
