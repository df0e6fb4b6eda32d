"""Whether a model can be written, asked before any work: the code that a model brings decides much of it."""

from __future__ import annotations

from collections.abc import Mapping

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
            bears the name of fxprune's; the configuration does not come back from its file; or transformers would load
            the model without the values of some tensors.
    """
    base = base_class(model)
    auto_class_of(base, model.config)
    if not own_reference(base):
        return
    if not consent.code:
        raise RequestError(f"{base.__name__} comes with code that may not run", "pass --trust-remote-code")
    own_code(model.config, base, consent.directory, free=True)
    _check_configuration(model, base)
    _check_loading(model)


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


def _check_loading(model: PreTrainedModel) -> None:
    """What is not in the files of the weights gets its value from the code as transformers loads the model: it empties
    such buffers, and lets ``_init_weights`` fill them."""
    stored = model.state_dict(keep_vars=True).keys()
    owners = {path: module for path, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        owner = owners[max((at for at in owners if prefix.startswith(f"{at}." if at else "")), key=len)]
        own = {name: held for name, held in module._buffers.items() if held is not None and prefix + name not in stored}
        for name, held in vars(module).items():
            if isinstance(held, torch.Tensor):
                raise RequestError(
                    f"{type(model).__name__} holds '{prefix}{name}' as a bare tensor, which transformers loads without "
                    "a value",
                    "register it as a buffer in the model's code",
                )
        if own and (lost := _lost(owner, module, own)):
            raise RequestError(
                f"transformers {transformers.__version__} loads {type(model).__name__} without the values of "
                f"'{prefix}{lost}', which is not among its weights",
                "let _init_weights in the model's code fill that buffer, or make it persistent",
            )


def _lost(owner: PreTrainedModel, module: nn.Module, own: Mapping[str, torch.Tensor]) -> str:
    """The first buffer that ``_init_weights`` does not fill with the value that it has; "" if it fills all."""
    try:
        for name, held in own.items():
            module._buffers[name] = torch.full_like(held, float("nan") if held.is_floating_point() else 0)
        with torch.no_grad():
            owner._init_weights(module)
        return next((name for name, held in own.items() if not _equal(module._buffers[name], held)), "")
    finally:
        module._buffers.update(own)


def _equal(got: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    return got is not None and got.shape == wanted.shape and torch.equal(got.to(wanted.dtype), wanted)
