"""A model of transformers that is in memory, written as the directory that everything else begins from."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from ..ir.errors import FxpruneError, RequestError
from ..runtime.consent import Consent
from .model import ModelSource, build_meta

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OTHER_WAY = "save it and give its directory, or prune it with fxprune.prune_module"


def name_of(model: PreTrainedModel) -> str:
    """What a loaded model is called: where it was loaded from, without the folders of this machine, or its class."""
    came_from = str(model.config.name_or_path or "")
    local = Path(came_from).name if came_from and Path(came_from).expanduser().exists() else came_from
    return f"{local or type(model).__name__} (loaded model)"


def write_loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    weights: bool,
    trust_remote_code: bool,
) -> ModelSource:
    """Write a loaded model as a model directory; the model stays as it is.

    The directory holds as many bytes as the model's tensors take. On the way tensors are copied to the CPU, of a model
    that is elsewhere one file after the other.

    Args:
        model: of a class of transformers, or with code of its own that may run.
        tokenizer: what cuts text into its tokens; None when no text is read.
        folder: to make a directory in.
        weights: whether its weights are wanted; without them only the configuration is written.
        trust_remote_code: whether code that the model brings may run again.

    Raises:
        RequestError: a model that its configuration does not describe, one with adapters or quantised weights, one
            without values, or no room on the disk.
        FxpruneError: transformers cannot save it.
    """
    name = name_of(model)
    _check(model, name, trust_remote_code)
    directory = folder / Path(name).name
    directory.mkdir()
    with _own_configs(model):
        if weights:
            _check_values(model, name, folder)
            _saved(model, directory, name)
        else:
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return ModelSource(
        name=name, directory=directory, consent=Consent.of_user(directory, code=trust_remote_code), loaded=True
    )


def _saved(model: PreTrainedModel, directory: Path, name: str) -> None:
    try:
        model.save_pretrained(directory)
    except Exception as error:  # whatever transformers raises has no common class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FxpruneError(f"transformers cannot save {name}: {reason}", OTHER_WAY) from error


def _check(model: PreTrainedModel, name: str, trust_remote_code: bool) -> None:
    """Refuse what the directory would not give back."""
    own_code = bool(getattr(model.config, "auto_map", None)) and model.is_remote_code()
    if own_code and not trust_remote_code:
        raise RequestError(f"{name} brings code of its own", "pass trust_remote_code=True if it may run again")
    if not own_code and getattr(transformers, type(model).__name__, None) is not type(model):
        raise RequestError(f"{type(model).__name__} is no class of transformers, which would load another", OTHER_WAY)
    if getattr(model.config, "quantization_config", None):
        raise RequestError(f"{name} is quantised", "prune the original weights and quantise the result")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RequestError(f"{name} has adapters", "merge them into the weights first, or load the model without them")
    if own_code:
        return
    built = {at: type(module) for at, module in build_meta(_config_of(model)).named_modules()}
    for at, module in model.named_modules():
        if built.pop(at, None) is not type(module):
            raise RequestError(
                f"{name} is not what its configuration describes: {at} is a {type(module).__name__}", OTHER_WAY
            )
    if built:
        raise RequestError(f"{name} is not what its configuration describes: it has no {next(iter(built))}", OTHER_WAY)


def _config_of(model: PreTrainedModel) -> Any:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config


def _check_values(model: PreTrainedModel, name: str, folder: Path) -> None:
    tensors = model.state_dict(keep_vars=True)
    bare = next((at for at, tensor in tensors.items() if tensor.is_meta), None)
    if bare is not None and not hasattr(model, "hf_device_map"):
        raise RequestError(f"{name} holds no weights: {bare} is on the meta device", "load it with its weights")
    size = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors.values()}.values())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise RequestError(
            f"{folder} has {free / 1e9:.2f} GB free, and a copy of the loaded model takes {size / 1e9:.2f} GB",
            "set TMPDIR to a directory with more room, or save the model and give its directory",
        )


@contextmanager
def _own_configs(model: PreTrainedModel) -> Iterator[None]:
    """With copies of its configurations, since saving writes into them."""
    names = [name for name in ("config", "generation_config") if getattr(model, name, None) is not None]
    kept = {name: getattr(model, name) for name in names}
    try:
        for name, value in kept.items():
            setattr(model, name, copy.deepcopy(value))
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)
