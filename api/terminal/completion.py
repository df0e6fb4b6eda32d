"""Completion of the command line in a shell, made from the parser and the passes that there are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .parser import Parser

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_fxprune() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local command="${{COMP_WORDS[1]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current"))
        return
    fi
    case "$command $previous" in
{values}
    esac
    if [ -z "$words" ]; then
        case "$command" in
{flags}
        esac
        case "$current" in
        -*) ;;
        *)
            case "$command" in
{words}
            *) words="" ;;
            esac
            ;;
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o bashdefault -o default -F _fxprune fxprune
"""


class _Flag(NamedTuple):
    names: tuple[str, ...]
    values: tuple[str, ...]
    takes_value: bool
    help: str


def completion(shell: str, parser: Parser, passes: Iterable[str]) -> str:
    """A script for a shell.

    Args:
        shell: one of :data:`SHELLS`.
        parser: of the program.
        passes: names of all passes.
    """
    passes = tuple(passes)
    if shell == "fish":
        return "\n".join(_fish(parser, passes)) + "\n"
    head = "#compdef fxprune\nautoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return head + _bash(parser, passes)


def _flags(parser: Parser, passes: tuple[str, ...]) -> list[_Flag]:
    found = []
    for action in parser._actions:
        if action.option_strings:
            values = passes if action.dest == "passes" else tuple(map(str, action.choices or ()))
            takes = not isinstance(action.nargs, int) or action.nargs > 0
            found.append(_Flag(tuple(action.option_strings), values, takes, action.help or ""))
    return found


def _words(name: str, parser: Parser, passes: tuple[str, ...]) -> tuple[str, ...]:
    """What may stand without a flag, where that is a word and no file."""
    if name == "passes":
        return passes
    return tuple(str(word) for action in parser._actions if not action.option_strings for word in action.choices or ())


def _bash(parser: Parser, passes: tuple[str, ...]) -> str:
    values, flags, words = [], [], []
    for name, command in parser.commands.items():
        known = _flags(command, passes)
        values += [
            f'    "{name} {flag}") words="{" ".join(one.values)}" ;;'
            for one in known
            for flag in one.names
            if one.values
        ]
        flags.append(f'        {name}) words="{" ".join(flag for one in known for flag in one.names)}" ;;')
        if found := _words(name, command, passes):
            words.append(f'            {name}) words="{" ".join(found)}" ;;')
    return _BASH.format(
        commands=" ".join(parser.commands), values="\n".join(values), flags="\n".join(flags), words="\n".join(words)
    )


def _fish(parser: Parser, passes: tuple[str, ...]) -> Iterator[str]:
    for name, command in parser.commands.items():
        yield f"complete -c fxprune -n __fish_use_subcommand -f -a {name} -d {_quoted(command.description or '')}"
        here = f"complete -c fxprune -n '__fish_seen_subcommand_from {name}'"
        if found := _words(name, command, passes):
            yield f"{here} -f -a {_quoted(' '.join(found), cut=False)}"
        for flag in _flags(command, passes):
            names = " ".join(f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in flag.names)
            value = f" -x -a {_quoted(' '.join(flag.values), cut=False)}" if flag.values else " -r" * flag.takes_value
            yield f"{here} {names}{value} -d {_quoted(flag.help)}"


def _quoted(text: str, *, cut: bool = True) -> str:
    """In single quotes of fish; of a help, its first sentence."""
    short = text.replace("%%", "%").partition(". ")[0].partition(";")[0] if cut and text != argparse.SUPPRESS else text
    return "'" + short.replace("\\", "\\\\").replace("'", "\\'") + "'"
