"""The ``config.json`` of a model."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import getattr_static
from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from ...ir.errors import RequestError
from ..json_object import check_schema, read_json_object
from ..size_limits import check_counts

STEERING = {
    "configuration_files": "it makes transformers read another file than the one that is checked",
    "transformers_weights": "it leads to other weights than those that are checked",
    "attribute_map": "it gives entries another meaning",
    "sub_configs": "it replaces the parts of the configuration",
    "sub_configs_defaults": "it replaces the parts of the configuration",
    "_auto_class": "it makes transformers copy code",
}
"""Entries that change how transformers reads the others, or what it reads besides them: nobody needs them in a file."""

LOCAL = {
    "_attn_implementation": (None, "eager", "sdpa", "flex_attention"),
    "_experts_implementation": (None, "eager", "batched_mm", "grouped_mm"),
}
"""Implementations that are part of transformers and PyTorch. For others it may take code of the Hub, also for a name
without an owner: where the package of ``flash_attention_2`` is missing."""


SPECIAL_NUMBERS = ({"__float__": "Infinity"}, {"__float__": "-Infinity"}, {"__float__": "NaN"})
"""How transformers writes the numbers that JSON does not have."""


class FreeForm(TypedDict, total=False):
    """The ``fxprune`` entry of a configuration: shapes by tensor, attributes by module, modules that are gone, and the
    class, as ``module.Class``, of a model that brings its own code."""

    shapes: Required[dict[str, list[int]]]
    attributes: Required[dict[str, dict[str, list[int | list[int]]]]]
    absent: dict[str, dict[str, int | None]]
    own_class: str


class ConfigFile(TypedDict, total=False):
    """What is read of a ``config.json`` besides what the architecture's own class reads."""

    model_type: str | None
    architectures: list[str] | None
    auto_map: dict[str, str | list[str | None]] | None
    dtype: str | dict[str, str | None] | None
    torch_dtype: str | dict[str, str | None] | None
    quantization_config: dict[str, Any] | None
    fxprune: FreeForm


def read_config(file: Path, hint: str) -> dict[str, Any]:
    """The data of a configuration, before transformers reads it.

    Args:
        file: the file.
        hint: what to do where it is damaged.

    Raises:
        RequestError: as :func:`~.json_object.read_json_object`, :func:`~.json_object.check_schema` and
            :func:`~.size_limits.check_counts`.
    """
    raw = read_json_object(file, hint)
    check_schema(raw, ConfigFile, file, hint)
    check_counts(raw, file)
    return raw


def check_entries(raw: dict[str, Any], file: Path, *, own_code: bool) -> None:
    """Refuse what makes transformers do more with a configuration than read values; in its parts too.

    Args:
        raw: the data of the file; its ``fxprune`` entry, which transformers does not read, is checked by its reader.
        file: the file, for messages.
        own_code: whether the user trusts the code of its directory.

    Raises:
        RequestError: naming an entry that steers transformers, that names code for a part of the model, for which
            transformers asks by itself, or that takes the place of a method of the configuration.
    """
    for place, name, value, of_part in _entries({name: raw[name] for name in raw if name != "fxprune"}):
        if name in STEERING and value not in (None, {}):
            raise RequestError(f"{file} has {place!r}: {STEERING[name]}", f"take {place} out of the file")
        if name == "auto_map" and place != name and value and not own_code:
            raise RequestError(
                f"{file} names code for a part of the model: {place!r}",
                "take it out of the file; or read that code, and pass --trust-remote-code if you trust it",
            )
        if name.startswith("__") or (of_part and _is_taken(name)):
            raise RequestError(
                f"{file} has {place!r}, which is no value of a configuration", f"take {place} out of the file"
            )


def check_built(config: Any, file: Path) -> None:
    """Refuse a ``PreTrainedConfig`` that became something else than its file seems to say; its parts too.

    Args:
        config: built from the file.
        file: the file, for messages.

    Raises:
        RequestError: it asks for an implementation that may be code of the Hub, has a value where its class has a
            method, or makes the model return bare tuples.
    """
    from transformers import PreTrainedConfig

    for name, allowed in LOCAL.items():
        if (asked := getattr(config, name, None)) not in allowed:
            raise RequestError(
                f"{file} asks for {name.strip('_')} {asked!r}, which may be code of the Hub",
                f"take {name.strip('_')} out of the file, or set it to eager",
            )
    for name, value in vars(config).items():
        if callable(getattr_static(type(config), name, None)):
            raise RequestError(f"{file} has {name!r}, which is no value of a configuration", f"take {name} out of it")
        if isinstance(value, PreTrainedConfig):
            check_built(value, file)
    if not config.return_dict:
        raise RequestError(f"{file}: 'return_dict' is {config.return_dict!r}", "take return_dict out of the file")


def _is_taken(name: str) -> bool:
    """Whether the class of all configurations has a method, or a property that cannot be set, of this name."""
    from transformers import PreTrainedConfig

    held = getattr_static(PreTrainedConfig, name, None)
    if isinstance(held, property):
        return held.fset is None
    return callable(held) or isinstance(held, classmethod | staticmethod)


def _entries(value: Any, place: str = "", of_part: bool = True) -> Iterator[tuple[str, str, Any, bool]]:
    """All entries of nested objects: where, name, value, and whether the object describes the model or a part of it."""
    for name, item in value.items() if isinstance(value, dict) and value not in SPECIAL_NUMBERS else ():
        where = f"{place}.{name}" if place else name
        yield where, name, item, of_part
        yield from _entries(item, where, "model_type" in item if isinstance(item, dict) else False)
    for item in value if isinstance(value, list) else ():
        yield from _entries(item, place, False)
