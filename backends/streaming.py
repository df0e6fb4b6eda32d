"""Weights larger than memory: some rows of a tensor at a time, from safetensors files to safetensors files."""

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

from ..ir.errors import FxpruneError
from ..ir.plan import Indices, Plan
from ..runtime.threads import one_thread
from .output import Output
from .stored import STORED_DTYPES, Bits, Checkpoint, Cutter, Stored, whole
from .verify import VerificationError

WEIGHTS = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


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
        return STORED_DTYPES[next(iter(self.stored.values())).dtype]

    def read(self, names: Iterable[str], plan: Plan | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of some tensors, cut by ``plan``, one at a time and in the order of the files.

        Args:
            names: first names, as in a plan.
            plan: what was removed so far.

        Yields:
            Tensors mapped into memory, or copies where some of them was removed.
        """
        chosen = sorted(set(names) & self.stored.keys(), key=lambda name: self._place[self.stored[name]])
        slices = plan.by_tensor() if plan is not None else {}
        for name in chosen:
            yield name, whole(self.stored[name], slices.get(name, {}))

    def size(self, model: PreTrainedModel) -> int:
        """Bytes of the model's tensors in the dtypes of the checkpoint."""
        tensors = model.state_dict(keep_vars=True)
        return sum(tensors[name].numel() * STORED_DTYPES[stored.dtype].itemsize for name, stored in self.stored.items())

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
            stored: prod(shapes[name]) * STORED_DTYPES[self.stored[name].dtype].itemsize
            for stored, name in by_stored.items()
        }
        if plain:
            sizes = dict(sorted(sizes.items(), key=lambda item: dot_natural_key(item[0])))
        split = split_state_dict_into_shards_factory(
            sizes, get_storage_size=lambda size: size, filename_pattern=WEIGHTS, max_shard_size=shard_size
        )
        files = {file: {key: by_stored[key] for key in keys} for file, keys in split.filename_to_tensors.items()}
        with one_thread() as threads, ThreadPoolExecutor(min(threads, len(files))) as pool:
            found = pool.map(lambda file: self._write_file(folder / file, files[file], shapes, plan), files)
            digests = dict(zip(files, found, strict=True))
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
        rank = list(STORED_DTYPES)
        order = sorted(names, key=lambda key: (rank.index(self.stored[names[key]].dtype), key))
        slices = plan.by_tensor()
        cutter = Cutter()
        header, size = self._header([(key, self.stored[names[key]].dtype, shapes[names[key]]) for key in order])
        with Output(path, len(header) + size) as file:
            file.write(np.frombuffer(header, np.uint8))
            for key in order:
                stored, cuts = self.stored[names[key]], slices.get(names[key], {})
                _check_shape(key, stored, cuts, shapes[names[key]])
                for rows in cutter.rows(stored, cuts):
                    _check_finite(key, rows, STORED_DTYPES[stored.dtype])
                    file.write(rows.reshape(-1).view(np.uint8))
        return file.sha256()

    def _header(self, entries: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, int]:
        """What comes before the data, and the bytes of that."""
        header: dict[str, object] = {"__metadata__": dict(sorted(self.metadata.items()))}
        end = 0
        for name, dtype, shape in entries:
            start, end = end, end + prod(shape) * STORED_DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text, end


def obstacle(checkpoint: Checkpoint, model: PreTrainedModel) -> str:
    """Why the tensors of a checkpoint are not, name by name, those of a model; "" when they are.

    transformers renames, splits and merges tensors of some architectures while it loads them; then the model must be
    loaded by it, as a whole.
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


def _check_shape(name: str, stored: Stored, slices: Mapping[int, Indices], shape: tuple[int, ...]) -> None:
    left = [len(slices[dim]) if dim in slices else extent for dim, extent in enumerate(stored.shape)]
    if left != list(shape):
        raise FxpruneError(
            f"the plan leaves {left} of '{name}', and the model needs {list(shape)}",
            "this is a fault of fxprune: please report the architecture",
        )


def _check_finite(name: str, bits: Bits, dtype: torch.dtype) -> None:
    """Of values as integers of their size: what is infinite or no number comes after all finite ones, signed if it is
    positive and unsigned if it is negative, so that two quick passes tell."""
    if not bits.size:
        return
    infinity = int(torch.tensor(float("inf"), dtype=dtype).view(_INTEGERS[dtype.itemsize]))
    unsigned = bits.view(f"u{dtype.itemsize}")
    if bits.max() >= infinity or unsigned.max() >= infinity + (1 << 8 * dtype.itemsize - 1):
        raise VerificationError(f"'{name}' holds values that are not finite", "repair or re-download the checkpoint")
