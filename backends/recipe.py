"""The recipe that made a directory, from its ``fxprune.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..demo import name_of_text
from ..ir.call_text import CallKind, OptionCall, Scanner
from ..ir.errors import RequestError
from ..ir.options import BARE

ASKED_FOR = "asked for"
"""Why a result has the free form where the user wanted that."""

ENVIRONMENT = "environment"
"""The key of a recipe that tells where it ran. It has no effect."""

TRAINED = "trained_after"
"""Of the record of a module: whether the user's program changed its weights between the cut and the writing."""

SHA256 = "sha256"
"""Where the digest of a file stands that was read as a text."""

_HEAD = "# Made by `fxprune recipe`. Paths of data and model are those of that machine, their last part alone.\n"

DATA_SETTINGS = {"calibration": "calib", "recovery": "data"}
"""What a text was read as -> the setting that names it."""

_OF_MODULES = ("example", "loss", *DATA_SETTINGS.values())
"""Settings of which the record of a module says what they were."""

_WIDTH = 100
"""Characters of a line, as far as values allow."""

_PASSES = CallKind("pass", "passes", "", "", "")


class _OnOneLine(dict[str, str]):
    """Options of a pass, in braces."""


class _Dumper(yaml.SafeDumper):
    """Writes numbers and words of options without quotes: who reads a recipe takes them as text."""


def _on_one_line(dumper: yaml.SafeDumper, options: _OnOneLine) -> yaml.MappingNode:
    def plain(text: str) -> yaml.ScalarNode:
        tag: str = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return yaml.ScalarNode(tag, text)

    return yaml.MappingNode(
        "tag:yaml.org,2002:map", [(plain(name), plain(value)) for name, value in options.items()], flow_style=True
    )


_Dumper.add_representer(_OnOneLine, _on_one_line)


def recipe_of(record: Mapping[str, Any]) -> str:
    """YAML of the recipe that made a directory, with every option of its passes, and the environment of the run.

    Args:
        record: the content of its ``fxprune.json``.
    """
    recipe: dict[str, Any] = {"model": record["model"]} if record.get("model") else {}  # a module in memory has no name
    if record.get("pipeline"):  # a run that repeats a plan may have none
        recipe["pass"] = _passes(str(record["pipeline"]))
    read: dict[str, list[dict[str, str]]] = {}
    for entry in record.get("texts") or ():
        key = DATA_SETTINGS.get(entry.get("read_as", ""))
        # The demo's model takes its own text where none is given.
        if key is not None and entry["name"] != name_of_text(entry["read_as"]) and key not in recipe:
            recipe[key] = _names(entry)
            if known := [*_digests(entry)]:
                read[key] = known
            for option, said in _reading(key, entry.get("read_from") or {}):
                recipe.setdefault(option, []).append(said)
    for key, one in _asked(record.get("asked")):
        recipe[key] = one["name"]
        if SHA256 in one:
            read[key] = [one]
    # What found by itself that no plain configuration describes it finds that again, and says so in the same words.
    if record.get("form") == "uniform" or (record.get("form"), record.get("why_free")) == ("free", ASKED_FOR):
        recipe["form"] = record["form"]
    told = {name: dict(record.get(name) or {}) for name in ("versions", "source", "parameters")}
    told["versions"] = told["versions"] or {name: record[name] for name in ("fxprune", "torch") if name in record}
    whole = {**recipe, ENVIRONMENT: {**told, **({"texts": read} if read else {})}}
    return (
        _HEAD + _lacking(record) + yaml.dump(whole, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    )


def _asked(asked: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """What a module was pruned with: setting -> its name, and the sha256 of a file. What is of another form is none."""
    for key in _OF_MODULES if isinstance(asked, dict) else ():
        said = asked.get(key)
        named = {"name": said} if isinstance(said, str) else said
        if isinstance(named, dict) and {"name"} <= named.keys() <= {"name", SHA256}:
            yield key, {name: str(value) for name, value in named.items()}


def _lacking(record: Mapping[str, Any]) -> str:
    """Comments on what no recipe can say."""
    lines = []
    if not record.get("model"):
        lines.append("# A program gave the model: name yours on the command line, as MODEL.")
    if record.get(TRAINED):
        lines.append("# The weights were changed after the passes, by a program, which this recipe does not repeat.")
    return "".join(f"{line}\n" for line in lines)


def _passes(pipeline: str) -> str | list[str | dict[str, _OnOneLine]]:
    """The passes of a pipeline, each with its options; a text that is none stays as it is."""
    scanner, found = Scanner(pipeline, _PASSES), []
    try:
        found.append(_pass(scanner.call()))
        while scanner.take(","):
            found.append(_pass(scanner.call()))
        scanner.end("','", "")
    except RequestError:
        return pipeline
    return found


def _pass(call: OptionCall) -> str | dict[str, _OnOneLine]:
    # A word in quotes that could stand without them means another value than without.
    if not call.settings or any(word.quoted and BARE.fullmatch(word.value) for _, word in call.settings):
        return call.span.text[call.span.start : call.span.end]
    return {call.name.value: _OnOneLine({key.value: word.value for key, word in call.settings})}


def _names(entry: Mapping[str, Any]) -> str | list[str]:
    """The name of a text, or those of several that were read as one."""
    files = (entry.get("read_from") or {}).get("files")
    return [str(file["name"]) for file in files] if files else str(entry["name"])


def _digests(entry: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The files of a text, each with its sha256."""
    read_from = entry.get("read_from") or {}
    for file in read_from.get("files") or [{**read_from, "name": entry["name"]}]:
        if digest := file.get(SHA256):
            yield {"name": str(file["name"]), SHA256: str(digest)}


def _reading(key: str, read_from: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How the rows of a text were read: options, and what they say of this text alone."""
    parts = [read_from, *read_from.get("files", ())]
    for option in ("field", "split"):
        yield from {(option, f"{key}={part[option]}") for part in parts if part.get(option)}
