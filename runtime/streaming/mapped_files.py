"""Tensors in safetensors files: map them into memory, and slice them by a plan, some rows at a time."""

from __future__ import annotations

import errno
import json
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...ir.errors import FxpruneError
from ...ir.plan import Indices
from ..place.memory import size_text

PIECE = 1 << 20
"""Bytes of a tensor that are sliced, checked, hashed and written together, while they are in the processor's cache."""

STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""In the order in which safetensors writes them, so that every tensor is aligned to its element size."""

_BITS: dict[int, type[np.signedinteger[Any]]] = {8: np.int64, 4: np.int32, 2: np.int16}

Bits = npt.NDArray[np.signedinteger[Any]]


class HeldFile:
    """A file that is open for reading, for as long as this object lives.

    Raises:
        FxpruneError: too many files are open.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise FxpruneError(
                f"{path} cannot be opened: too many files are open", "allow more, such as with `ulimit -n 1024`"
            ) from error
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        file: the safetensors file.
        name: its name in that file.
        dtype: its dtype, with the name that safetensors uses.
        shape: its shape.
        start: the position of its data in the file, in bytes.
        held: the file, where it stays open.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    held: HeldFile | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * STORED_DTYPES[self.dtype].itemsize

    def mapped(self, *, writable: bool = False) -> Bits:
        """The values as integers of the same element size, mapped into memory: the system reads only the parts that are
        used, and keeps them until the array is freed. The file is never changed.

        Args:
            writable: what is written stays in the array. All of it counts as memory of this process then, for limits
                of the system (``RLIMIT_DATA``, strict overcommit), whether it is written or not.
        """
        if not self.size:
            return np.empty(self.shape, self._bits)
        before = self.start % mmap.ALLOCATIONGRANULARITY
        try:
            held = self.held or HeldFile(self.file)
            access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
            memory = mmap.mmap(held.descriptor, before + self.size, access=access, offset=self.start - before)
        except ValueError:  # it would end after the end of the file
            raise FxpruneError(
                f"{self.file} is incomplete: it ends within '{self.name}'", "copy or download the model again"
            ) from None
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise FxpruneError(
                f"the system refuses to map '{self.name}' ({size_text(self.size)}) of {self.file}: {error.strerror}",
                "raise the limit of this process's memory (ulimit -d, ulimit -v), or allow more memory to be promised",
            ) from None
        values = np.frombuffer(memory, self._bits, prod(self.shape), before).reshape(self.shape)
        return values if values.flags.aligned else values.copy()

    def announce(self) -> None:
        """Let the system read the values into its file cache while something else is computed, where it can."""
        if self.held is not None and self.size and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.held.descriptor, self.start, self.size, os.POSIX_FADV_WILLNEED)

    @property
    def _bits(self) -> type[np.signedinteger[Any]]:
        return _BITS[STORED_DTYPES[self.dtype].itemsize]


class Checkpoint:
    """The safetensors files of a model. They must be complete. Only their headers are read.

    Args:
        files: the files.
        keep_open: whether they stay open: then values come from the file whose header was read, even when another file
            has taken its name since. Not for thousands of files.

    Attributes:
        tensors: name -> tensor, in the order of the files.
        metadata: the metadata of all files together.

    Raises:
        FxpruneError: too many files are open.
    """

    def __init__(self, files: Sequence[Path], *, keep_open: bool = True) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            held = HeldFile(file)
            with open(held.descriptor, "rb", closefd=False) as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
            keep = held if keep_open else None
            self.metadata.update(header.pop("__metadata__", None) or {})
            for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
                start = 8 + length + entry["data_offsets"][0]
                self.tensors[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), start, keep)

    @property
    def dtypes(self) -> set[str]:
        """The dtypes of all tensors, with the names that safetensors uses."""
        return {stored.dtype for stored in self.tensors.values()}


def require_whole(stored: StoredTensor, slices: Mapping[int, Indices], *, writable: bool = True) -> torch.Tensor:
    """The kept part of a tensor, in its own dtype; mapped into memory if all of it is kept.

    Args:
        stored: the tensor.
        slices: dimension -> indices that are kept.
        writable: see :meth:`StoredTensor.mapped`. To write into a tensor that is not would end the process.
    """
    values = stored.mapped(writable=writable and not slices)
    for dim, kept in sorted(slices.items()):
        values = np.take(values, kept, axis=dim)
    with warnings.catch_warnings():
        if not writable:
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values).view(STORED_DTYPES[stored.dtype])


class RowCutter:
    """Slices tensors, some rows at a time. Memory is reused, since to get new pages takes longer than to fill them."""

    def __init__(self) -> None:
        self._memory = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def rows(self, stored: StoredTensor, slices: Mapping[int, Indices]) -> Iterator[Bits]:
        """The kept part of a tensor in pieces of about :data:`PIECE` bytes, as integers of the same element size. A
        piece is valid until the second next piece is requested."""
        values = stored.mapped()
        values = np.atleast_1d(values)
        kept, others = slices.get(0), {dim: indices for dim, indices in slices.items() if dim}
        count = values.shape[0] if kept is None else len(kept)
        step = max(1, PIECE // max(1, values[:1].nbytes))
        for start in range(0, count, step):
            if kept is None:
                yield self._cut(values[start : start + step], others)
            else:
                yield self._cut(values, {0: kept[start : start + step], **others})

    def _cut(self, values: Bits, slices: Mapping[int, Indices]) -> Bits:
        cuts = sorted(slices.items())
        if not cuts:
            return values
        for dim, kept in cuts[:-1]:
            values = np.take(values, kept, axis=dim)
        dim, chosen = cuts[-1]
        shape = (*values.shape[:dim], len(chosen), *values.shape[dim + 1 :])
        size = prod(shape) * values.itemsize
        self._memory.reverse()
        if self._memory[0].size < size:
            self._memory[0] = np.empty(max(size, PIECE), np.uint8)
        cut: Bits = self._memory[0][:size].view(values.dtype).reshape(shape)
        # "clip" writes directly into ``out``; the indices of the plan have been checked before. numpy copies runs of
        # elements, while index_select of torch copies element by element.
        np.take(values, chosen, axis=dim, out=cut, mode="clip")
        return cut
