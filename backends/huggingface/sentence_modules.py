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

MODULE_LIST = "modules.json"
FIRST_MODULE = "sentence_bert_config.json"
PROMPT_FILE = "config_sentence_transformers.json"

SENTENCE_PACKAGE = "sentence_transformers."
FILES_OF_MODULE = {
    "Transformer": (),
    "Pooling": ("config.json",),
    "Normalize": (),
    "Dense": ("config.json", "model.safetensors"),
}
"""Class of a module -> the files that its folder has; all are data."""

MODULE_FOLDER = re.compile(r"\d+_\w+")

WIDTH_NAMES = ("word_embedding_dimension", "embedding_dimension")
"""Under which a mean over tokens has the width of its input."""

SETTINGS_READ = ("max_seq_length", "do_lower_case")
"""Settings of the first module. Others are arguments for whatever it loads, which may be code."""

_COPY_AGAIN = "copy or download the model again"


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
    if not (source / MODULE_LIST).is_file():
        return []
    try:
        modules = parse_json((source / MODULE_LIST).read_text(encoding="utf-8"), str(source / MODULE_LIST), _COPY_AGAIN)
        if why := _why_not(modules, changed=width != was):
            return [f"{MODULE_LIST}, {why}"]
        for module in modules:
            _copy_module(source / str(module["path"]), folder, _kind(module), width)
    except (RequestError, UnicodeDecodeError) as error:
        return [f"{MODULE_LIST}, which is damaged: {error}"]
    write_json(folder / MODULE_LIST, modules)
    if (source / PROMPT_FILE).is_file():
        copy_model_file(source / PROMPT_FILE, folder)
    return _copy_settings(source, folder)


def _why_not(modules: Any, *, changed: bool) -> str:
    """Why modules cannot be copied; "" when they can."""
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        return "which lists no modules"
    for module in modules:
        kind = _kind(module)
        if not module["type"].startswith(SENTENCE_PACKAGE) or kind not in FILES_OF_MODULE:
            return f"whose {module['type']} is not known to be data"
        if kind == "Dense" and changed:
            return f"whose {module['type']} takes states of the width before"
        if kind == "Transformer":
            if module["path"]:
                return f"whose model is in the folder {module['path']}"
        elif not MODULE_FOLDER.fullmatch(module["path"]):
            return f"whose {module['path']!r} is no name that sentence-transformers gives a folder"
    return ""


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _copy_module(module: Path, folder: Path, kind: str, width: int | None) -> None:
    """Copy the files of one module; one that reads the width of the model gets the new one."""
    for name in FILES_OF_MODULE[kind]:
        into = folder / module.name
        into.mkdir(exist_ok=True)
        copy_model_file(module / name, into)
        if kind == "Pooling":
            config = read_json_object(into / name, _COPY_AGAIN)
            write_json(into / name, {key: width if key in WIDTH_NAMES else value for key, value in config.items()})


def _copy_settings(source: Path, folder: Path) -> list[str]:
    if not (source / FIRST_MODULE).is_file():
        return []
    settings = read_json_object(source / FIRST_MODULE, _COPY_AGAIN)
    write_json(folder / FIRST_MODULE, {name: settings[name] for name in SETTINGS_READ if name in settings})
    gone = sorted(settings.keys() - set(SETTINGS_READ))
    return [f"{', '.join(gone)} of {FIRST_MODULE}"] if gone else []
