"""Loads MODEL (a directory, a Hub id or ``demo``): its config, module and tokenizer."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import is_accelerate_available

from ..ir.errors import FxpruneError, RequestError, first_line, guarded, is_utf8
from ..runtime.adapter_files import ADAPTER_PICKLE, find_adapter, refuse_adapter, refuse_lone_adapter
from ..runtime.consent import Consent
from ..runtime.model.empty_weights import empty_weights
from ..runtime.model.free_class import CONFIG_ENTRY, free_class
from ..runtime.model.own_code import own_auto_class, own_class
from ..runtime.model_directory.config_file import check_built, read_config
from ..runtime.model_directory.pickles import pickles_read
from ..runtime.model_directory.tokenizer import check_tokenizer, read_tokenizer
from ..runtime.model_files import check_model_files
from ..runtime.size_limits import SizeLimit, limited
from .calls import calls
from .checkpoint import DOWNLOAD_AGAIN, weight_files
from .named_objects import is_target

DEMO = "demo"
ANY_MODEL = SizeLimit()

# The files of a model directory besides weights: small files, and code that runs only with --trust-remote-code.
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.py"]
_WEIGHTS = ["*.safetensors"]
_PICKLES = ["pytorch_model*.bin", ADAPTER_PICKLE]

MERGE_FIRST = "merge it first, or pass --merge-adapter"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model directory on this machine and what its user allows.

    Attributes:
        name: MODEL as the user gave it.
        directory: where its files are.
        consent: what may run of it.
        loaded: whether the directory was written from a model in memory, and lasts as long as the call.
        unmerged: the user's own directory, where ``directory`` is a copy of it with an adapter merged into the weights,
            which lasts as long as the call.
    """

    name: str
    directory: Path
    consent: Consent
    loaded: bool = False
    unmerged: Path | None = None

    @property
    def origin(self) -> Path:
        """The directory whose files make the model what it is: what a record names, and what no ``out`` may replace."""
        return self.unmerged or self.directory


def resolve(
    name: str | Path,
    *,
    weights: bool = True,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
) -> ModelSource:
    """Find the directory of a model; a model of the Hub is downloaded to the Hugging Face cache.

    Args:
        name: a Hugging Face model directory, a Hub id, or ``demo`` for the built-in model.
        weights: whether weights are needed; if not, only small files are downloaded.
        trust_remote_code: whether code in the directory may run.
        allow_pickle: whether weights may be read from a pickle.
        merge_adapter: whether an adapter beside the weights is accepted, for the caller to merge.

    Raises:
        RequestError: there is no such directory, and no such model on the Hub, or the Hub cannot be reached; the
            directory has no ``config.json``; weights are needed and :func:`~.checkpoint.weight_files` refuses them; it
            holds an adapter alone, or one beside the weights that is not to be merged;
            :func:`~fxprune.runtime.model_files.check_model_files` refuses a link or a pipe in it; or
            :func:`~fxprune.runtime.model_directory.tokenizer.check_tokenizer` its tokenizer.
    """
    directory = _locate(str(name), weights=weights, allow_pickle=allow_pickle)
    consent = Consent.of_user(directory, code=trust_remote_code, pickle=allow_pickle)
    return found_source(str(name), consent, weights=weights, merge_adapter=merge_adapter)


def found_source(name: str, consent: Consent, *, weights: bool = True, merge_adapter: bool = False) -> ModelSource:
    """A model whose directory has been found, checked as :func:`resolve` does.

    Args:
        name: MODEL as the user gave it.
        consent: its directory, and what may run there.
        weights: whether weights are needed.
        merge_adapter: whether an adapter beside the weights is accepted.
    """
    directory = consent.directory
    if not is_utf8(directory.absolute()):
        raise RequestError(f"the name of {directory} is not UTF-8", "rename it: safetensors cannot open files there")
    adapter = find_adapter(directory)
    if adapter is not None:
        refuse_lone_adapter(adapter, weights=weights)
        if not merge_adapter:
            refuse_adapter(directory, MERGE_FIRST)
    if not (directory / "config.json").is_file():
        raise RequestError(f"{directory} has no config.json", "give a Hugging Face model directory, a Hub id, or demo")
    if str(name) != DEMO:
        check_model_files(directory)
        check_tokenizer(directory, own_code=consent.code)
    if weights:
        weight_files(directory, allow_pickle=consent.pickle)
    return ModelSource(name=name, directory=directory, consent=consent)


def _locate(name: str, *, weights: bool, allow_pickle: bool) -> Path:
    if name == DEMO:
        from ..demo import MODEL_DIR

        return Path(MODEL_DIR)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        hint = "give the directory that holds config.json"
        if path.suffix == ".py":
            hint += f"; what a file of Python holds is called by its name, such as {path.stem}:build"
        raise RequestError(f"{name!r} is a file, not a model directory", hint)
    if is_target(name):
        raise RequestError(
            f"{name!r} names an object of Python, and this command takes a model of transformers",
            "trace, apply and analyze take such names; save what apply makes of it, and load that in a program",
        )
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise RequestError(f"there is no directory {name!r}", "check the path; a Hub id is a name or owner/name")
    patterns = _SMALL_FILES + (_WEIGHTS if weights else []) + (_PICKLES if weights and allow_pickle else [])
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError) as error:
        raise RequestError(
            f"{name!r} is neither a local directory nor a model on the Hub: {first_line(error)}",
            "check the spelling; a gated model needs `hf auth login`",
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        raise RequestError(
            f"there is no directory {name!r}, and the Hub cannot be reached",
            "check the path, or download the model on another machine and give its directory" + _as_python(name),
        ) from None


def _as_python(name: str) -> str:
    """A hint where a dotted name has a file of Python in the working directory."""
    module, dot, attribute = name.rpartition(".")
    is_file = bool(dot) and Path(f"{module.replace('.', '/')}.py").is_file()
    return f"; what a file of Python holds is written {module}:{attribute}" if is_file else ""


def load_config(source: ModelSource) -> Any:
    """The model's ``PreTrainedConfig``.

    Raises:
        RequestError: the JSON is invalid; the architecture is unknown, missing, or needs code that the user has not
            allowed to run; the model is quantised; or values in the config contradict each other.
    """
    file = source.directory / "config.json"
    raw = read_config(file, DOWNLOAD_AGAIN)
    _check_architecture(source, raw)
    config = guarded(
        lambda: AutoConfig.from_pretrained(source.directory, **source.consent.keywords(source.directory)),
        RequestError,
        f"{file} is not a valid model configuration",
        "correct the file, or download it again",
    )
    check_built(config, file)
    for field, value in calls()["settings"].get(raw.get("model_type"), {}).items():
        setattr(config, field, value)
    return config


def _check_architecture(source: ModelSource, raw: dict[str, Any]) -> None:
    model_type, own_code = raw.get("model_type"), raw.get("auto_map") or {}
    own = own_auto_class(own_code, raw.get("architectures"))
    if raw.get("quantization_config"):
        raise RequestError(
            f"{source.name!r} is quantised ({raw['quantization_config'].get('quant_method', 'unknown method')})",
            "prune the original weights and quantise the result",
        )
    if source.consent.code and own:
        return
    if model_type not in CONFIG_MAPPING:
        if own_code:
            raise RequestError(
                f"{source.name!r} needs its own code: {own_code.get(own) or next(iter(own_code.values()))}",
                f"read that file in {source.origin}, and pass --trust-remote-code if you trust it",
            )
        if model_type is None:
            raise RequestError(f"the config.json of {source.name!r} names no model_type", DOWNLOAD_AGAIN)
        raise RequestError(
            f"transformers {transformers.__version__} does not support the model type {model_type!r}",
            "give a model that transformers supports",
        )
    if _class_of(CONFIG_MAPPING[model_type], raw.get("architectures")) is None:
        raise RequestError(
            f"{source.name!r} is a {model_type!r} model, and its config names no matching class of transformers: "
            f"{', '.join(raw.get('architectures') or ['none'])}",
            "set 'architectures' in config.json to the class of the model",
        )


def _class_of(config_class: type, architectures: Sequence[str] | None) -> Any:
    """The class that builds and loads the model: AutoModelForCausalLM, or the class that the configuration names; None
    if it names no matching class. Several kinds of configurations may share one class that reads images."""
    named = getattr(transformers, (architectures or [""])[0], None)
    shared = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(config_class, None)
    fits = isinstance(named, type) and (getattr(named, "config_class", None) is config_class or named is shared)
    if config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        mapped = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        return AutoModelForCausalLM if named is mapped or not fits else named
    return named if fits else None


def _builder(config: Any) -> Any:
    """The transformers class (an Auto class or not) that builds and loads the model of a configuration."""
    if own := own_auto_class(getattr(config, "auto_map", None) or {}, config.architectures):
        return getattr(transformers, own)
    return _class_of(type(config), config.architectures) or AutoModelForCausalLM


def _loader(config: Any, directory: Path, allowed: dict[str, bool]) -> Any:
    """The same, or the class of the model's own code, if that may run. What fxprune has written in the free form needs
    none: the configuration has the widths."""
    auto_map = getattr(config, "auto_map", None) or {}
    own = own_auto_class(auto_map, config.architectures)
    if own and allowed["trust_remote_code"]:
        return own_class(auto_map[own], directory)
    known = getattr(transformers, (config.architectures or [""])[0], None)
    return free_class(known) if known is not None and hasattr(config, CONFIG_ENTRY) else _builder(config)


def predicts_next_token(config: Any) -> bool:
    """Whether a configuration from :func:`load_config` describes a causal language model."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    named = next(iter(config.architectures or ()), "")
    if getattr(config, "auto_map", None) and hasattr(transformers, named):
        return named in names  # the model's own code around a known class: the class decides
    found = _builder(config)
    return found is AutoModelForCausalLM or found.__name__ in names


def reads_images(config: Any) -> bool:
    """Whether a configuration from :func:`load_config` describes a model that makes text from images and text."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    found = _builder(config)
    name = names.get(config.model_type, "") if found is AutoModelForCausalLM else found.__name__
    return name in names.values()


def build_meta(
    config: Any, *, consent: Consent | None = None, buffers: bool = False, limit: SizeLimit = ANY_MODEL
) -> Any:
    """The module that ``config`` describes, on the meta device: shapes without memory for weights.

    Args:
        config: from :func:`load_config`; it is not changed.
        consent: for the directory that the config was read from; none of its code runs when None.
        buffers: whether buffers (rotary tables, masks) have values, on the CPU.
        limit: how large it may be; not looked at with ``buffers``.

    Returns:
        A ``PreTrainedModel`` in eval mode, float32.

    Raises:
        RequestError: transformers cannot build a model from the config, or it is too large.
    """

    place = Path(config.name_or_path)
    allowed = (consent or Consent.nothing(place)).keywords(place)  # for every class: parts of a model may have code too

    def build() -> Any:
        found = _loader(config, place, allowed)
        # Initialising weights that are never used would take minutes.
        with contextlib.ExitStack() as stack:
            for context in (_without_values(),) if buffers else (torch.device("meta"), limited(limit)):
                stack.enter_context(context)
            # transformers writes the dtype into the config it is given.
            if hasattr(found, "from_config"):  # an Auto class
                model = found.from_config(copy.deepcopy(config), dtype=torch.float32, **allowed)
            else:
                model = found._from_config(copy.deepcopy(config), dtype=torch.float32)
        if buffers:
            model.tie_weights()  # a parameter registered on the meta device is a new object
        return model

    return guarded(build, RequestError, "transformers cannot build this model", "correct the config").eval()


@contextlib.contextmanager
def _without_values() -> Iterator[None]:
    with empty_weights(), no_init_weights():
        yield


def load_model(source: ModelSource, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
    """The model with its weights, in eval mode.

    Args:
        source: from :func:`resolve` with ``weights=True``.
        dtype: dtype of the parameters; the checkpoint is converted.
        device: where they are; the CPU when None.

    Returns:
        A ``PreTrainedModel``.

    Raises:
        RequestError: as in :func:`load_config` and :func:`~.checkpoint.weight_files`; or the class reads a pickle
            besides the weights, which is not allowed.
        FxpruneError: the checkpoint does not fit the model: tensors are missing, unknown or of another shape.
    """
    refuse_adapter(source.directory, MERGE_FIRST)
    config = load_config(source)
    allowed = source.consent.keywords(source.directory)
    files = weight_files(source.directory, allow_pickle=source.consent.pickle)
    # With a map of devices, which needs accelerate, the files are read straight to the device.
    beyond = device is not None and device.type != "cpu"
    elsewhere = {"device_map": {"": device}} if beyond and is_accelerate_available() else {}
    with pickles_read(source.consent.pickle):
        model, info = guarded(
            lambda: _loader(config, source.directory, allowed).from_pretrained(
                source.directory,
                config=config,
                dtype=dtype,
                **allowed,
                use_safetensors=files[0].suffix == ".safetensors",
                ignore_mismatched_sizes=True,  # they are reported below, with the others
                output_loading_info=True,
                **elsewhere,
            ),
            FxpruneError,
            f"the weights of {source.name!r} cannot be loaded",
            "check that the weights belong to the config",
        )
    _check_keys(source, config, info)
    return (model.to(device) if beyond and not elsewhere else model).eval()


def _check_keys(source: ModelSource, config: Any, info: dict[str, Any]) -> None:
    wrong = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(key for key, *_ in info["mismatched_keys"]),
    }
    found = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in wrong.items() if keys)
    if not found:
        return
    own_code = bool(getattr(config, "auto_map", None))
    hint = "check that the weights belong to this config"
    if own_code and not source.consent.code:
        hint = f"this model has its own code: read it in {source.origin}, then pass --trust-remote-code"
    raise FxpruneError(f"the weights of {source.name!r} do not fit its config: tensors {found}", hint)


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        RequestError: the directory has none, or it cannot be read; a loaded model came without one.
    """
    if source.loaded and not (source.directory / "tokenizer_config.json").is_file():
        raise RequestError(f"{source.name} came without a tokenizer, and text is to be read", "give it as tokenizer=")
    hint = "copy tokenizer.json and tokenizer_config.json to the directory of config.json"
    return read_tokenizer(source.directory, hint, **source.consent.keywords(source.directory))


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
