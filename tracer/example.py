"""Example inputs for transformers models that are not causal language models, and the outputs that count.

``calls.json`` holds what configurations do not say: the inputs of a modality, the configuration fields that give their
extents, and the outputs that are inner states.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..ir.errors import RequestError
from .calls import calls
from .export import Traced, free_primes, integers, trace_model
from .module import parse_example

_FIELD = re.compile(r"(?:(?P<times>\d+)\*)?(?P<name>[A-Za-z_]\w*)")
_SHAPE = re.compile(r"(?P<dtype>\w+)\[(?P<extents>[^\]]*)\]")
_FIRST_TOKEN = 3
"""In most vocabularies, smaller ids are special tokens, such as padding."""

NamedInputs = dict[str, torch.Tensor]


def example_inputs(model: Any, text: str | None = None) -> NamedInputs:
    """Example inputs of a transformers model: keyword arguments of its forward, on the CPU.

    Args:
        model: on any device; only its class, configuration and shapes are used.
        text: the inputs as the user gave them, such as ``pixel_values=float32[2,3,224,224]``. When None, they come from
            the configuration: the main input of the class, one for every modality, and the decoder's.

    Returns:
        Random token ids, masks of ones, normally distributed floating-point numbers; the same in every call.

    Raises:
        RequestError: ``text`` cannot be read, gives no names, or a name that the forward does not take; or an extent is
            neither in the configuration nor in ``calls.json``.
    """
    described = text if text is not None else ",".join(_described(model))
    found = parse_example(described)
    accepted = inspect.signature(model.forward).parameters
    if not isinstance(found, dict):
        first = getattr(model, "main_input_name", next(iter(accepted)))
        raise RequestError(
            f"--example {text!r} has no input name",
            f"use the argument names of {type(model).__name__}.forward: {first}={text}",
        )
    unknown = [name for name in found if name not in accepted]
    if unknown:
        raise RequestError(
            f"{type(model).__name__} takes no {unknown[0]!r}", f"use {', '.join(name for name in accepted)}"
        )
    return {name: _filled(name, tensor, model.config) for name, tensor in found.items()}


def trace_call(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Traced:
    """Trace a transformers model on example inputs.

    Inner states that it returns beside its results are not outputs of the graph, so that their widths can be pruned.

    Raises:
        FxpruneError: ``torch.export`` cannot trace it.
    """
    device = next(model.parameters()).device
    example: dict[str, Any] = {name: tensor.to(device) for name, tensor in inputs.items()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        example["use_cache"] = False
    return trace_model(model, example, beside=calls()["inner"])


def _described(model: Any) -> Iterator[str]:
    """The inputs of a forward, each as text."""
    data, config = calls(), model.config
    accepted = inspect.signature(model.forward).parameters
    names = list(_several(model.main_input_name))
    if getattr(config, "is_encoder_decoder", False):
        names.append("decoder_input_ids")
    elif len(modalities := _several(model.input_modalities)) > 1:
        names += [data["modalities"][modality] for modality in modalities if modality in data["modalities"]]
    known = {**data["inputs"], **data["inputs_of"].get(config.model_type, {})}
    extents = _Extents(model)
    for name in dict.fromkeys(name for name in names if name in accepted):
        spec = _SHAPE.fullmatch(known.get(name, ""))
        if spec is None:
            raise _unknown(model, name)
        shape = ",".join(str(extents(name, extent)) for extent in spec["extents"].split(","))
        yield f"{name}={spec['dtype']}[{shape}]"


def _several(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


class _Extents:
    """Converts extents from text: numbers, configuration fields, and numbers that are no dimension of the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        taken = {extent for p in model.parameters() for extent in p.shape} | set(integers(config.to_dict()))
        self.known = dict(zip(("samples", "length", "decoder_length"), free_primes(taken), strict=False))
        self.configs = list(_all_configs(config))
        self.asked: dict[str, int] = {}

    def __call__(self, name: str, text: str) -> int:
        """The extent of input ``name``: the first known one of the alternatives in ``text``, separated by bars."""
        for alternative in text.split("|"):
            if alternative.isdigit():
                return int(alternative)
            match = _FIELD.fullmatch(alternative)
            value = self._field(match["name"]) if match else None
            if value is not None and match is not None:
                return int(match["times"] or 1) * value
        raise _unknown(self.model, name)

    def _field(self, field: str) -> int | None:
        if field in self.known:
            return self.known[field]
        value = next((found for c in self.configs if (found := getattr(c, field, None)) is not None), None)
        if isinstance(value, list | tuple):  # height, then width
            self.asked[field] = self.asked.get(field, -1) + 1
            value = value[self.asked[field] % len(value)]
        return value if isinstance(value, int) else None


def _unknown(model: Any, name: str) -> RequestError:
    return RequestError(
        f"the shape of input {name!r} of {type(model).__name__} is not known",
        f"give it with --example, such as '{name}=float32[2,3,224,224]'",
    )


def _all_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and its nested configurations."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _all_configs(value)


def _filled(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Random token ids below the smallest vocabulary size, masks of ones; other tensors unchanged."""
    if tensor.is_floating_point() or tensor.dtype is torch.bool:
        return tensor
    if name.endswith("mask"):
        return torch.ones_like(tensor)
    sizes = [getattr(part, "vocab_size", None) for part in _all_configs(config)]
    size = min((size for size in sizes if isinstance(size, int) and size > _FIRST_TOKEN), default=0)
    if not name.endswith("input_ids") or not size:
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randint(_FIRST_TOKEN, size, tensor.shape, generator=generator)
