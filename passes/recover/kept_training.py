"""The state of a training that is not finished, in files from which it goes on to the same bytes.

A safetensors file holds tensors: what is trained, the optimizer's moments, generators. ``training.json`` holds the
rest and names that file. It is replaced in one step after the file has been written, so there is always a whole state.
Of several processes rank 0 writes and reads it; only generators differ between ranks, so it holds those of all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...ir.errors import RequestError
from ...runtime.generators import generator_states, set_generator_states
from ...runtime.json_object import read_json_object
from ...runtime.ranks import ALONE, Ranks
from ..halfway import Halfway

STATE = "training.json"

STATE_FILES = re.compile(re.escape(STATE) + r"(\.new)?|[0-9]{8,}\.safetensors")
"""The names of all files of a state."""

TRAINING_FORMAT = 4

TRAINING_ROOM = 3
"""A state is kept only where the disk has room for this many copies of it: the last one goes when the next is there."""

SHARE = 20
"""Keeping a state takes no more than one part of so many of the time."""

_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
"""What data of another form raises."""

_MODEL, _MOMENTS, _GENERATORS, _BEST = "model.", "optimizer.", "generator.", "best."
_OF_TORCH, _OF_DEVICE = "torch", "device."


@dataclass(frozen=True)
class TrainingState:
    """How far a training got.

    Attributes:
        step: optimizer steps that are done.
        losses, seconds: as in :class:`~.training.Training`, so far.
        trainer: the state of the transformers Trainer, from which it knows the place in the data.
        groups: options of the optimizer's parameter groups.
        schedule: the state of the learning rate's schedule.
        generators: the states of generators that are numbers, by rank.
        validation: losses on held-out examples, each after so many steps.
        rates: of ``lr=auto``, each rate that was tried, and its loss.
        tensors: what is trained, its best values so far by that loss, the optimizer's moments, and the states of
            generators that are tensors.
    """

    step: int
    losses: list[float]
    seconds: float
    trainer: dict[str, Any]
    groups: list[dict[str, Any]]
    schedule: dict[str, Any]
    generators: list[dict[str, Any]]
    validation: list[tuple[int, float]]
    rates: list[tuple[float, float]]
    tensors: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(
        cls, model: nn.Module, optimizer: Any, schedule: Any, *, trainer: dict[str, Any], losses: list[float],
        seconds: float, ranks: Ranks = ALONE, best: Mapping[str, Tensor] | None = None,
        validation: Sequence[tuple[int, float]] = (), rates: Mapping[float, float] | None = None,
    ) -> TrainingState:  # fmt: skip
        """The state after a step, on all ranks. Tensors are those that the training goes on to change.

        Args:
            best: the best values of what is trained, by name.
            validation: as the attribute.
            rates: the rates that were tried, and their losses.
        """
        moments = optimizer.state_dict()
        packed = [_packed(states, rank) for rank, states in enumerate(ranks.gather(generator_states()))]
        return cls(
            step=len(losses),
            losses=list(losses),
            seconds=seconds,
            trainer=trainer,
            groups=moments["param_groups"],
            schedule=schedule.state_dict(),
            generators=[numbers for numbers, _ in packed],
            validation=list(validation),
            rates=list((rates or {}).items()),
            tensors={f"{_BEST}{name}": value for name, value in (best or {}).items()}
            | {f"{_MODEL}{name}": parameter.detach() for name, parameter in trained_parameters(model)}
            | {
                f"{_MOMENTS}{number}.{name}": value
                for number, values in moments["state"].items()
                for name, value in values.items()
            }
            | {name: tensor for _, tensors in packed for name, tensor in tensors.items()},
        )

    def put_weights(self, model: nn.Module) -> None:
        """Give what is trained its values.

        Raises:
            ValueError: another number of tensors, or other shapes.
        """
        stored = self._part(_MODEL)
        trained = dict(trained_parameters(model))
        shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in part.items()} for part in (stored, trained)]
        if shapes[0] != shapes[1]:
            raise ValueError("what is trained has other names, shapes or dtypes")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])

    def best_weights(self) -> dict[str, Tensor]:
        """The best values of what is trained, by name; none where nothing was held out."""
        return self._part(_BEST)

    def put_moments(self, optimizer: Any, schedule: Any) -> None:
        """Restore the optimizer and the learning rate's schedule."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self._part(_MOMENTS).items():
            number, _, name = key.partition(".")
            state.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": self.groups})
        schedule.load_state_dict(self.schedule)

    def put_generators(self, rank: int = 0) -> None:
        """Restore the random number generators of the process of this rank."""
        set_generator_states(_unpacked(self.generators[rank], self._part(_generators_of(rank))))

    def _part(self, start: str) -> dict[str, Tensor]:
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}


class KeptTraining:
    """The state of one training in files.

    Args:
        halfway: where they are.
        text: the pass, with its options.
        ranks: the processes that train together.
    """

    def __init__(self, halfway: Halfway, text: str, ranks: Ranks = ALONE) -> None:
        self._halfway, self._text, self.ranks = halfway, text, ranks
        self._last, self._cost = time.monotonic(), 0.0

    def found(self) -> TrainingState | None:
        """The state from which to go on; None when there is none of this pass. The same on all ranks.

        Raises:
            RequestError: there is one of another run or of another number of processes, or one that is damaged.
        """
        state = self.ranks.by_first(self._read)
        if state is not None and len(state.generators) != self.ranks.count:
            raise RequestError(
                f"cannot go on inside {self._text.partition('{')[0]}: {len(state.generators)} processes trained then, "
                f"and {self.ranks.count} do now",
                _HINT,
            )
        return state

    def _read(self) -> TrainingState | None:
        file = self._halfway.folder / STATE
        if not self._halfway.go_on or not file.is_file():
            return None
        try:
            data = read_json_object(file, _HINT)
            if data.pop("format") != TRAINING_FORMAT:
                raise ValueError("it is of another version")
            if changed := self._halfway.differs(data.pop("run")):
                raise RequestError(f"cannot go on inside {self._text.partition('{')[0]}: {changed}", _HINT)
            if (data.pop("place"), data.pop("text")) != (self._halfway.place, self._text):
                return None  # of an earlier pass
            tensors = load_file(self._halfway.folder / str(data.pop("file")))
            return TrainingState(**data, tensors=tensors)
        except (OSError, SafetensorError, *_UNREADABLE) as error:
            raise RequestError(f"{self._halfway.folder} is damaged: {error!r}", _HINT) from error

    @property
    def due(self) -> bool:
        """Whether it is time to keep a state, by the clock of rank 0; asked by all ranks together."""
        return self.ranks.by_first(self._due)

    def _due(self) -> bool:
        return time.monotonic() - self._last >= max(self._halfway.every, SHARE * self._cost)

    def keep(self, state: TrainingState) -> None:
        """Put a state in the place of the one before. If that fails, training goes on without."""
        if not self.ranks.first:
            return
        started = time.monotonic()
        try:
            self._write(state)
        except (OSError, SafetensorError) as error:
            self._halfway.tell(f"step {state.step} is not saved for --resume: {error}")
        self._last = time.monotonic()
        self._cost = self._last - started

    def _write(self, state: TrainingState) -> None:
        folder = self._halfway.folder
        if folder.is_symlink():
            raise OSError(f"{folder} is a link")
        folder.mkdir(parents=True, exist_ok=True)
        if foreign := next((path.name for path in folder.iterdir() if not STATE_FILES.fullmatch(path.name)), None):
            raise OSError(f"{folder} holds {foreign}, which no run of fxprune wrote")
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values())
        free = shutil.disk_usage(folder).free
        if free < TRAINING_ROOM * size:
            raise OSError(f"it needs {TRAINING_ROOM * size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        name = f"{state.step:08}.safetensors"
        save_file({key: tensor.cpu().contiguous() for key, tensor in state.tensors.items()}, folder / name)
        about = {"format": TRAINING_FORMAT, "run": self._halfway.run, "place": self._halfway.place, "text": self._text}
        shallow = {key: value for key, value in vars(state).items() if key != "tensors"}
        new = folder / f"{STATE}.new"
        new.write_text(json.dumps({**about, "file": name, **shallow}), encoding="utf-8")
        os.replace(new, folder / STATE)
        for other in folder.glob("*.safetensors"):
            if other.name != name:
                other.unlink()


_HINT = "repeat the interrupted command as it was, or leave out --resume to start again"


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, by its name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _generators_of(rank: int) -> str:
    return f"{_GENERATORS}{rank}."


def _packed(states: Mapping[str, Any], rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The states of a rank's generators: those that are numbers as JSON data, and tensors."""
    numpy, start = states["numpy"], _generators_of(rank)
    numbers = {"key": numpy["state"]["key"].tolist(), "pos": int(numpy["state"]["pos"])}
    tensors = {f"{start}{_OF_TORCH}": states["torch"]}
    tensors |= {f"{start}{_OF_DEVICE}{key}": value for key, value in states["devices"].items()}
    return {"python": states["python"], "numpy": {**numpy, "state": numbers}}, tensors


def _unpacked(numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    numpy = numbers["numpy"]
    key = np.array(numpy["state"]["key"], dtype=np.uint32)
    devices = {name.removeprefix(_OF_DEVICE): value for name, value in tensors.items() if name.startswith(_OF_DEVICE)}
    return {
        "python": numbers["python"],
        "numpy": {**numpy, "state": {**numpy["state"], "key": key}},
        "torch": tensors[_OF_TORCH],
        "devices": devices,
    }
