"""A recipe, read from YAML: entries with their lines, ``extends`` and ``variables`` resolved.

A recipe often comes from somebody else. It is data: nothing that it says runs here, and what would allow code to run,
or files to be replaced, is for the command line alone; see :mod:`settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import yaml

from ...backends.recipe import ENVIRONMENT
from ...ir.call_text import did_you_mean
from ...ir.errors import RequestError
from ...runtime.model_directory.regular_file import open_regular

LARGEST_RECIPE = 1 << 20
"""Bytes of a recipe."""

MOST_EXTENDED = 8
"""Recipes that extend one another."""

OWN_RECIPES = Path(__file__).parents[2] / "recipes"
"""Where the recipes of fxprune are."""

RECIPE_SUFFIXES = (".yaml", ".yml")

EXTENDS, VARIABLES = "extends", "variables"

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Setting:
    """What a recipe says under one key.

    Attributes:
        value: a text as it stands in the file, a list, or a mapping of such.
        where: file and line, for messages.
    """

    value: str | list[Setting] | dict[str, Setting]
    where: str

    def error(self, message: str, hint: str) -> RequestError:
        return RequestError(f"{self.where}: {message}", hint)


def own_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with fxprune."""
    return {path.stem: path for path in sorted(OWN_RECIPES.glob("*.yaml"))}


def description(path: Path) -> str:
    """The comment at the top of a recipe, in one line."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def read_recipe(name: str, variables: Mapping[str, str]) -> dict[str, Setting]:
    """The entries of a recipe, and of those that it extends.

    Args:
        name: a file, or the name of a recipe of fxprune.
        variables: values that replace those in the file.

    Returns:
        Key -> entry; under ``environment`` what a printed recipe tells of the run that it was printed from.

    Raises:
        RequestError: it is missing, no YAML, or says what no recipe can; with file and line.
    """
    entries = _extended(_found(name), ())
    held = entries.pop(VARIABLES, None)
    known = _texts(held) if held is not None else {}
    for variable in variables:
        if variable not in known:
            raise RequestError(
                f"recipe '{name}' has no variable '{variable}'",
                did_you_mean(variable, known) + f"its variables: {', '.join(known) or 'none'}",
            )
    values = {**known, **variables}
    return {key: entry if key == ENVIRONMENT else _filled(entry, values) for key, entry in entries.items()}


def _found(name: str) -> Path:
    path = Path(name).expanduser()
    own = own_recipes()
    if path.suffix in RECIPE_SUFFIXES:
        return path
    if name in own:
        return own[name]
    raise RequestError(
        f"there is no recipe '{name}'", did_you_mean(name, own) + f"give a .yaml file, or one of {', '.join(own)}"
    )


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Setting]:
    """The entries of a file on top of those of the one that it extends."""
    entries = _entries(path)
    extends = entries.pop(EXTENDS, None)
    if extends is None:
        return entries
    if not isinstance(extends.value, str):
        raise extends.error("'extends' is no text", "name one recipe")
    base = extends.value if extends.value in own_recipes() else str(path.parent / extends.value)
    try:
        under = _found(base)
    except RequestError as error:
        raise extends.error(error.message, error.hint) from None
    if under.resolve() in {one.resolve() for one in (*above, path)} or len(above) >= MOST_EXTENDED:
        raise extends.error(
            f"'{extends.value}' extends this recipe, or is the {MOST_EXTENDED}th in a row",
            "put what they share into one file",
        )
    below = _extended(under, (*above, path))
    if VARIABLES in below and VARIABLES in entries:
        lower, upper = _mapping(below[VARIABLES]), _mapping(entries[VARIABLES])
        entries[VARIABLES] = Setting({**lower, **upper}, entries[VARIABLES].where)
    return {**below, **entries}


def _entries(path: Path) -> dict[str, Setting]:
    try:
        with open_regular(path, links=True) as file:
            content = file.read(LARGEST_RECIPE + 1)
    except OSError as error:
        raise RequestError(f"recipe '{path}' cannot be read: {error.strerror}", "check the path") from None
    if len(content) > LARGEST_RECIPE:
        raise RequestError(f"recipe '{path}' is larger than {LARGEST_RECIPE:,} bytes", "a recipe is a few lines")
    hint = "write `key: value` on lines of their own; see `fxprune recipe`"
    try:
        text = content.decode("utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                where = f"{path}, line {event.start_mark.line + 1}" if event.start_mark else str(path)
                raise RequestError(f"{where}: *{event.anchor} stands for something else", "write it out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise RequestError(f"recipe '{path}' is not UTF-8 text", hint) from None
    except RecursionError:
        raise RequestError(f"recipe '{path}' is nested too deep", hint) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise RequestError(f"{path}{at}: {getattr(error, 'problem', None) or error}", hint) from None
    if root is None:
        raise RequestError(f"recipe '{path}' is empty", hint)
    found = _entry(root, path)
    return _mapping(found)


def _entry(node: yaml.Node, path: Path) -> Setting:
    where = f"{path}, line {node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode):
        return Setting(node.value, where)
    if isinstance(node, yaml.SequenceNode):
        return Setting([_entry(one, path) for one in node.value], where)
    held: dict[str, Setting] = {}
    for key, value in node.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise RequestError(f"{line}: a key that is no text", "write `key: value`")
        if key.value in held:
            raise RequestError(f"{line}: '{key.value}' stands twice", f"keep one; the other: {held[key.value].where}")
        entry = _entry(value, path)
        held[key.value] = Setting(entry.value, line)
    return Setting(held, where)


def _mapping(entry: Setting) -> dict[str, Setting]:
    if not isinstance(entry.value, dict):
        raise entry.error("no mapping of keys to values", "write `key: value` on lines of their own")
    return entry.value


def _texts(entry: Setting) -> dict[str, str]:
    held = {}
    for name, value in _mapping(entry).items():
        if not isinstance(value.value, str):
            raise value.error(f"variable '{name}' is no text or number", "give one value")
        held[name] = value.value
    return held


def _filled(entry: Setting, variables: Mapping[str, str]) -> Setting:
    """An entry with the values of variables in place of ``${name}``."""
    if isinstance(entry.value, list):
        return Setting([_filled(one, variables) for one in entry.value], entry.where)
    if isinstance(entry.value, dict):
        return Setting({key: _filled(one, variables) for key, one in entry.value.items()}, entry.where)

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise entry.error(
                f"there is no variable '{match[1]}'",
                did_you_mean(match[1], variables) + f"variables: {', '.join(variables) or 'none'}",
            )
        return variables[match[1]]

    return Setting(_VARIABLE.sub(value, entry.value), entry.where)


def leaves(entry: Setting) -> Iterator[Setting]:
    """The texts in an entry."""
    if isinstance(entry.value, str):
        yield entry
    else:
        for one in entry.value if isinstance(entry.value, list) else entry.value.values():
            yield from leaves(one)
