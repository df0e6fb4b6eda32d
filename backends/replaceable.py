"""Which directories ``--force`` may replace: those that hold nothing but a model, so that no other work is lost."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError
from ..runtime.model_files import is_model_file
from .artifact import RECORD, read_record

CONFIG = "config.json"

MODEL_FOLDERS = ("adapter", "onnx")
"""What fxprune itself makes inside an artifact."""

LISTED = "files"
"""The entry of ``fxprune.json`` with the names of all files, or their digests by name."""


def check_replaceable(out: Path) -> None:
    """Refuse to replace a directory that holds anything but a model. An empty directory may be replaced.

    Raises:
        RequestError: naming the first file that belongs to no model.
    """
    try:
        names = sorted(os.listdir(out))
        record = _own_record(out)
        if not names:
            return
        foreign = next(_foreign(out, "", _listed(record)), None)
    except OSError as error:
        raise RequestError(f"{out} cannot be looked into: {error.strerror}", "choose another --out") from error
    if foreign is not None:
        raise RequestError(
            f"{out}/{foreign} belongs to no model, and --force would remove it",
            "move it elsewhere if you need it; --force replaces only models; or choose another --out",
        )
    if record is None and not _is_config(out / CONFIG):
        raise RequestError(f"{out} contains files, but no model", "--force replaces only models; choose another --out")


def list_files(folder: Path) -> None:
    """Complete ``fxprune.json`` in a finished directory with the names of its files, unless it lists them already.
    :func:`check_replaceable` knows them by that. Without that file nothing is done."""
    path = folder / RECORD
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    if isinstance(record, dict) and LISTED not in record:
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        path.write_text(json.dumps({**record, LISTED: names}, indent=2) + "\n", encoding="utf-8")


def _own_record(out: Path) -> dict[str, Any] | None:
    """``fxprune.json``, if fxprune wrote it: other programs may have a file of that name too."""
    path = out / RECORD
    if path.is_symlink() or not path.is_file():
        return None
    try:
        record = read_record(out)
    except (RequestError, RecursionError):
        return None
    versions = record.get("versions")
    marks = (
        isinstance(versions, dict) and "fxprune" in versions,  # of a Hugging Face model, or of an ONNX graph
        isinstance(record.get("fxprune"), str) and "artifact" in record,  # of a module
        isinstance(record.get("format"), str) and LISTED in record,  # of another exporter
        isinstance(record.get("stage"), dict),  # of an interrupted run
    )
    return record if any(marks) else None


def _listed(record: Mapping[str, Any] | None) -> Collection[str]:
    listed = (record or {}).get(LISTED)
    names = {name for name in listed if isinstance(name, str)} if isinstance(listed, list | dict) else set()
    return names | ({"stage.safetensors"} if record is not None and "stage" in record else set())


def _foreign(folder: Path, inside: str, listed: Collection[str]) -> Iterator[str]:
    """Paths of what belongs to no model, relative to the artifact, in order."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = inside + entry.name
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if name in MODEL_FOLDERS or any(one.startswith(f"{name}/") for one in listed):
                yield from _foreign(folder / entry.name, f"{name}/", listed)
            else:
                yield f"{name}/"
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) or not (name in listed or is_model_file(entry.name)):
            yield name
        elif name == RECORD and not listed and _own_record(folder) is None:
            yield name  # of another program


def _is_config(path: Path) -> bool:
    """Whether it is the configuration of a model, and not of anything else that has a ``config.json``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)
