"""On-disk weights: read tensors from safetensors files and write the smaller ones, some rows at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key

from ...ir.errors import FxpruneError
from ...runtime.streaming.mapped_files import PIECE, STORED_DTYPES, Bits, Checkpoint, RowCutter, StoredTensor
from ...runtime.streaming.store import Store
from ...runtime.threads import one_thread
from ..verify import VerificationError
from .direct_file import DirectFile

SHARD_NAME = "model{suffix}.safetensors"
SHARD_INDEX = "model.safetensors.index.json"

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class StreamedWeights:
    """The tensors of a model whose weights stay on disk, read when they are needed.

    Attributes:
        store: the values, by the first name that a tensor has in the model.
        metadata: of the source's files.
    """

    def __init__(self, store: Store, metadata: Mapping[str, str]) -> None:
        self.store = store
        self.metadata = {"format": "pt", **metadata}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first tensor, which becomes the dtype in the configuration."""
        return STORED_DTYPES[next(iter(self.store.source.values())).dtype]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Read some tensors as they are now, one at a time, in the order of the files.

        Args:
            names: of a tied tensor its first name.

        Yields:
            Name and tensor, which must not be changed.
        """
        source = self.store.source
        for name in sorted(set(names) & source.keys(), key=lambda name: (source[name].file, source[name].start)):
            yield name, self.store.read(name)

    def size(self, model: PreTrainedModel) -> int:
        """Size in bytes of the tensors of the model, in the dtypes of the checkpoint."""
        tensors = model.state_dict(keep_vars=True)
        return sum(
            tensors[name].numel() * STORED_DTYPES[stored.dtype].itemsize for name, stored in self.store.source.items()
        )

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: int | str) -> dict[str, str]:
        """Write the smaller tensors, and an index when they need several files.

        The layout is that of ``save_pretrained``: the same model gives the same bytes.

        Args:
            model: the model, shrunk as the store is.
            folder: the directory for the files.
            plain: whether tensors are distributed to files in the order of ``save_original_format``, or of the module.
            shard_size: the largest size of a file in bytes, or text such as ``5GB``.

        Returns:
            File name -> sha256, for all weight files.

        Raises:
            VerificationError: a tensor has a value that is not finite.
            FxpruneError: a tensor does not have the shape that it has in the model.
            OSError: a file cannot be written.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
        source = self.store.source
        by_written = {_written_name(model, stored): name for name, stored in source.items()}
        sizes = {
            written: prod(shapes[name]) * STORED_DTYPES[source[name].dtype].itemsize
            for written, name in by_written.items()
        }
        if plain:
            sizes = dict(sorted(sizes.items(), key=lambda item: dot_natural_key(item[0])))
        split = split_state_dict_into_shards_factory(
            sizes, get_storage_size=lambda size: size, filename_pattern=SHARD_NAME, max_shard_size=shard_size
        )
        files = {file: {key: by_written[key] for key in keys} for file, keys in split.filename_to_tensors.items()}
        with one_thread() as threads, ThreadPoolExecutor(min(threads, len(files))) as pool:
            found = pool.map(lambda file: self._write_file(folder / file, files[file], shapes), files)
            digests = dict(zip(files, found, strict=True))
        if split.is_sharded:
            metadata = {"total_parameters": model.num_parameters(), **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / SHARD_INDEX).write_text(text, encoding="utf-8")
        return digests

    def _write_file(self, path: Path, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Write one safetensors file: the length of its JSON header, the header, and the data in the same order."""
        rank, source = list(STORED_DTYPES), self.store.source
        order = sorted(names, key=lambda key: (rank.index(source[names[key]].dtype), key))
        header, size = self._header([(key, source[names[key]].dtype, shapes[names[key]]) for key in order])
        with DirectFile(path, len(header) + size) as file:
            file.write(np.frombuffer(header, np.uint8))
            for key in order:
                dtype = STORED_DTYPES[source[names[key]].dtype]
                for rows in self._rows(key, names[key], shapes[names[key]]):
                    _check_finite(key, rows, dtype)
                    file.write(rows.reshape(-1).view(np.uint8))
        return file.sha256()

    def _rows(self, key: str, name: str, shape: tuple[int, ...]) -> Iterator[Bits]:
        """A tensor in pieces, as integers of the element size that it is stored with."""
        stored = self.store.source[name]
        if name not in self.store.written:
            cuts = self.store.cuts.get(name, {})
            _check_shape(key, [len(cuts[d]) if d in cuts else extent for d, extent in enumerate(stored.shape)], shape)
            yield from RowCutter().rows(stored, cuts)
            return
        written = self.store.read(name)
        _check_shape(key, list(written.shape), shape)
        dtype = STORED_DTYPES[stored.dtype]
        rows = written if written.dim() else written.reshape(1)
        step = max(1, PIECE // max(1, rows[:1].numel() * dtype.itemsize))
        for piece in rows.split(step):
            yield piece.to(dtype).contiguous().view(_INTEGERS[dtype.itemsize]).numpy()

    def _header(self, entries: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, int]:
        """The bytes before the data, and the size of the data in bytes."""
        header: dict[str, object] = {"__metadata__": dict(sorted(self.metadata.items()))}
        end = 0
        for name, dtype, shape in entries:
            start, end = end, end + prod(shape) * STORED_DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text, end


def stored_tensors(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, StoredTensor]:
    """First name in the model -> its tensor in the files, where :func:`obstacle` has found nothing."""
    first: dict[int, str] = {}
    found: dict[str, StoredTensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = first.setdefault(id(tensor), name)
        if name in checkpoint.tensors:
            found[key] = checkpoint.tensors[name]
    return found


def obstacle(checkpoint: Checkpoint, model: PreTrainedModel) -> str:
    """Why a checkpoint and a model do not have the same tensors with the same names; "" when they do.

    For some architectures, transformers renames, splits or merges tensors when it loads them. Then the model must be
    loaded with transformers, into memory.
    """
    odd = sorted(checkpoint.dtypes - STORED_DTYPES.keys())
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


def _written_name(model: PreTrainedModel, stored: StoredTensor) -> str:
    """The name under which a tensor is written: of a tied one that which transformers keeps, whichever was stored."""
    kept: str = model.all_tied_weights_keys.get(stored.name, stored.name)
    tensors = model.state_dict(keep_vars=True)
    return kept if tensors.get(kept) is tensors[stored.name] else stored.name


def _check_shape(name: str, found: list[int], shape: tuple[int, ...]) -> None:
    if found != list(shape):
        raise FxpruneError(
            f"'{name}' would be written with the shape {found}, but the model needs {list(shape)}",
            "this is a bug in fxprune; please report it with the architecture",
        )


def _check_finite(name: str, bits: Bits, dtype: torch.dtype) -> None:
    """Check values that are given as integers of the same size. Infinity and NaN are greater than all finite values: as
    signed integers if positive, as unsigned integers if negative. So two fast passes are enough."""
    if not bits.size:
        return
    infinity = int(torch.tensor(float("inf"), dtype=dtype).view(_INTEGERS[dtype.itemsize]))
    unsigned = bits.view(f"u{dtype.itemsize}")
    if bits.max() >= infinity or unsigned.max() >= infinity + (1 << 8 * dtype.itemsize - 1):
        raise VerificationError(f"'{name}' holds values that are not finite", "repair or download the checkpoint again")
