"""Load an artifact of either form. Of its code only what fxprune has listed there runs, and only by consent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ...ir.errors import FxpruneError, RequestError, class_and_first_line
from ...runtime.adapter_files import refuse_adapter
from ...runtime.consent import Consent
from ...runtime.model.free_class import CONFIG_ENTRY, free_class
from ...runtime.model.own_code import CODE, code_files, module_in, own_auto_class, own_class
from ...runtime.model_directory.config_file import check_built, read_config
from ...runtime.model_directory.pickles import pickles_read
from ...runtime.size_limits import SizeLimit, limited
from ..artifact import RECORD, read_record
from .synthetic_weights import meta_model

WRITE_AGAIN = "write the artifact again"


def load(path: Path, *, dtype: torch.dtype | Literal["auto"] = "auto", own_code: bool = False) -> PreTrainedModel:
    """Load an artifact of either form. The free form is loaded without running its modelling file.

    Args:
        path: the directory.
        dtype: of the parameters.
        own_code: whether the code of a model that brings its own may run: those files that ``fxprune.json`` lists, with
            the sha256 that it gives.

    Raises:
        RequestError: the directory has no model of a class of transformers, code of its own that may not run or is not
            listed, or an adapter that would be loaded too.
        FxpruneError: the tensors do not fit the configuration, or listed code is no longer what it was.
    """
    refuse_adapter(path, "merge the adapter first, or remove its files")
    model_class, config, consent = _class_in(path, own_code=own_code)
    try:
        with limited(SizeLimit.of_files(path.glob("model*.safetensors"))), pickles_read(False):
            model, info = model_class.from_pretrained(
                path, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True,
                **consent.keywords(path),
            )  # fmt: skip
    except FxpruneError:
        raise
    except Exception as error:  # of any class: the entries of its configuration are read by the model's own code
        raise FxpruneError(f"cannot load {path}: {class_and_first_line(error)}", WRITE_AGAIN) from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = ", ".join(sorted(info[kind])[:3])
            raise FxpruneError(f"{path} has {kind.replace('_', ' ')}: {names}", WRITE_AGAIN)
    loaded: PreTrainedModel = model
    return loaded


def load_without_weights(path: Path) -> PreTrainedModel:
    """An artifact of either form with its parameters on the meta device, float32, and buffers with values. No code of
    the directory runs.

    Raises:
        RequestError: as :func:`load`.
    """
    model_class, config, _ = _class_in(path, own_code=False)
    return meta_model(model_class, config)


def _class_in(path: Path, *, own_code: bool) -> tuple[type[PreTrainedModel], PreTrainedConfig, Consent]:
    """The class of the model in a directory, its configuration, and what may run there."""
    if not (path / "config.json").is_file():
        raise RequestError(f"{path / 'config.json'} does not exist", "give a model directory")
    raw = read_config(path / "config.json", WRITE_AGAIN)
    reference = _own_reference(raw, path)
    consent = _listed_code(path, reference, raw, own_code=own_code) if reference else Consent.nothing(path)
    try:
        config = transformers.AutoConfig.from_pretrained(path, **consent.keywords(path))
        check_built(config, path / "config.json")
        base = own_class(reference, path) if reference else _known_class(config)
    except FxpruneError:
        raise
    except Exception as error:  # likewise
        raise RequestError(f"{path / 'config.json'} is damaged: {class_and_first_line(error)}", WRITE_AGAIN) from error
    if base is None:
        raise RequestError(
            f"{path / 'config.json'}: 'architectures' is {config.architectures}, which transformers does not know",
            "set 'architectures' to a class of transformers",
        )
    return free_class(base) if hasattr(config, CONFIG_ENTRY) else base, config, consent


def _known_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    found: type[PreTrainedModel] | None = getattr(transformers, (config.architectures or ["none named"])[0], None)
    return found


def _own_reference(raw: dict[str, Any], path: Path) -> str:
    """``module.Class`` of the model that a directory brings; "" where ``architectures`` names a class of transformers,
    unless fxprune has written the code of another class of this name there."""
    if CONFIG_ENTRY in raw:
        own: str = raw[CONFIG_ENTRY].get("own_class", "")
        return own
    auto_map = raw.get("auto_map") or {}
    reference = str(auto_map.get(own_auto_class(auto_map, raw.get("architectures")), ""))
    if not reference or not hasattr(transformers, (raw.get("architectures") or ["none named"])[0]):
        return reference
    listed = read_record(path).get("code") or {} if (path / RECORD).is_file() else {}
    return reference if f"{module_in(reference)}{CODE}" in listed else ""


def _listed_code(path: Path, reference: str, raw: dict[str, Any], *, own_code: bool) -> Consent:
    """Consent to the code of a model that brings its own: what fxprune has listed, as it was then."""
    if not own_code:
        raise RequestError(
            f"{path} needs its own code: {reference}",
            f"read {module_in(reference)}{CODE} there, and pass trust_remote_code=True (--trust-remote-code) if you "
            "trust it",
        )
    listed = read_record(path).get("code") or {}
    named = [reference, *[text for auto, text in (raw.get("auto_map") or {}).items() if auto == "AutoConfig"]]
    needed = code_files(map(str, named), path)
    if needed is None:
        raise RequestError(f"{path} lacks code that its config.json names: {', '.join(map(str, named))}", WRITE_AGAIN)
    if unlisted := [name for name in needed if name not in listed]:
        raise RequestError(
            f"{path / unlisted[0]} would run, and {RECORD} does not list it",
            "give a directory that fxprune wrote; transformers loads it with trust_remote_code=True",
        )
    return Consent.of_written(path, {name: listed[name] for name in needed})
