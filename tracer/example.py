"""What a model of transformers that is no causal language model is called with, and which of its outputs count.

``calls.json`` holds what no configuration says: which inputs a modality has, what their extents are in the fields of a
configuration, and which outputs are inner states.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..ir.errors import RequestError
from .export import Traced, calls, free_primes, integers, trace_model
from .module import parse_example

_FIELD = re.compile(r"(?:(?P<times>\d+)\*)?(?P<name>[A-Za-z_]\w*)")
_SHAPE = re.compile(r"(?P<dtype>\w+)\[(?P<extents>[^\]]*)\]")
_FIRST_TOKEN = 3
"""Below it are tokens with a meaning of their own, padding for one, in most vocabularies."""

Inputs = dict[str, torch.Tensor]


def example_inputs(model: Any, text: str | None = None) -> Inputs:
    """What to call a model of transformers with: keyword arguments of its forward, with values, on the CPU.

    Args:
        model: on any device; only its class, configuration and shapes are looked at.
        text: the inputs as the user gave them, such as ``pixel_values=float32[2,3,224,224]``; made from the
            configuration when None: the main input of the class, that of every modality it names, and the decoder's.

    Returns:
        Token ids are random, masks are ones, floating-point numbers normally distributed; the same every time.

    Raises:
        RequestError: ``text`` cannot be read, does not name its inputs or names none of the forward's; or an extent is
            neither in the configuration nor in ``calls.json``.
    """
    described = text if text is not None else ",".join(_described(model))
    found = parse_example(described)
    accepted = inspect.signature(model.forward).parameters
    if not isinstance(found, dict):
        first = getattr(model, "main_input_name", next(iter(accepted)))
        raise RequestError(
            f"--example {text!r} does not say which inputs these are",
            f"name them as {type(model).__name__}.forward does: {first}={text}",
        )
    unknown = [name for name in found if name not in accepted]
    if unknown:
        raise RequestError(
            f"{type(model).__name__} takes no {unknown[0]!r}", f"it takes {', '.join(name for name in accepted)}"
        )
    return {name: _filled(name, tensor, model.config) for name, tensor in found.items()}


def trace_call(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Traced:
    """Trace a model of transformers on example inputs. Inner states that it returns beside its results do not count, so
    that they may shrink.

    Raises:
        FxpruneError: ``torch.export`` cannot trace it.
    """
    device = next(model.parameters()).device
    example: dict[str, Any] = {name: tensor.to(device) for name, tensor in inputs.items()}
    if "use_cache" in inspect.signature(model.forward).parameters:
        example["use_cache"] = False
    return trace_model(model, example, beside=calls()["inner"])


def _described(model: Any) -> Iterator[str]:
    """The inputs of a forward as text."""
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
    """Extents as text to integers: numbers, fields of the configuration, and numbers that no dimension has."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        taken = {extent for p in model.parameters() for extent in p.shape} | set(integers(config.to_dict()))
        self.known = dict(zip(("samples", "length", "decoder_length"), free_primes(taken), strict=False))
        self.configs = list(_all_configs(config))
        self.asked: dict[str, int] = {}

    def __call__(self, name: str, text: str) -> int:
        """Args: name: of the input. text: alternatives with bars between, the first that is known counts."""
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
        f"nothing says what shape {name!r} of {type(model).__name__} has",
        f"give it with --example, such as '{name}=float32[2,3,224,224]'",
    )


def _all_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those of its parts."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _all_configs(value)


def _filled(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Token ids of the smallest vocabulary, masks of ones; other tensors as they are."""
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
