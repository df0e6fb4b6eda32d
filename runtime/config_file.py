"""The ``config.json`` of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Required

from typing_extensions import TypedDict

from .json_object import check_schema, read_json_object
from .size_limits import check_counts


class FreeForm(TypedDict, total=False):
    """The ``fxprune`` entry of a configuration: shapes by tensor, attributes by module, and modules that are gone."""

    shapes: Required[dict[str, list[int]]]
    attributes: Required[dict[str, dict[str, list[int | list[int]]]]]
    absent: dict[str, dict[str, int | None]]


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
