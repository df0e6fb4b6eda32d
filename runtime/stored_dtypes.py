"""Weights whose numbers are no floating-point numbers: quantised, or converted to such without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..ir.errors import RequestError

FLOATS = {"F64", "F32", "BF16", "F16"}
"""The floating-point dtypes that are kept, with the names that safetensors uses."""

INTEGERS = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
"""What counters, positions and masks are stored as."""

QUANTISED_HINT = "prune the original weights and quantise the result"

_QUANTISED = re.compile(
    r"[._]?(qweight|qzeros|g_idx|scb|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\W.*|weight_format|"
    r"weight_packed|weight_shape|weight_scale|weight_scale_inv|weight_zero_point)$",
    re.IGNORECASE,
)
"""How GPTQ, AWQ, bitsandbytes, compressed-tensors and FP8 name what undoes a quantisation."""

_MAYBE_QUANTISED = re.compile(r"[._](input_scale|scale_inv|scales?|zeros|zero_point|codebooks?)$", re.IGNORECASE)
"""Further names, which other tensors may have too."""

_PACKED = {"I32", "I16", "I8", "U32", "U16", "U8"}


def check_dtypes(stored: Mapping[str, str], model: Any, name: str) -> None:
    """Check that a checkpoint holds floating-point numbers where the model does.

    Args:
        stored: name of each tensor -> its dtype, with the name that safetensors uses.
        model: the model, without values.
        name: of the model, for messages.

    Raises:
        RequestError: for a quantised checkpoint, or a tensor that would be converted; with the tensor and its dtype.
    """
    held = model.state_dict(keep_vars=True)
    odd = {tensor: dtype for tensor, dtype in sorted(stored.items()) if dtype not in FLOATS}
    scales = [tensor for tensor in stored if _QUANTISED.search(tensor)]
    if any(dtype in _PACKED or dtype not in INTEGERS for dtype in odd.values()):
        scales += [tensor for tensor in stored if _MAYBE_QUANTISED.search(tensor)]
    renamed = names_in_model(model, [*scales, *odd], held)
    scales = sorted(tensor for tensor in scales if renamed[tensor] not in held)
    if scales:
        raise RequestError(
            f"{name!r} is quantised, though its config.json does not say so: it holds {scales[0]!r}", QUANTISED_HINT
        )
    for tensor, dtype in odd.items():
        if dtype not in INTEGERS:
            raise RequestError(f"{name!r} holds {tensor!r} in {dtype}, which cannot be kept", QUANTISED_HINT)
        mine = held.get(renamed[tensor])
        if mine is not None and mine.is_floating_point():
            raise RequestError(
                f"{name!r} holds {tensor!r} in {dtype}, and the model computes with floating-point numbers there",
                f"store it as such numbers; where it is quantised, {QUANTISED_HINT}",
            )


def names_in_model(model: Any, names: Iterable[str], held: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name in the checkpoint -> name in the model, as transformers finds it when it loads the weights.

    Args:
        model: the model, with values or without.
        names: of tensors in the checkpoint.
        held: the tensors of the model.
    """
    if not names or not hasattr(model, "base_model_prefix"):
        return {name: name for name in names}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    found = get_model_conversion_mapping(model)
    renamings = [each for each in found if isinstance(each, WeightRenaming)]
    converters = [each for each in found if isinstance(each, WeightConverter)]
    prefix, tensors = model.base_model_prefix, dict(held)
    made = {name: rename_source_key(name, renamings, converters, prefix, tensors)[0] for name in names}
    return {name: after if after in held or name not in held else name for name, after in made.items()}
