"""Whether a model can be written, asked before any work: the code that a model brings decides much of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from ...ir.errors import RequestError, class_and_first_line
from ...runtime.consent import Consent
from ...runtime.quiet import quiet
from .config_search import built_shapes
from .free_form import plain_config
from .model_class import auto_class_of, base_class, own_code, own_reference


def check_writable(model: PreTrainedModel, consent: Consent) -> None:
    """Refuse a model that could not be written, before any work.

    Args:
        model: with its parameters on the meta device, and with the values that its code gives to buffers.
        consent: what may run of its directory.

    Raises:
        RequestError: its class is defined elsewhere, or no Auto class loads it; of its own code a file is missing or
            bears the name of fxprune's; or the configuration does not come back from its file.
    """
    base = base_class(model)
    auto_class_of(base, model.config)
    if not own_reference(base):
        return
    if not consent.code:
        raise RequestError(f"{base.__name__} comes with code that may not run", "pass --trust-remote-code")
    own_code(model.config, base, consent.directory, free=True)
    _check_configuration(model, base)


def _check_configuration(model: PreTrainedModel, base: type[PreTrainedModel]) -> None:
    """The class of the configuration is the model's own too: what it writes it must read, and build the same from."""
    hint = "the class of its configuration must build from a file what it wrote there: correct that class"
    try:
        with quiet():
            held, built = (built_shapes(base, config) for config in (model.config, plain_config(model.config)))
    except Exception as error:  # of any class: its own code raises it
        raise RequestError(
            f"{base.__name__} cannot be built from its own configuration: {class_and_first_line(error)}", hint
        ) from error
    if odd := sorted(name for name in built.keys() | held.keys() if built.get(name) != held.get(name)):
        raise RequestError(f"{base.__name__} has another '{odd[0]}' when its configuration was written", hint)


def lost_when_loaded(model: PreTrainedModel) -> dict[str, str]:
    """The tensors that transformers loads without a value, and what to do about each.

    What is not in the files of the weights gets its value from the code of the model: transformers empties such
    buffers and lets ``_init_weights`` fill them; a tensor in a plain attribute stays on the meta device.

    Args:
        model: with its parameters on the meta device, and with the values that its code gives to buffers.
    """
    found: dict[str, str] = {}
    stored = model.state_dict(keep_vars=True).keys()
    owners = {path: module for path, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        owner = owners[max((at for at in owners if prefix.startswith(f"{at}." if at else "")), key=len)]
        bare = [name for name, held in vars(module).items() if isinstance(held, torch.Tensor)]
        found |= {prefix + name: "register it as a buffer in the code of the model" for name in bare}
        own = {name: held for name, held in module._buffers.items() if held is not None and prefix + name not in stored}
        fill = "let _init_weights in the code of the model fill it, or make it persistent"
        found |= {prefix + name: fill for name in (_lost(owner, module, own) if own else ())}
    return found


def refuse_lost(model: PreTrainedModel, lost: Mapping[str, str], read: Collection[str]) -> None:
    """Refuse a model that computes with tensors which transformers loads without a value.

    Args:
        model: the model.
        lost: from :func:`lost_when_loaded`.
        read: names of the tensors that its forward reads.

    Raises:
        RequestError: naming the first of them.
    """
    if names := [name for name in lost if name in read]:
        raise RequestError(
            f"transformers {transformers.__version__} loads {type(model).__name__} without the values of '{names[0]}', "
            "which is not among its weights",
            lost[names[0]],
        )


def _lost(owner: PreTrainedModel, module: nn.Module, own: Mapping[str, torch.Tensor]) -> list[str]:
    """The buffers that ``_init_weights`` does not fill with the value that they have."""
    try:
        for name, held in own.items():
            module._buffers[name] = torch.full_like(held, float("nan") if held.is_floating_point() else 0)
        with torch.no_grad():
            owner._init_weights(module)
        return [name for name, held in own.items() if not _equal(module._buffers[name], held)]
    finally:
        module._buffers.update(own)


def _equal(got: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    return got is not None and got.shape == wanted.shape and torch.equal(got.to(wanted.dtype), wanted)
