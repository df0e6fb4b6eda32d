"""What sentence-transformers reads beside a model: which modules follow it, such as a mean over tokens.

Without these files it would take its default, and give other vectors than those of the source without a word.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError
from ...runtime.json_object import parse_json, read_json_object
from ...runtime.model_files import copy_model_file
from ..artifact import write_json

LIST = "modules.json"
SETTINGS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"

PACKAGE = "sentence_transformers."
KNOWN = {"Transformer": (), "Pooling": ("config.json",), "Normalize": (), "Dense": ("config.json", "model.safetensors")}
"""Class of a module -> the files that its folder has; all are data."""

FOLDER = re.compile(r"\d+_\w+")

WIDTH = ("word_embedding_dimension", "embedding_dimension")
"""Under which a mean over tokens has the width of its input."""

READ = ("max_seq_length", "do_lower_case")
"""Settings of the first module. Others are arguments for whatever it loads, which may be code."""

_AGAIN = "copy or download the model again"


def copy_sentence_modules(source: Path, folder: Path, *, width: int | None, was: int) -> list[str]:
    """Copy them from a model directory to what was made of it, with its width.

    Args:
        source: the directory of the source; most have none of these files.
        folder: the directory that is written.
        width: of the states that the model gives now; None when that is not known.
        was: that of the source.

    Returns:
        What was not copied, in words.
    """
    if not (source / LIST).is_file():
        return []
    try:
        modules = parse_json((source / LIST).read_text(encoding="utf-8"), str(source / LIST), _AGAIN)
        if why := _why_not(modules, source, changed=width != was):
            return [f"{LIST}, {why}"]
        for module in modules:
            _copy_module(source / str(module["path"]), folder, _kind(module), width)
    except (RequestError, UnicodeDecodeError) as error:
        return [f"{LIST}, which is damaged: {error}"]
    write_json(folder / LIST, modules)
    if (source / PROMPTS).is_file():
        copy_model_file(source / PROMPTS, folder)
    return _copy_settings(source, folder)


def _why_not(modules: Any, source: Path, *, changed: bool) -> str:
    """Why modules cannot be copied; "" when they can."""
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        return "which lists no modules"
    for module in modules:
        kind = _kind(module)
        if not module["type"].startswith(PACKAGE) or kind not in KNOWN:
            return f"whose {module['type']} is not known to be data"
        if kind == "Dense" and changed:
            return f"whose {module['type']} takes states of the width before"
        if kind == "Transformer":
            if module["path"]:
                return f"whose model is in the folder {module['path']}"
        elif not FOLDER.fullmatch(module["path"]):
            return f"whose {module['path']!r} is no name that sentence-transformers gives a folder"
    return ""


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _copy_module(module: Path, folder: Path, kind: str, width: int | None) -> None:
    """Copy the files of one module; one that reads the width of the model gets the new one."""
    for name in KNOWN[kind]:
        into = folder / module.name
        into.mkdir(exist_ok=True)
        copy_model_file(module / name, into)
        if kind == "Pooling":
            config = read_json_object(into / name, _AGAIN)
            write_json(into / name, {key: width if key in WIDTH else value for key, value in config.items()})


def _copy_settings(source: Path, folder: Path) -> list[str]:
    if not (source / SETTINGS).is_file():
        return []
    settings = read_json_object(source / SETTINGS, _AGAIN)
    write_json(folder / SETTINGS, {name: settings[name] for name in READ if name in settings})
    gone = sorted(settings.keys() - set(READ))
    return [f"{', '.join(gone)} of {SETTINGS}"] if gone else []
