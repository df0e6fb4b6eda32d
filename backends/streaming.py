"""Weights larger than memory: some rows of a tensor at a time, from safetensors files to safetensors files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from ..ir.errors import FxpruneError
from ..ir.plan import Indices, Plan
from .verify import VerificationError

WEIGHTS = "model{suffix}.safetensors"
PIECE = 1 << 20
INDEX = "model.safetensors.index.json"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""In the order in which safetensors lays them out, which aligns every tensor to its own element size."""

_BITS: dict[int, type[np.signedinteger[Any]]] = {8: np.int64, 4: np.int32, 2: np.int16}

Bits = npt.NDArray[np.signedinteger[Any]]


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...


@dataclass(frozen=True)
class Stored:
    """Where a tensor is and what it looks like.

    Attributes:
        file: the safetensors file.
        name: in that file.
        dtype: as safetensors calls it.
        shape: of the tensor.
        start: where its data begins in the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


class Checkpoint:
    """The safetensors files of a model, which are known to be whole; their headers are read, their data is not.

    Attributes:
        tensors: name -> where it is, in the order of the files.
        metadata: of all files together.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.tensors: dict[str, Stored] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length))
            self.metadata.update(header.pop("__metadata__", None) or {})
            for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
                start = 8 + length + entry["data_offsets"][0]
                self.tensors[name] = Stored(file, name, entry["dtype"], tuple(entry["shape"]), start)

    @property
    def dtypes(self) -> set[str]:
        """Of all tensors, as safetensors calls them."""
        return {stored.dtype for stored in self.tensors.values()}


class StreamedWeights:
    """The tensors of a model whose module holds none, read from its checkpoint when they are needed.

    Args:
        checkpoint: the source.
        model: parameters on the meta device; :func:`obstacle` has found nothing in the way.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel) -> None:
        self.metadata = {"format": "pt", **checkpoint.metadata}
        first: dict[int, str] = {}
        self.stored: dict[str, Stored] = {}
        self._place = {stored: number for number, stored in enumerate(checkpoint.tensors.values())}
        for name, tensor in model.state_dict(keep_vars=True).items():
            key = first.setdefault(id(tensor), name)
            if name in checkpoint.tensors:
                self.stored[key] = checkpoint.tensors[name]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first tensor; what the configuration calls the model's."""
        return DTYPES[next(iter(self.stored.values())).dtype]

    def read(self, names: Iterable[str], plan: Plan | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of some tensors, cut by ``plan``, one at a time and in the order of the files.

        Args:
            names: first names, as in a plan.
            plan: what was removed so far.

        Yields:
            Tensors in memory that is used again: each is good until the next is asked for.
        """
        chosen = sorted(set(names) & self.stored.keys(), key=lambda name: self._place[self.stored[name]])
        slices = _slices(plan)
        memory = _Memory(max((self.stored[name].size for name in chosen), default=0))
        for name in chosen:
            stored = self.stored[name]
            yield name, torch.from_numpy(memory.whole(stored, slices.get(name, {}))).view(DTYPES[stored.dtype])

    def size(self, model: PreTrainedModel) -> int:
        """Bytes of the model's tensors in the dtypes of the checkpoint."""
        tensors = model.state_dict(keep_vars=True)
        return sum(tensors[name].numel() * DTYPES[stored.dtype].itemsize for name, stored in self.stored.items())

    def write(
        self, model: PreTrainedModel, plan: Plan, folder: Path, *, plain: bool, shard_size: int | str
    ) -> dict[str, str]:
        """Write the smaller tensors, and an index when they need several files.

        Laid out as ``save_pretrained`` does: the same model gives the same bytes.

        Args:
            model: shrunk by ``plan``.
            plan: what was removed.
            folder: where the files go.
            plain: whether the files are filled in the order of ``save_original_format``, or in that of the module.
            shard_size: the most bytes in a file, or text such as ``5GB``.

        Returns:
            File name -> sha256 of the files of tensors.

        Raises:
            VerificationError: for a tensor whose values are not all finite.
            FxpruneError: for a tensor that the plan does not cut to its shape in the model.
            OSError: when a file cannot be written.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        by_stored = {stored.name: name for name, stored in self.stored.items()}
        sizes = {
            stored: prod(shapes[name]) * DTYPES[self.stored[name].dtype].itemsize for stored, name in by_stored.items()
        }
        if plain:
            sizes = dict(sorted(sizes.items(), key=lambda item: dot_natural_key(item[0])))
        split = split_state_dict_into_shards_factory(
            sizes, get_storage_size=lambda size: size, filename_pattern=WEIGHTS, max_shard_size=shard_size
        )
        digests = {}
        for file, keys in split.filename_to_tensors.items():
            digests[file] = self._write_file(folder / file, {key: by_stored[key] for key in keys}, shapes, plan)
        if split.is_sharded:
            metadata = {"total_parameters": model.num_parameters(), **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / INDEX).write_text(text, encoding="utf-8")
        return digests

    def _write_file(
        self, path: Path, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], plan: Plan
    ) -> str:
        """One safetensors file: the length of a JSON header, the header, the data in the order of the header."""
        rank = list(DTYPES)
        order = sorted(names, key=lambda key: (rank.index(self.stored[names[key]].dtype), key))
        slices = _slices(plan)
        digest = hashlib.sha256()
        memory = _Memory(max((_most(self.stored[name]) for name in names.values()), default=0))
        with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as writer:
            header = self._header([(key, self.stored[names[key]].dtype, shapes[names[key]]) for key in order])
            written = writer.submit(_put, file, digest, memoryview(header))
            for key in order:
                stored, cuts = self.stored[names[key]], slices.get(names[key], {})
                _check_shape(key, stored, cuts, shapes[names[key]])
                for rows in memory.rows(stored, cuts):
                    _check_finite(key, torch.from_numpy(rows).view(DTYPES[stored.dtype]))
                    written.result()  # no more than one piece waits while the next is cut
                    written = writer.submit(_put, file, digest, rows.reshape(-1).view(np.uint8).data)
            written.result()
        return digest.hexdigest()

    def _header(self, entries: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
        header: dict[str, object] = {"__metadata__": dict(sorted(self.metadata.items()))}
        end = 0
        for name, dtype, shape in entries:
            start, end = end, end + prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class _Memory:
    """Part of a tensor and two slices of it, in memory that is used for all: fresh pages take longer to get than to
    fill.

    Args:
        size: bytes of the largest part.
    """

    def __init__(self, size: int) -> None:
        self._part, *self._cut = (np.empty(size, np.uint8) for _ in range(3))

    def whole(self, stored: Stored, slices: Mapping[int, Indices]) -> Bits:
        """What stays of a tensor, as integers of its element size; until the next but one is asked for."""
        with stored.file.open("rb", buffering=0) as file:
            file.seek(stored.start)
            return self._take(file, stored, stored.shape, slices)

    def rows(self, stored: Stored, slices: Mapping[int, Indices]) -> Iterator[Bits]:
        """The same, some rows at a time, so few that they stay in the processor's cache until they are written."""
        shape = stored.shape or (1,)
        size = stored.size // max(1, shape[0])
        step = max(1, PIECE // max(1, size))
        kept = slices.get(0)
        with stored.file.open("rb", buffering=0) as file:
            for start in range(0, shape[0], step):
                count = min(step, shape[0] - start)
                cuts = dict(slices)
                if kept is not None:
                    low, high = np.searchsorted(kept, (start, start + count))
                    if low == high:
                        continue
                    cuts[0] = kept[low:high] - start
                file.seek(stored.start + start * size)
                yield self._take(file, stored, (count, *shape[1:]), cuts)

    def _take(self, file: RawIOBase, stored: Stored, shape: tuple[int, ...], slices: Mapping[int, Indices]) -> Bits:
        """Read a part of this shape from where the file stands, and cut it."""
        bits = _BITS[DTYPES[stored.dtype].itemsize]
        cuts = sorted(slices.items())
        self._cut.reverse()
        memory = self._part if cuts else self._cut[0]  # what stays whole is read to where it stays
        rest = memory.data[: prod(shape) * np.dtype(bits).itemsize]
        while rest:
            count = file.readinto(rest)
            if not count:
                raise FxpruneError(f"{stored.file} ends within '{stored.name}'", "copy or download the model again")
            rest = rest[count:]
        tensor: Bits = memory[: prod(shape) * np.dtype(bits).itemsize].view(bits).reshape(shape)
        if not cuts:
            return tensor
        for dim, kept in cuts[:-1]:
            tensor = np.take(tensor, kept, axis=dim)
        dim, chosen = cuts[-1]
        left = (*tensor.shape[:dim], len(chosen), *tensor.shape[dim + 1 :])
        cut: Bits = self._cut[0][: prod(left) * tensor.itemsize].view(bits).reshape(left)
        # "clip" writes straight into its place; the plan's indices have been checked. numpy copies runs of elements
        # where torch's index_select goes column by column.
        np.take(tensor, chosen, axis=dim, out=cut, mode="clip")
        return cut


def _most(stored: Stored) -> int:
    """Bytes that :meth:`_Memory.rows` reads at once."""
    rows = stored.shape[0] if stored.shape else 1
    return min(stored.size, max(PIECE, stored.size // max(1, rows)))


def obstacle(checkpoint: Checkpoint, model: PreTrainedModel) -> str:
    """Why the tensors of a checkpoint are not, name by name, those of a model; "" when they are.

    transformers renames, splits and merges tensors of some architectures while it loads them; then the model must be
    loaded by it, as a whole.
    """
    odd = sorted(checkpoint.dtypes - DTYPES.keys())
    if odd:
        return f"it holds {odd[0]}"
    names: dict[int, list[str]] = {}
    expected = model.state_dict(keep_vars=True)
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    for group in names.values():
        held = [name for name in group if name in checkpoint.tensors]
        if len(held) != 1:
            return f"it holds {len(held)} tensors for {' = '.join(group)}"
        if checkpoint.tensors[held[0]].shape != tuple(expected[held[0]].shape):
            return f"{held[0]} has another shape than its config says"
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    for name in checkpoint.tensors.keys() - expected.keys():
        if not any(pattern.search(name) for pattern in ignored):
            return f"{name} is no tensor of the model"
    return ""


def _slices(plan: Plan | None) -> dict[str, dict[int, Indices]]:
    by_name: dict[str, dict[int, Indices]] = {}
    for (name, dim), kept in plan.slices.items() if plan is not None else ():
        by_name.setdefault(name, {})[dim] = kept
    return by_name


def _check_shape(name: str, stored: Stored, slices: Mapping[int, Indices], shape: tuple[int, ...]) -> None:
    left = [len(slices[dim]) if dim in slices else extent for dim, extent in enumerate(stored.shape)]
    if left != list(shape):
        raise FxpruneError(
            f"the plan leaves {left} of '{name}', and the model needs {list(shape)}",
            "this is a fault of fxprune: please report the architecture",
        )


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    # The extremes show a NaN and an infinity alike, in one pass and without a second tensor.
    if tensor.numel() and not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
        raise VerificationError(f"'{name}' holds values that are not finite", "repair or re-download the checkpoint")


def _put(file: RawIOBase, digest: _Digest, data: memoryview) -> None:
    # In pieces that stay in the cache between the two, and for which the system finds pages without a search.
    while data:
        written = file.write(data[:PIECE])
        digest.update(data[:written])
        data = data[written:]
