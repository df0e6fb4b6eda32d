"""A GGUF file as data: what is to be written, writing it, and what a reader must find in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ...ir.errors import FxpruneError
from ...runtime.reporting import counted

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""``dtype`` -> the type's name in the package gguf."""

BYTES_PER_WEIGHT = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "q8_0": 34 / 32}

ALWAYS_FLOAT32 = ("position_embd.weight", "token_types.weight", "rope_freqs.weight")
"""Besides vectors, which llama.cpp adds and multiplies with in float32."""

LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        name: of the architecture in llama.cpp.
        metadata: key -> value, in the order of the file. An ``int`` is written as uint32.
        tensors: name -> float32 tensor.
    """

    name: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @property
    def weights(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Entry:
    """A tensor in the file.

    Attributes:
        shape: as torch has it.
        type: name of its type.
        digest: sha256 of its bytes.
    """

    shape: tuple[int, ...]
    type: str
    digest: str


def write_contents(path: Path, contents: Contents, dtype: str, gguf: ModuleType) -> dict[str, Entry]:
    """Write a file, one tensor at a time.

    Args:
        path: the file to make.
        contents: what it holds.
        dtype: of matrices, a key of :data:`TYPES`. One whose rows are no multiple of the block of a rounded type is
            stored in float16.
        gguf: the package.

    Returns:
        Name -> what a reader must find.

    Raises:
        FxpruneError: a value is not finite, or too large for float16.
        OSError: it cannot be written.
    """
    writer = gguf.GGUFWriter(path, contents.name)
    for key, value in contents.metadata.items():
        _add(writer, key, value)
    types = {name: _stored_type(name, tensor, dtype, gguf) for name, tensor in contents.tensors.items()}
    for name, tensor in contents.tensors.items():
        stored = gguf.quants.quant_shape_to_byte_shape(tuple(tensor.shape), types[name])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=types[name])
    entries: dict[str, Entry] = {}
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in counted(contents.tensors.items(), "tensors"):
            data = _converted(name, tensor, types[name], gguf)
            writer.write_tensor_data(data)
            entries[name] = Entry(tuple(tensor.shape), types[name].name, hashlib.sha256(data.data).hexdigest())
    finally:
        writer.close()
    return entries


def _add(writer: Any, key: str, value: Any) -> None:
    """Write a value with the type that llama.cpp reads: whole numbers without a sign, and lists of them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bytes):
        writer.add_array(key, value)
    else:
        writer.add_array(key, list(value))


def _stored_type(name: str, tensor: torch.Tensor, dtype: str, gguf: ModuleType) -> Any:
    types = gguf.GGMLQuantizationType
    if tensor.dim() <= 1 or name in ALWAYS_FLOAT32:
        return types.F32
    wanted = types[TYPES[dtype]]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return types.F16 if tensor.shape[-1] % block else wanted


def _converted(name: str, tensor: torch.Tensor, stored: Any, gguf: ModuleType) -> np.ndarray[Any, Any]:
    array = np.ascontiguousarray(tensor.float().numpy())
    if not np.isfinite(array).all():
        raise FxpruneError(f"{name} holds values that are not finite", "check the source for NaN")
    if stored.name == "F16" and (worst := float(np.abs(array).max(initial=0))) > LARGEST_FLOAT16:
        raise FxpruneError(f"{name} holds {worst:.6g}, which float16 cannot", "export with dtype=bfloat16")
    data: np.ndarray[Any, Any] = np.ascontiguousarray(gguf.quants.quantize(array, stored))
    return data
