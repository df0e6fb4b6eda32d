"""How a run differs from the one whose recipe it repeats: other texts, another model, other versions of libraries.

A recipe names files by the last part of their paths. So a colleague's file of the same name may hold another text, and
the result would be other weights, without a word.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...backends.digests import sha256
from ...backends.recipe import DATA_SETTINGS, SHA256
from ...ir.extras import installed_version
from .read import Setting

_DIGITS = 12
"""Digits of a sha256 in a message."""

_VERSIONS = ("fxprune", "torch", "transformers", "safetensors")


def before_the_run(environment: Setting | None, arguments: argparse.Namespace) -> Iterator[str]:
    """What can be told of a run before it begins: its texts and the versions of libraries.

    Args:
        environment: what the recipe says of the run that it was printed from; of any form, since it is data of others.
        arguments: those of the recipe and of the command line.
    """
    for key in DATA_SETTINGS.values():
        files = _at(environment, "texts", key)
        if isinstance(files, list):
            yield from _other_texts(key, files, getattr(arguments, key) or [])
    told = [f"{name} {was}, here {now}" for name, was, now in _versions(environment) if was != now]
    if told:
        yield f"the recipe was made with {'; '.join(told)}: the bytes of the result may differ"


def after_the_run(environment: Setting | None, source: Mapping[str, Any]) -> Iterator[str]:
    """Whether the model had other weights, another configuration or another tokenizer.

    Args:
        environment: as for :func:`before_the_run`.
        source: what ``fxprune.json`` says of the model that was pruned now.
    """
    for key, what in ((SHA256, "other weights"), ("files", "other files of the model")):
        was, now = _texts_of(_at(environment, "source", key)), source.get(key) or {}
        if was and now and was != now:
            names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
            yield f"the recipe was made with {what}: {', '.join(names)}; the result is another one"


def _other_texts(key: str, files: list[Setting], given: list[str]) -> Iterator[str]:
    if len(files) != len(given):
        return
    for file, path in zip(files, given, strict=True):
        said = _texts_of(file.value)
        if (digest := said.get(SHA256)) and os.path.isfile(path) and (found := sha256(Path(path))) != digest:
            yield (
                f"--{key} {path} is not the file {said.get('name')} that the recipe was made with: its sha256 is "
                f"{found[:_DIGITS]}..., in the recipe {digest[:_DIGITS]}...; the result will be another one"
            )


def _versions(environment: Setting | None) -> Iterator[tuple[str, str, str]]:
    """Name, version in the recipe, and version here."""
    said = _texts_of(_at(environment, "versions"))
    for name in _VERSIONS:
        if name in said:
            yield name, said[name], installed_version(name) or "not installed"


def _at(setting: Setting | None, *keys: str) -> Any:
    """The value under some keys, one below the other; None where the recipe has another form."""
    for key in keys:
        setting = setting.value.get(key) if setting is not None and isinstance(setting.value, dict) else None
    return None if setting is None else setting.value


def _texts_of(value: Any) -> dict[str, str]:
    """The entries of a mapping that are texts."""
    entries = value.items() if isinstance(value, dict) else ()
    return {key: one.value for key, one in entries if isinstance(one.value, str)}
