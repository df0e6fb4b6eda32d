"""Example inputs for transformers models that are not causal language models, and the outputs that count.

``calls.json`` holds what configurations do not say: the inputs of a modality, the configuration fields that give their
extents, and the outputs that are inner states.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ..ir.errors import RequestError
from ..runtime.streaming.left_as_found import left_as_found
from .calls import calls
from .export import Traced, free_primes, integers, trace_model
from .images import NamedInputs, all_configs, has_images, random_tokens, with_images, writes_about_images
from .input_file import is_input_file, read_inputs
from .known_values import known_inputs, whole_numbers
from .module import parse_example

_FACTOR = re.compile(r"[\w.]+(?:\|[\w.]+)*")
_SPEC = re.compile(r"(?P<dtype>\w+)\[(?P<extents>[^\]]*)\](?:=(?P<values>.*))?")


def example_inputs(model: Any, text: str | None = None) -> NamedInputs:
    """Example inputs of a transformers model: keyword arguments of its forward, on the CPU.

    Args:
        model: on any device; only its class, configuration and shapes are used.
        text: the inputs as the user gave them, such as ``pixel_values=float32[2,3,224,224]``, or a file that holds
            them (``.safetensors``, ``.npz``). When None, they come from the configuration: the main input of the class,
            one for every modality, and the decoder's.

    Returns:
        Random token ids, those that wait for an image where there is one; masks of ones; normally distributed
        floating-point numbers; the same in every call. Those of a file as they are.

    Raises:
        RequestError: ``text`` cannot be read, gives no names, or a name that the forward does not take; or an extent is
            neither in the configuration nor in ``calls.json``.
    """
    if text is None:
        return with_images(model, dict(_from_config(model)), longer=True)
    found = read_inputs(text) if is_input_file(text) else parse_example(text)
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
    if is_input_file(text):
        return found
    return with_images(model, {n: _filled(n, tensor, model.config) for n, tensor in found.items()}, longer=False)


def trace_call(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Traced:
    """Trace a transformers model on example inputs.

    Inner states that it returns beside its results are not outputs of the graph, so that their widths can be pruned.
    With images among them, the whole numbers are constants of the graph: they say where the images are, and how large.

    Raises:
        FxpruneError: ``torch.export`` cannot trace it.
    """
    device = next(model.parameters()).device
    given: dict[str, Any] = {**{name: tensor.to(device) for name, tensor in inputs.items()}, **uncached(model)}
    if not has_images(model, inputs):
        return trace_model(model, given, beside=calls()["inner"], values=inputs)
    numbers = {name: inputs[name] for name in whole_numbers(inputs)}
    with left_as_found(model), known_inputs(model, inputs, numbers), _cacheless(model):
        maybe_install_capturing_hooks(model)  # a tower may give an inner layer's states, which a trace cannot ask for
        traced = trace_model(model, given, beside=calls()["inner"])
    traced.graph.inputs = [value for value in traced.graph.inputs if value.name not in numbers]
    return replace(traced, example={**given, **numbers})


@contextmanager
def _cacheless(model: torch.nn.Module) -> Iterator[None]:
    """Inside, a model gives no cache back: some fill one whatever they are told."""
    names = calls()["cache"]

    def leave_out(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Mapping) or not any(key in names for key in output):
            return output
        return type(output)(**{key: value for key, value in output.items() if key not in names})

    handle = model.register_forward_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def uncached(model: torch.nn.Module) -> dict[str, bool]:
    """The argument that keeps a model from returning a cache of keys and values, if it could return one.

    It may go through ``**kwargs`` to the language model inside; then a configuration says that there is a cache.
    """
    accepted = inspect.signature(model.forward).parameters
    passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    config = getattr(model, "config", None)
    caches = config is not None and any(getattr(part, "use_cache", False) for part in all_configs(config))
    return {"use_cache": False} if "use_cache" in accepted or (passes_on and caches) else {}


def _from_config(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The inputs of a forward, with the values that are in their description."""
    extents = _Extents(model)
    for name, spec in _described(model).items():
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise _unknown(model, name)
        shape = [extents(name, extent) for extent in match["extents"].split(",")]
        tensor = parse_example(f"{name}={match['dtype']}{shape}")[name]  # type: ignore[call-overload]
        if match["values"]:
            values = torch.tensor([extents(name, value) for value in match["values"].split(",")], dtype=tensor.dtype)
            yield name, values.repeat(-(-tensor.numel() // values.numel()))[: tensor.numel()].view(tensor.shape)
        else:
            yield name, _filled(name, tensor, model.config)


def _described(model: Any) -> dict[str, str]:
    """The inputs of a forward, each as text."""
    data, config = calls(), model.config
    accepted = inspect.signature(model.forward).parameters
    names = list(_several(model.main_input_name))
    decodes = getattr(config, "is_encoder_decoder", False)
    if decodes:
        names.append("decoder_input_ids")
    if (not decodes or writes_about_images(type(model).__name__)) and len(
        modalities := _several(model.input_modalities)
    ) > 1:
        names += [data["modalities"][modality] for modality in modalities if modality in data["modalities"]]
    known = {**data["inputs"]}
    for name, beside in data["inputs_with"].items():
        if name in accepted:
            known |= beside
            names += beside
    own = data["inputs_of"].get(config.model_type, {})
    known |= own
    names += own
    return {name: known.get(name, "") for name in dict.fromkeys(names) if name in accepted}


def _several(value: str | Sequence[str]) -> Sequence[str]:
    return (value,) if isinstance(value, str) else value


class _Extents:
    """Converts extents from text: products of numbers, configuration fields, and numbers that are no dimension of the
    model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        taken = {extent for p in model.parameters() for extent in p.shape} | set(integers(config.to_dict()))
        self.known = dict(zip(("samples", "length", "decoder_length"), free_primes(taken), strict=False))
        self.configs = list(all_configs(config))
        self.asked: dict[str, int] = {}

    def __call__(self, name: str, text: str) -> int:
        """The extent of input ``name``: a sum of products, each factor the first known one of alternatives between
        bars."""
        return sum(self._product(name, part) for part in text.split("+"))

    def _product(self, name: str, text: str) -> int:
        found = 1
        for factor in text.split("*"):
            value = self._first(factor.split("|")) if _FACTOR.fullmatch(factor) else None
            if value is None:
                raise _unknown(self.model, name)
            found *= value
        return found

    def _first(self, alternatives: Iterable[str]) -> int | None:
        values = (int(text) if text.isdigit() else self._field(text) for text in alternatives)
        return next((value for value in values if value is not None), None)

    def _field(self, field: str) -> int | None:
        if field in self.known:
            return self.known[field]
        *path, field = field.split(".")
        configs = [functools.reduce(lambda c, part: getattr(c, part, None), path, c) for c in self.configs]
        value = next((found for c in configs if (found := getattr(c, field, None)) is not None), None)
        if isinstance(value, list | tuple):  # height, then width
            self.asked[field] = self.asked.get(field, -1) + 1
            value = value[self.asked[field] % len(value)]
        return value if isinstance(value, int) else None


def _unknown(model: Any, name: str) -> RequestError:
    return RequestError(
        f"the shape of input {name!r} of {type(model).__name__} is not known",
        f"give it with --example, such as '{name}=float32[2,3,224,224]'",
    )


def _filled(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Random token ids below the smallest vocabulary size, masks of ones; other tensors unchanged."""
    if tensor.is_floating_point() or tensor.dtype is torch.bool:
        return tensor
    if name.endswith("mask"):
        return torch.ones_like(tensor)
    tokens = random_tokens(config, tensor.shape) if name.endswith("input_ids") else None
    return tensor if tokens is None else tokens
