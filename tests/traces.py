"""Every structure is traced once in a session: tests share the traces of the tiny models of transformers they have."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from fxprune.api import runnable
from fxprune.tracer import example, export, module
from fxprune.tracer.export import Traced

OF_EVERY_MODULE = vars(torch.nn.Module()).keys()
NOT_READ = {
    "_name_or_path", "name_or_path", "_commit_hash", "architectures", "transformers_version", "generation_config",
}  # fmt: skip
"""Attributes of models and fields of configurations that say where they are from, and that no forward reads."""


def seen(value: Any) -> Hashable:
    """What a trace sees of a value: of a tensor its shape, dtype and device, of a configuration its fields. What cannot
    be compared is equal to nothing."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, PreTrainedConfig):
        return type(value), seen(vars(value))
    if isinstance(value, Mapping):
        return tuple((key, seen(inner)) for key, inner in value.items() if key not in NOT_READ)
    if isinstance(value, list | tuple):
        return type(value), tuple(map(seen, value))
    if isinstance(value, set):
        return frozenset(map(seen, value))
    return (type(value), value) if isinstance(value, Hashable) else object()


def structure(model: torch.nn.Module) -> Hashable:
    """All of a model but the values of its parameters."""
    first: dict[int, str] = {}
    found: list[Hashable] = [torch.get_default_dtype()]
    for name, part in model.named_modules(remove_duplicate=False):
        own = {key: value for key, value in vars(part).items() if key not in OF_EVERY_MODULE}
        hooks = (part._forward_hooks, part._forward_pre_hooks)
        found.append((name, type(part), type(part).forward, part.training, seen(own), seen(hooks)))
        for key, tensor in part.named_parameters(recurse=False, remove_duplicate=False):
            found.append((key, first.setdefault(id(tensor), f"{name}.{key}"), seen(tensor)))
        for key, tensor in part.named_buffers(recurse=False):  # their values may be folded into constants
            found.append((key, seen(tensor), None if tensor.is_meta else tuple(tensor.flatten().tolist())))
    return tuple(found)


@contextmanager
def shared_traces() -> Iterator[None]:
    """A model of transformers of which the structure has been traced before is not traced again."""
    made: dict[Hashable, Traced] = {}
    trace: Callable[..., Traced] = export.trace_model

    def trace_once(model: torch.nn.Module, inputs: Mapping[str, Any], **options: Any) -> Traced:
        if not isinstance(model, PreTrainedModel):
            return trace(model, inputs, **options)
        key = structure(model), seen(inputs), seen(options)
        if key not in made:
            made[key] = trace(model, inputs, **options)
        return replace(made[key], graph=copy.deepcopy(made[key].graph))

    with pytest.MonkeyPatch.context() as patch:
        for caller in (export, example, module, runnable):
            patch.setattr(caller, "trace_model", trace_once)
        yield
