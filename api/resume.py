"""What the passes of a run have done, kept beside OUT, so that a run that broke off can go on from there.

A stage is the state of the pipeline between two passes. There is one at a time, in ``.OUT.stages``, which is replaced
in one step and goes when OUT has been written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.artifact import RECORD, atomic_directory, read_record, write_json
from ..backends.digests import sha256
from ..ir.errors import FxpruneError, RequestError
from ..passes.base import Pass
from ..passes.generate import Joined
from ..passes.pipeline import print_pipeline
from ..passes.state import KEPT, State
from ..tracer.fingerprints import Noted
from ..tracer.model import Source
from .given import Rows
from .progress import Progress

WORTH = 60.0
"""Seconds of work from which on a stage is kept without being asked for."""

ROOM = 3
"""A stage is kept where the disk has room for so many of it: what will be written needs some too."""

SUFFIX, STATE = ".stages", "stage.pt"

Parts = dict[str, Any]


class Stages:
    """Of one run.

    Args:
        out: where the run writes to.
        pipeline: what it runs.
        identity: everything else that its result depends on, as JSON data.
        asked: whether it is to go on from what is kept, and to keep whatever it does.
        progress: told what is kept and what is not.

    Raises:
        RequestError: it is to go on, and what is kept is of another run, another user, or damaged.
    """

    def __init__(
        self, out: Path, pipeline: Sequence[Pass], identity: Mapping[str, Any], *, asked: bool, progress: Progress
    ) -> None:
        self._out = out.resolve()
        self.folder = self._out.parent / f".{self._out.name}{SUFFIX}"
        self._pipeline = [print_pipeline([step], defaults=True) for step in pipeline]
        self._identity = {"pipeline": ",".join(self._pipeline), **identity}
        self._asked, self._progress = asked, progress
        self._since = time.monotonic()
        self.done = self._found()

    def _found(self) -> int:
        """How many passes need not run again."""
        if not self.folder.is_dir():
            if self._asked:
                self._progress(f"nothing to resume beside {self._out}: from the beginning")
            return 0
        if not self._asked:
            self._progress(f"{self._out} was begun before; --resume would go on from there")
            return 0
        record = read_record(self.folder)
        kept = record.get("run") or {}
        odd = [name for name in sorted({**kept, **self._identity}) if kept.get(name) != self._identity.get(name)]
        if odd:
            told = f"{odd[0]} {kept.get(odd[0])}, not {self._identity.get(odd[0])}"
            raise RequestError(f"what is kept of a run for {self._out} is of another one: {told}", _HINT)
        # It is a pickle, which can hold any code: only what this user wrote is read.
        if hasattr(os, "geteuid") and any(
            path.stat().st_uid != os.geteuid() for path in (self.folder, self.folder / STATE)
        ):
            raise RequestError(f"{self.folder} belongs to another user", f"remove it, {_HINT}")
        done: int = record["done"]
        return done

    def read(self) -> Parts:
        """What :meth:`keep` kept, with random numbers going on as they would have."""
        self._progress(f"resuming after {self._pipeline[self.done - 1]} ({self.done} of {len(self._pipeline)})")
        try:
            parts: Parts = torch.load(self.folder / STATE, weights_only=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
            raise RequestError(f"{self.folder} is damaged: {error}", _HINT) from error
        random.setstate(parts["random"])
        np.random.set_state(parts["numpy"])
        torch.set_rng_state(parts["torch"])
        return parts

    def keep(self, done: int, parts: Callable[[], Parts]) -> None:
        """Keep what the first ``done`` passes did, when it is worth it; a run never fails for that."""
        if done <= self.done or (not self._asked and time.monotonic() - self._since < WORTH):
            return
        held = parts()
        size, free = _size(held), shutil.disk_usage(self._out.parent if self._out.parent.is_dir() else "/").free
        if free < ROOM * size:
            self._progress(f"not kept for --resume: {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
            return
        held |= {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
        try:
            with atomic_directory(self.folder, force=True) as folder:
                torch.save(held, folder / STATE)
                write_json(folder / RECORD, {"done": done, "run": self._identity})
        except (FxpruneError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
            self._progress(f"not kept for --resume: {error}")
            return
        self.done, self._since = done, time.monotonic()

    def clear(self) -> None:
        """Forget it all: OUT has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)


_HINT = "repeat the command that broke off, or run without --resume to begin anew"


def identity(source: Source, texts: Mapping[str, str | Rows | None], **options: Any) -> dict[str, Any]:
    """What a result depends on beside the pipeline. Files of the model count by size and time, those of a loaded model,
    which are written anew by every call, by their bytes; texts by their bytes.

    Args:
        source: the model.
        texts: part -> file or rows, where some were given.
        options: further ones; a function counts by its name.
    """
    files = sorted(path for path in source.directory.iterdir() if path.is_file())
    return {
        "source": {path.name: _stamp(path, source.loaded) for path in files},
        **{part: _text(spec) for part, spec in texts.items()},
        **{name: getattr(value, "__qualname__", value) for name, value in options.items()},
        "versions": {name: version(name) for name in ("fxprune", "torch", "transformers", "peft")},
    }


def state_parts(state: State) -> Parts:
    """What a state holds that a later run cannot make for itself."""
    return {part.name: getattr(state, part.name) for part in dataclasses.fields(state) if part.metadata[KEPT]}


def restore(state: State, parts: Parts) -> None:
    """Put back what :func:`state_parts` gave."""
    for name, part in parts.items():
        setattr(state, name, part)
    for first, windows in state.ledger.written:
        state.data.calibration = Joined(state.data.calibration, first, windows)


def pieces_of(texts: Mapping[str, Noted | None]) -> Parts:
    """What was read of every text."""
    return {part: text.pieces for part, text in texts.items() if text is not None}


def _stamp(path: Path, loaded: bool) -> list[Any]:
    return [path.stat().st_size, sha256(path) if loaded else path.stat().st_mtime_ns]


def _text(spec: str | Rows | None) -> str | None:
    if isinstance(spec, Rows):
        return hashlib.sha256(json.dumps(spec.rows).encode()).hexdigest()
    if spec is None or not Path(spec).is_file():
        return None if spec is None else str(spec)
    return hashlib.sha256(Path(spec).read_bytes()).hexdigest()


def _size(parts: Parts) -> int:
    """Bytes of the tensors of the models among them."""
    held = [value for part in parts["state"].values() for value in vars(part).values()]
    models = [value for value in held if isinstance(value, torch.nn.Module)]
    tensors = {id(t): t for model in models for t in model.state_dict(keep_vars=True).values() if not t.is_meta}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
