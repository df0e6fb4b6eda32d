"""The weights of a model by name: those of the source's files, cut, under those that passes wrote."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ...ir.errors import FxpruneError
from ...ir.plan import Indices, Plan
from ..place.memory import size_text
from .mapped_files import Checkpoint, StoredTensor, require_whole

Cuts = dict[int, Indices]

Scratch = Callable[[], Path]
"""Gives a directory to write into."""


Kept = Callable[..., torch.Tensor]
"""Reads a value that a pass wrote, on the CPU; ``writable=False`` as in :func:`~.mapped_files.require_whole`."""


class Shelf(Protocol):
    """Where tensors that a pass wrote are kept."""

    def put(self, name: str, value: torch.Tensor) -> Kept:
        """Keep a value; returns what reads it, on the CPU."""


class InMemory:
    """In the host's memory."""

    def put(self, name: str, value: torch.Tensor) -> Kept:
        """A copy on the CPU."""
        del name
        copy = value.detach().to("cpu", copy=True)

        def read(*, writable: bool = True) -> torch.Tensor:
            del writable
            return copy

        return read


class OnDisk:
    """In safetensors files of a directory, one for each value.

    Args:
        scratch: gives an empty directory of fxprune's own, when there is something to write.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch, self._number = scratch, itertools.count()

    def put(self, name: str, value: torch.Tensor) -> Kept:
        """What maps the value; its file is removed when nothing uses it any more.

        Raises:
            FxpruneError: the disk is full, or the file cannot be written.
        """
        path = write_tensor(self._scratch() / f"{next(self._number):06}.safetensors", name, value)
        stored = Checkpoint([path], keep_open=False).tensors[name]

        def read(*, writable: bool = True) -> torch.Tensor:
            return require_whole(stored, {}, writable=writable)

        weakref.finalize(read, path.unlink, missing_ok=True)
        return read


def write_tensor(path: Path, name: str, value: torch.Tensor) -> Path:
    """Write one tensor to a file of its own; returns its path.

    Raises:
        FxpruneError: the disk is full, or the file cannot be written.
    """
    return write_tensors(path, {name: value}, "make room on this disk, or use --offload memory")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], hint: str) -> Path:
    """Write a file of tensors; returns its path. ``hint``: what to do where the disk has no room.

    Raises:
        FxpruneError: the disk is full, or the file cannot be written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # by version, safetensors raises one or the other
        path.unlink(missing_ok=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise FxpruneError(
            f"{path.parent} cannot take {', '.join(list(tensors)[:3])} ({size_text(size)}): {error}", hint
        ) from error
    return path


class Store:
    """Name -> tensor, in the dtype of the file or of what was written.

    Args:
        stored: the tensors of the source, by the first name that they have in the model.
        shelf: where written values are kept.
        resident: whether the source's values are read into memory once and stay there.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], shelf: Shelf, *, resident: bool = False) -> None:
        self.shelf = shelf
        self.source = dict(stored)
        self.written: dict[str, Kept] = {}
        self.cuts: dict[str, Cuts] = {}
        self._resident: dict[StoredTensor, torch.Tensor] = {}
        self._keeps = resident

    def __contains__(self, name: str) -> bool:
        return name in self.source or name in self.written

    def snapshot(self) -> Store:
        """The weights as they are now; what is done to this store later does not change it. Values are shared."""
        twin = Store(self.source, self.shelf, resident=self._keeps)
        twin.written, twin.cuts, twin._resident = dict(self.written), dict(self.cuts), self._resident
        return twin

    def read(self, name: str) -> torch.Tensor:
        """A value on the CPU: mapped, or a copy where a part was removed. It must not be changed.

        Raises:
            KeyError: for a name that the model does not have.
            FxpruneError: the file ends before the tensor does.
        """
        if name in self.written:
            return self.written[name]()
        stored = self.source[name]
        if not self._keeps:
            return require_whole(stored, self.cuts.get(name, {}))
        if stored not in self._resident:
            self._resident[stored] = require_whole(stored, {}).clone()
        value = self._resident[stored]
        for dim, kept in sorted(self.cuts.get(name, {}).items()):
            value = value.index_select(dim, torch.from_numpy(np.ascontiguousarray(kept)))
        return value

    def announce(self, names: Iterable[str]) -> None:
        """Say what will be read soon, so that the system can fetch it from the source's files meanwhile."""
        if not self._keeps:
            for name in names:
                if name in self.source and name not in self.written:
                    self.source[name].announce()

    def identity(self, name: str) -> Kept | StoredTensor | None:
        """Equal for values of this store and of its snapshots that are the same; None where that is not known."""
        return self.written.get(name) or (None if self.cuts.get(name) else self.source.get(name))

    def write(self, name: str, value: torch.Tensor) -> None:
        """Replace a value."""
        self.written[name] = self.shelf.put(name, value)

    def cut(self, plan: Plan) -> None:
        """Take from every tensor what the plan removes; its indices are those of the present tensors."""
        for name, slices in plan.by_tensor().items():
            if name in self.written:
                value = self.written[name]()
                for dim, kept in slices.items():
                    value = value.index_select(dim, torch.from_numpy(np.ascontiguousarray(kept)))
                self.write(name, value)
            elif name in self.source:
                known = self.cuts.get(name, {})
                self.cuts[name] = {**known, **{d: known[d][k] if d in known else k for d, k in slices.items()}}

    def rename(self, names: Mapping[str, str]) -> None:
        """Keep some tensors under other names: name -> name before. The rest is gone."""
        now_called = {before: now for now, before in names.items()}
        self.source = {
            now: replace(stored, name=now_called.get(stored.name, stored.name))
            for now, before in names.items()
            if (stored := self.source.get(before)) is not None
        }
        self.written = {now: self.written[before] for now, before in names.items() if before in self.written}
        self.cuts = {now: self.cuts[before] for now, before in names.items() if before in self.cuts}

    def size(self, names: Iterable[str]) -> int:
        """Elements of these tensors of the source, before anything was removed."""
        return sum(int(np.prod(self.source[name].shape)) for name in names if name in self.source)
