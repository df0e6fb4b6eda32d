"""What a recipe says, as arguments of the command line.

The command's own parser says which keys there are, so that a recipe can say what a command can. Some it cannot: what
allows code to run or files to be replaced, and names of functions, which run when they are read. A recipe often comes
from somebody else; these are for the one who types the command.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import PurePath

from ...backends.recipe import ENVIRONMENT
from ...ir.call_text import did_you_mean
from ...ir.errors import RequestError
from ...ir.options import word
from .read import Setting, leaves, read_recipe

_MODEL_KEY, _PASS_KEY = "model", "pass"

NOT_HERE = {
    "trust_remote_code": "it allows code to run", "allow_pickle": "it allows code to run",
    "merge_adapter": "it changes the model", "force": "it allows files to be replaced",
    "resume": "it belongs to one run", "dry_run": "it belongs to one run", "json": "it belongs to one run",
    "full": "it belongs to one run", "debug": "it belongs to one run",
    "log_file": "it is written to, wherever it is",
    "recipe": "use `extends`", "set": "use `variables`", "help": "it is no setting",
}  # fmt: skip
"""Options of the command line that no recipe can give -> why."""

FUNCTIONS = (_MODEL_KEY, "loss", "calib", "data")
"""Keys whose value may be ``package.module:function``."""

NAMED_BY_LAST_PART = (_MODEL_KEY, "calib", "data")
"""Keys of which a recipe that was printed from a result says the last part of a path."""

PLACES = ("out", "scores")
"""Keys that name what is written."""

REPEATABLE = {"--pass": "passes", "--calib": "calib", "--data": "data", "--field": "field", "--split": "split"}
"""Options that may be repeated, of which those of the command line take the place of the recipe's -> attribute."""

_PLACES = {_PASS_KEY: "passes", "for": "runtime"}
"""Keys of a recipe whose attribute has another name."""

_MISSING = "there is no "
"""How a message begins that says that nothing is at a path."""

BY_CHANCE = 2
"""Characters of a value that a message may hold by chance."""

_FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class RecipeValue:
    """A value that a recipe gave.

    Attributes:
        key: of the recipe.
        text: the value.
        where: file and line.
        names: whether it names a pass or an option of one, which messages about their values name too.
    """

    key: str
    text: str
    where: str
    names: bool = False

    def nearness(self, message: str) -> int:
        """How surely a message is about it: 3 with the key and the value, 2 by the value, 1 by the option, 0 if it is
        not."""
        if self.names:
            return int(f"'{self.text}'" in message)
        if _stands_in(f"{self.key}={self.text}", message):
            return 3
        values = {self.text, str(PurePath(self.text))}
        if any(len(value) > BY_CHANCE and _stands_in(value, message) for value in values):
            return 2
        return int(_stands_in(f"--{self.key.replace('_', '-')}", message))


def _stands_in(text: str, message: str) -> bool:
    """Whether a message holds a text as a word of its own."""
    return re.search(rf"(?<![\w.-]){re.escape(text)}(?![\w-])", message) is not None


def arguments_of(entries: Mapping[str, Setting], parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Option -> its words on the command line; the model, which has no option, under ``""``.

    Args:
        entries: of a recipe.
        parser: of the command.

    Raises:
        RequestError: a key that the command does not have, a value that it does not take, or one that is for the
            command line alone; with file and line.
    """
    options = {action.dest: action for action in parser._actions if action.option_strings}
    by_key = {_key(action): action for action in options.values()}
    known = [_MODEL_KEY, *(key for key in by_key if key not in NOT_HERE)]
    found: dict[str, list[str]] = {}
    _refuse_functions(entries)
    for key, entry in entries.items():
        if key in NOT_HERE:
            raise entry.error(f"no recipe can say '{key}': {NOT_HERE[key]}", "give it on the command line")
        if key not in known:
            raise entry.error(
                f"there is no setting '{key}'", did_you_mean(key, known) + f"settings: {', '.join(known)}"
            )
        if key == _MODEL_KEY:
            found[""] = [_text(entry)]
        elif key == _PASS_KEY:
            found["--pass"] = [f"--pass={one}" for one in _passes(entry)]
        else:
            found[by_key[key].option_strings[0]] = list(_words(by_key[key], entry))
    return found


def with_recipe(arguments: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, and those of its recipe for what it does not say itself.

    Args:
        arguments: of the command alone.
        words: that they were parsed from, behind the name of the command.

    Returns:
        The arguments, with ``origins``, what :func:`origins_of` says of them, and ``environment``, what the recipe
        tells of the run that it was printed from.

    Raises:
        RequestError: as :func:`arguments_of` and :func:`read_recipe`; or there is no model.
    """
    parser: argparse.ArgumentParser = arguments.parser
    variables = dict(_variable(text) for text in arguments.set)
    entries: Mapping[str, Setting] = {}
    environment: Setting | None = None
    if variables and not arguments.recipe:
        raise RequestError("--set without --recipe", "name the recipe whose variables are set")
    if arguments.recipe:
        read = read_recipe(arguments.recipe, variables)
        environment = read.pop(ENVIRONMENT, None)
        # What the command says itself, a recipe may name a function for: nothing of it runs.
        entries = {key: one for key, one in read.items() if key not in FUNCTIONS or not getattr(arguments, key, None)}
        settings = arguments_of(entries, parser)
        model = settings.pop("") if "" in settings else []
        said = [option for option, name in REPEATABLE.items() if getattr(arguments, name)]
        before = [word for option, one in settings.items() if option not in said for word in one]
        arguments = parser.parse_args([*before, *words, *(model if arguments.model is None else [])])
    if arguments.model is None:
        parser.error("the following arguments are required: MODEL")
    arguments.origins = origins_of(entries, arguments)
    arguments.environment = environment
    return arguments


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise RequestError(f"--set '{text}' sets nothing", "write --set NAME=VALUE")
    return name, value


def _key(action: argparse.Action) -> str:
    return max(action.option_strings, key=len).removeprefix("--").replace("-", "_")


def _text(entry: Setting) -> str:
    if not isinstance(entry.value, str):
        raise entry.error("a list or mapping in the place of one value", "give a text or number")
    return entry.value


def _words(action: argparse.Action, entry: Setting) -> Iterable[str]:
    """The words of one option."""
    option = action.option_strings[0]
    if action.nargs == 0:
        value = _text(entry).lower()
        if value not in ("true", "false"):
            raise entry.error(f"'{value}' is neither true nor false", "write true or false")
        return [option] if value == "true" else []
    values = entry.value if isinstance(entry.value, list) else [entry]
    many = isinstance(action, argparse._AppendAction)
    if len(values) != 1 and not many:
        raise entry.error("a list in the place of one value", "give one")
    texts = [_text(one) for one in values]
    for text in texts:
        if action.choices is not None and text not in action.choices:
            choices = [str(one) for one in action.choices]
            raise entry.error(f"'{text}' is none of {', '.join(choices)}", did_you_mean(text, choices) + "choose one")
        if action.dest in PLACES and (PurePath(text).is_absolute() or ".." in PurePath(text).parts):
            raise entry.error(f"'{text}' leads out of the working directory", f"give {option} on the command line")
    return [f"{option}={text}" for text in texts]


def _passes(entry: Setting) -> list[str]:
    """Pipelines: a text, or a list of texts and of mappings from a pass to its options."""
    if isinstance(entry.value, dict):
        raise entry.error("a mapping in the place of a list of passes", "write a list: `- taylor: {samples: 10}`")
    listed = entry.value if isinstance(entry.value, list) else [entry]
    if not listed or any(isinstance(one.value, str) and not one.value.strip() for one in listed):
        raise entry.error("no pass is named", "write a list: `- taylor: {samples: 10}`")
    return [_pass(one) for one in listed]


def _pass(entry: Setting) -> str:
    if isinstance(entry.value, str):
        return entry.value
    if isinstance(entry.value, list) or len(entry.value) != 1:
        raise entry.error("no pass with its options", "write `- taylor: {samples: 10}`")
    ((name, options),) = entry.value.items()
    if isinstance(options.value, list):
        raise options.error(f"a list in the place of the options of '{name}'", "write `{samples: 10}`")
    if isinstance(options.value, str):
        return f"{name}{options.value}" if options.value.startswith("{") else name
    return name + "{" + ",".join(f"{key}={word(_text(value))}" for key, value in options.value.items()) + "}"


def origins_of(entries: Mapping[str, Setting], arguments: argparse.Namespace) -> tuple[RecipeValue, ...]:
    """What of the arguments a recipe said.

    Args:
        entries: of the recipe.
        arguments: those of the recipe and those of the command line, which win.
    """
    found: list[RecipeValue] = []
    for key, entry in entries.items():
        held = getattr(arguments, _PLACES.get(key, key), None)
        known = held if isinstance(held, list) else [held]
        # A pass is a text with its options, one inside the other.
        found += [one for one in _said(key, entry) if one.text in known or (key == _PASS_KEY and _is_in(one, known))]
    return tuple(found)


def _said(key: str, entry: Setting) -> Iterator[RecipeValue]:
    """The values in an entry, by the innermost key; and the keys in it, which are passes and their options."""
    if isinstance(entry.value, str):
        yield RecipeValue(key, entry.value, entry.where, names=key == _PASS_KEY and "{" not in entry.value)
    elif isinstance(entry.value, list):
        for one in entry.value:
            yield from _said(key, one)
    else:
        for inner, one in entry.value.items():
            yield RecipeValue(key, inner, one.where, names=True)
            yield from _said(inner, one)


def _is_in(one: RecipeValue, pipelines: Iterable[object]) -> bool:
    return any(one.text in str(text) for text in pipelines)


def with_line(error: RequestError, origins: Iterable[RecipeValue]) -> None:
    """Put in front of a message where the value that it names stands in a recipe, if it stands in one."""
    near = [(nearness, len(one.text), one.where, one) for one in origins if (nearness := one.nearness(error.message))]
    if not near:
        return
    *_, where, one = max(near, key=lambda found: found[:3])
    if error.message.startswith(_MISSING) and one.key in NAMED_BY_LAST_PART:
        option = "as MODEL" if one.key == _MODEL_KEY else f"with --{one.key}"
        error.hint = f"a recipe has the last part of a path alone: give yours on the command line, {option}"
    error.message = f"{where}: {error.message}"


def _refuse_functions(entries: Mapping[str, Setting]) -> None:
    """Run no function because a recipe names it.

    Raises:
        RequestError: with the line of the first, and what to write for all.
    """
    found = [(key, leaf) for key in FUNCTIONS if key in entries for leaf in leaves(entries[key]) if _runs(key, leaf)]
    if not found:
        return
    words = " ".join(str(leaf.value) if key == _MODEL_KEY else f"--{key} {leaf.value}" for key, leaf in found)
    where = f"as MODEL{'' if len(found) == 1 else ' and options'}" if found[0][0] == _MODEL_KEY else "as an option"
    _, first = found[0]
    raise first.error(
        f"'{first.value}' names a function, which would run",
        f"if you trust it, give it beside --recipe, {where}: `{words}`",
    )


def _runs(key: str, leaf: Setting) -> bool:
    match = _FUNCTION.fullmatch(str(leaf.value))
    return match is not None and (key in (_MODEL_KEY, "loss") or _is_module(match["module"]))


def _is_module(name: str) -> bool:
    """Whether a name is that of a module, also of one in the working directory, or looks like one in a package; nothing
    of it runs."""
    return (
        "." in name
        or importlib.util.find_spec(name) is not None
        or PathFinder.find_spec(name, [os.getcwd()]) is not None
    )
