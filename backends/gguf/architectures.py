"""What llama.cpp needs to know of an architecture, read from ``architectures.json``, and what its code fixes.

A row belongs to a ``model_type`` of transformers. ``name`` is the architecture of llama.cpp that computes the same
function where ``requires``, ``equals`` and ``patterns`` hold; all other fields have the values below when left out.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError

OTHER_FORMAT = "export it with --format onnx, which holds any model"


@dataclass(frozen=True)
class Architecture:
    """A row of ``architectures.json``.

    Attributes:
        name: what llama.cpp calls it.
        biases: the parts that may have a bias.
        requires: field of the configuration -> values at which llama.cpp computes the same.
        equals: field -> another that must have the same value.
        patterns: field with a value per layer -> ``period``, the ``usual`` value and the ``last`` one of each period.
        settings: key in the file, without the name -> where its value comes from, see :func:`setting`.
        permuted: whether llama.cpp rotates neighbours, so that the rows of queries and keys change places.
        square: whether its code takes heads x head size to be the width of the model.
        free: the architecture that takes widths per layer, "" when there is none.
        rope_factors: whether it reads a factor for every frequency of rotation.
        keeps_output: whether an output head that is tied to the embedding must be written too.
        adds_one: names of tensors to which 1 is added, with ``*``: norms that transformers stores so.
        fused_heads, fused_gate: whether queries, keys and values, or gate and up, are in one matrix.
        interleaved: whether transformers' fused matrix lists for each head of keys its query heads, itself, its values.
        norms_across_heads: norms that are computed over all heads together.
        places: name of a tensor in transformers -> in the file, for those that the package gguf does not know.
        head_sizes: attributes of a module of attention that hold the size of a head.
    """

    name: str
    biases: tuple[str, ...]
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    equals: Mapping[str, str] = field(default_factory=dict)
    patterns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    permuted: bool = False
    square: bool = False
    free: str = ""
    rope_factors: bool = False
    keeps_output: bool = False
    adds_one_to: tuple[str, ...] = ()
    fused_heads: bool = False
    fused_gate: bool = False
    interleaved: bool = False
    norms_across_heads: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    head_sizes: tuple[str, ...] = ()

    def adds_one(self, name: str) -> bool:
        """Whether 1 is added to a tensor, by its name in the file."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.adds_one_to)

    def place(self, name: str) -> str | None:
        """The name in the file of a tensor that the package gguf does not know."""
        return self.places.get(name)


@functools.cache
def _table() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((Path(__file__).parent / "architectures.json").read_text(encoding="utf-8"))
    return data


def supported() -> tuple[str, ...]:
    """The ``model_type`` of every row."""
    return tuple(sorted(_table()["models"]))


def architecture(model_type: str) -> Architecture | None:
    """The row of an architecture of transformers, whatever its configuration says; None when there is none."""
    data = _table()
    entry = data["models"].get(model_type)
    if entry is None:
        return None
    lists = {key: tuple(entry[key]) for key in ("biases", "norms_across_heads") if key in entry}
    plain = {key: value for key, value in entry.items() if key not in lists and key not in ("adds_one", "settings")}
    return Architecture(
        **{**plain, **lists},
        adds_one_to=tuple(entry.get("adds_one", ())),
        settings={**data["settings"], **entry.get("settings", {})},
        head_sizes=tuple(data["head_sizes"]),
    )


def find_architecture(config: Any, name: str) -> Architecture:
    """The row of a configuration.

    Args:
        config: a text configuration of transformers.
        name: the model, for messages.

    Raises:
        RequestError: there is no row, or llama.cpp computes something else for a value of the configuration.
    """
    row = architecture(config.model_type)
    if row is None:
        raise RequestError(
            f"{name} is a {config.model_type!r} model, which the format gguf does not know",
            f"it knows {', '.join(supported())}; or {OTHER_FORMAT}",
        )
    _check(row, config, name)
    return row


def _check(row: Architecture, config: Any, name: str) -> None:
    for key, values in row.requires.items():
        if (value := getattr(config, key, values[0])) not in values:
            raise RequestError(
                f"{name} has {key} {value!r}, and llama.cpp's {row.name} computes with {_either(values)}", OTHER_FORMAT
            )
    for key, other in row.equals.items():
        if (value := getattr(config, key, None)) != (same := getattr(config, other, None)):
            raise RequestError(
                f"{name} has {key} {value!r}, and llama.cpp's {row.name} takes {other}, {same!r}, for it", OTHER_FORMAT
            )
    for key, pattern in row.patterns.items():
        period = pattern["period"]
        for number, value in enumerate(getattr(config, key, None) or ()):
            wanted = pattern["usual"] if (number + 1) % period else pattern["last"]
            if value != wanted:
                raise RequestError(
                    f"{name} has {key} {value!r} in layer {number}, and llama.cpp's {row.name}, which repeats every "
                    f"{period} layers, computes with {wanted!r}",
                    f"drop no layers, or parts of layers instead; or {OTHER_FORMAT}",
                )


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(repr(value) for value in values)


def setting(config: Any, source: Any) -> Any:
    """The value of a setting; None when the configuration has none.

    Args:
        config: of the model.
        source: the name of a field; a number; or ``{"first": [fields], "else": value}``.
    """
    if isinstance(source, str):
        return getattr(config, source, None)
    if not isinstance(source, Mapping):
        return source
    found = (getattr(config, name, None) for name in source["first"])
    return next((value for value in found if value is not None), source.get("else"))
