"""Which directories ``--force`` may replace: those that hold nothing but a model, so that no other work is lost.

A ``fxprune.json`` may have come with a download. So what it lists is no reason to remove a file: the name must be one
that models have, or the content the one that was recorded when the file was written. Files with names of models are not
hashed, neither when they are written nor when they are replaced: these are the large ones, and their names tell enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError
from ..runtime.json_object import read_json_object
from ..runtime.model_directory.regular_file import open_regular
from ..runtime.model_files import is_model_file
from .artifact import RECORD, read_record
from .digests import sha256

CONFIG = "config.json"

CARD = "README.md"
"""The model card."""

MODEL_FOLDERS = ("adapter", "onnx")
"""What fxprune itself makes inside an artifact."""

STAGE = "stage.safetensors"
"""What an interrupted run has saved; its record has an entry ``stage``."""

LISTED = "files"
"""The entry of ``fxprune.json`` with the sha256 of files by name; None for a name that models have. Until 0.1.0 it was
the list of the names for some formats, which is no reason to remove what models do not have."""


def check_replaceable(out: Path, *, export: str | None = None) -> None:
    """Refuse to replace a directory that holds anything but a model. An empty directory may be replaced.

    Args:
        out: the directory.
        export: the format of an export, which replaces only an export of the same format: any other model may be the
            one that the export was made from, and the only one.

    Raises:
        RequestError: naming the first file that belongs to no model, or the format.
    """
    try:
        names = sorted(os.listdir(out))
        record = _own_record(out)
        if not names:
            return
        foreign = next(_foreign(out, "", record), None)
    except OSError as error:
        raise RequestError(f"{out} cannot be looked into: {error.strerror}", "choose another --out") from error
    if foreign == CARD and CARD in _listed(record):
        raise RequestError(
            f"{out}/{CARD} was changed after fxprune wrote it, and --force would remove the changes",
            "move it elsewhere if you need it; or choose another --out",
        )
    if foreign is not None:
        raise RequestError(
            f"{out}/{foreign} belongs to no model, and --force would remove it",
            "move it elsewhere if you need it; --force replaces only models; or choose another --out",
        )
    if record is None and not _is_config(out / CONFIG):
        raise RequestError(f"{out} contains files, but no model", "--force replaces only models; choose another --out")
    if export is not None and (record or {}).get("format") != export:
        raise RequestError(
            f"{out} holds a model that is no {export} export of fxprune, and --force would remove it",
            f"--force of an export replaces only an earlier {export} export; choose another --out",
        )


def list_files(folder: Path) -> None:
    """Complete ``fxprune.json`` in a finished directory with its files, unless it lists them already, and the sha256 of
    those that have no name of a model. :func:`check_replaceable` knows them by that. Without that file nothing is done.
    """
    path = folder / RECORD
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    if isinstance(record, dict) and LISTED not in record:
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
        listed = {name: None if _has_name_of_model(name) else sha256(files[name]) for name in sorted(files)}
        path.write_text(json.dumps({**record, LISTED: listed}, indent=2) + "\n", encoding="utf-8")


def _own_record(out: Path) -> dict[str, Any] | None:
    """``fxprune.json``, if fxprune wrote it: other programs may have a file of that name too."""
    path = out / RECORD
    if path.is_symlink() or not path.is_file():
        return None
    try:
        record = read_record(out, links=False)
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


def _listed(record: Mapping[str, Any] | None) -> dict[str, str]:
    """Name -> sha256 of the files that may be removed where that is what they hold."""
    listed = (record or {}).get(LISTED)
    items = listed.items() if isinstance(listed, dict) else ()
    return {name: digest for name, digest in items if isinstance(digest, str)}


def _has_name_of_model(name: str) -> bool:
    """Whether a path in an artifact is one that models have, or that fxprune gives to what it writes."""
    folder, _, file = name.rpartition("/")
    return folder in ("", *MODEL_FOLDERS) and is_model_file(file)


def _foreign(folder: Path, inside: str, record: Mapping[str, Any] | None) -> Iterator[str]:
    """Paths of what belongs to no model, relative to the artifact, in order."""
    listed = _listed(record)
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = inside + entry.name
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if name in MODEL_FOLDERS or any(one.startswith(f"{name}/") for one in listed):
                yield from _foreign(folder / entry.name, f"{name}/", record)
            else:
                yield f"{name}/"
        elif not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)) or not _may_go(Path(entry), name, record):
            yield name


def _may_go(path: Path, name: str, record: Mapping[str, Any] | None) -> bool:
    """Whether a file is one that models have, or that fxprune wrote."""
    if record is None:
        return name != RECORD and _has_name_of_model(name)
    if name == CARD and name in _listed(record):  # it is there to be edited, and what the user wrote is not ours
        return _holds(path, _listed(record)[name])
    made = _has_name_of_model(name) or (name == STAGE and "stage" in record)
    return made or _holds(path, _listed(record).get(name))


def _holds(path: Path, digest: str | None) -> bool:
    """Whether a file holds what was recorded."""
    if digest is None:
        return False
    try:
        with open_regular(path, links=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError:
        return False


def _is_config(path: Path) -> bool:
    """Whether it is the configuration of a model, and not of anything else that has a ``config.json``."""
    try:
        config = read_json_object(path, "", links=False)
    except RequestError:
        return False
    return "model_type" in config or "architectures" in config
