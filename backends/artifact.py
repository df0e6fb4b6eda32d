"""Directories that appear complete or not at all, and the two files that every artifact has beside its model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from ..ir.errors import RequestError
from ..ir.plan import Indices, Plan
from ..runtime.json_object import check_schema, parse_json, read_json_object

PLAN = "fxprune.plan"
"""A safetensors file, but not by its name: vLLM and others read every ``*.safetensors`` of a directory as weights."""

FORMER_PLAN = "plan.safetensors"
"""What it was called in artifacts of earlier versions."""

RECORD = "fxprune.json"

PROGRAM = "model.pt2"
"""The exported program of a pruned module."""

MODULE_KIND = "module"
"""What the record of a pruned module says that it is of."""

_PLAN_HINT = "a plan has keys '<tensor name>:<dimension>' and ascending int64 indices"

_SIZES_KEY = "sizes"
"""Where the metadata of a plan says how many indices each dimension had."""

_DIMENSION = re.compile("0|[1-9][0-9]?", re.ASCII)
"""One way to write each: two entries of a plan are never of the same dimension."""

_LONGEST_KEY = 300
"""Characters of a key that a message shows."""


class Sizes(TypedDict, total=False):
    """Numbers of parameters."""

    before: int
    after: int


class MadeFrom(TypedDict, total=False):
    """The directory that a model was made from, and the sha256 of its weight files and of its other ones."""

    name: str
    sha256: dict[str, str]
    files: dict[str, str]


class ReadText(TypedDict):
    """A text that a run read: see :class:`~fxprune.tracer.texts.fingerprints.Fingerprint`."""

    read_as: str
    name: str
    pieces: int
    passages: str
    short: NotRequired[str]
    total: NotRequired[int]


class AbsentPart(TypedDict):
    """A part of a layer that was taken out."""

    module: str


class DropReport(TypedDict, total=False):
    """What is read of the report of the pass ``drop``."""

    sub_blocks: list[AbsentPart]


class Reports(TypedDict, total=False):
    """The reports of passes."""

    drop: DropReport


class RecordFile(TypedDict, total=False):
    """What is read of a ``fxprune.json``."""

    artifact: str
    form: str
    code: dict[str, str]
    pipeline: str
    rebuilt_because: str | None
    parameters: Sizes | None
    source: MadeFrom | None
    passes: Reports | None
    texts: list[ReadText] | None
    repairs: dict[str, dict[str, list[int | list[int]]]] | None


def refuse_module(directory: Path) -> None:
    """Refuse a directory that holds a pruned module.

    Raises:
        RequestError: it does, and says what to do with it.
    """
    if (directory / PROGRAM).is_file() and not (directory / "config.json").exists():
        raise RequestError(
            f"{directory} holds a pruned module ({PROGRAM}), not a model of transformers",
            "load it with fxprune.load or torch.export.load, and export it with torch.onnx.export (docs/modules.md); "
            "to prune it again, name a package.module:callable that gives it",
        )


def write_plan(folder: Path, plan: Plan) -> None:
    """Write ``fxprune.plan``, a safetensors file: key ``<tensor name>:<dim>``, int64 kept indices; and in its metadata
    how many indices each dimension had. Equal plans give equal bytes."""
    tensors = {f"{name}:{dim}": np.ascontiguousarray(kept, dtype=np.int64) for (name, dim), kept in plan.slices.items()}
    sizes = {f"{name}:{dim}": int(size) for (name, dim), size in plan.sizes.items()}
    metadata = {_SIZES_KEY: json.dumps(sizes, sort_keys=True)} if sizes else None
    save_file(dict(sorted(tensors.items())), folder / PLAN, metadata)


def plan_file(path: Path) -> Path:
    """The plan of an artifact, under its present name or its former one; a path that is no directory is the plan's."""
    if not path.is_dir():
        return path
    former = path / FORMER_PLAN
    return former if former.is_file() and not (path / PLAN).is_file() else path / PLAN


def read_plan(path: Path) -> dict[tuple[str, int], Indices]:
    """The slices of a plan file, or of the plan of an artifact.

    Raises:
        RequestError: the file is missing, damaged, or not a plan.
    """
    path = plan_file(path)
    if not path.is_file():
        raise RequestError(f"{path} does not exist", "give a directory that fxprune wrote")
    try:
        tensors = load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise RequestError(f"{path} is damaged: {error}", "write the artifact again") from error
    except (AttributeError, TypeError) as error:  # a dtype that numpy does not have, such as float8
        raise RequestError(f"{path} is not a plan: {error}", _PLAN_HINT) from error
    slices: dict[tuple[str, int], Indices] = {}
    for key, kept in tensors.items():
        name, _, dim = key.rpartition(":")
        if not name or not _DIMENSION.fullmatch(dim) or kept.dtype != np.int64 or kept.ndim != 1:
            raise RequestError(
                f"{path} is not a plan: its entry '{_shortened(key)}' is {kept.dtype} of shape {kept.shape}", _PLAN_HINT
            )
        if kept.size == 0 or kept[0] < 0 or (np.diff(kept) <= 0).any():
            raise RequestError(
                f"{path}: the indices of '{_shortened(key)}' are empty, negative or not ascending", _PLAN_HINT
            )
        slices[name, int(dim)] = kept
    return slices


def read_sizes(path: Path) -> dict[tuple[str, int], int]:
    """How many indices each sliced dimension had in the model that a plan was made for; empty for plans of earlier
    versions, which do not say it.

    Args:
        path: a plan file that :func:`read_plan` has read.

    Raises:
        RequestError: they are no sizes of what the plan slices.
    """
    with safetensors.safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(_SIZES_KEY)
        keys = set(file.keys())
    if text is None:
        return {}
    sizes = parse_json(text, f"the metadata of {path}", "write the artifact again")
    if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()) or not keys >= set(sizes):
        raise RequestError(
            f"{path} is damaged: the sizes in its metadata are not those of its entries", "write the artifact again"
        )
    return {(key.rpartition(":")[0], int(key.rpartition(":")[2])): size for key, size in sizes.items()}


def _shortened(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}..."


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Readable JSON, keys in the order given."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path, *, links: bool = True) -> dict[str, Any]:
    """The ``fxprune.json`` of an artifact.

    Args:
        folder: the artifact.
        links: whether it may be a link to a file.

    Raises:
        RequestError: the file is missing or damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RequestError(f"{path} does not exist", "give a directory that fxprune wrote")
    record = read_json_object(path, "write the artifact again", links=links)
    check_schema(record, RecordFile, path, "write the artifact again")
    return record
