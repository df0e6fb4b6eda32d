"""Adapters of PEFT among the files of a model: transformers loads one by itself, beside the weights or without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError
from .json_object import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"

ADAPTER_FILES = frozenset({ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE})

_WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_LONGEST = 100
"""The most characters of a value that a message repeats."""


@dataclass(frozen=True)
class AdapterFiles:
    """The adapter in a directory, as its ``adapter_config.json`` describes it.

    Attributes:
        directory: where its files are.
        kind: its ``peft_type``, as ``'LORA'``; printable.
        base: its ``base_model_name_or_path``, quoted and printable. Nothing is ever loaded from there.
        config: all that the file says.
    """

    directory: Path
    kind: str
    base: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"an adapter ({ADAPTER_CONFIG}: {self.kind}, for {self.base})"


def find_adapter(directory: Path) -> AdapterFiles | None:
    """The adapter that transformers would load with the model in a directory; None when there is none.

    An adapter in a folder of its own below the directory is not loaded, and not looked for.

    Raises:
        RequestError: its ``adapter_config.json`` is no JSON object.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    found = read_json_object(directory / ADAPTER_CONFIG, "copy the adapter again, or remove its files")
    return AdapterFiles(directory, _shown(found.get("peft_type")), _shown(found.get("base_model_name_or_path")), found)


def refuse_adapter(directory: Path, hint: str) -> None:
    """Refuse a directory from which transformers would load more than the weights.

    Args:
        directory: of a model.
        hint: what to do.

    Raises:
        RequestError: naming the adapter.
    """
    adapter = find_adapter(directory)
    if adapter is not None:
        raise RequestError(f"{directory} holds a model and {adapter}", hint)


def refuse_lone_adapter(adapter: AdapterFiles, *, weights: bool) -> None:
    """Refuse an adapter without the model that it belongs to, in whichever way its base is named.

    Args:
        adapter: the adapter.
        weights: whether weights of the base are wanted beside it, or its ``config.json`` alone.

    Raises:
        RequestError: naming the adapter and its base.
    """
    directory = adapter.directory
    if not (directory / "config.json").is_file():
        without = "no config.json"
    elif weights and not any((directory / name).is_file() for name in _WEIGHT_NAMES):
        without = "no weights of a model"
    else:
        return
    raise RequestError(
        f"{directory} holds {adapter}, but {without}",
        "load its base model with PEFT, merge_and_unload(), save that and give its directory; or put the adapter's "
        "files beside those of its base model, and pass --merge-adapter",
    )


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
