"""The argument parser: it reports mistakes as all other errors are, with the nearest word and the help that fits."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ...ir.errors import RequestError
from ...ir.options import options_of
from ...runtime.ranks import is_first_rank
from . import screen

BAD_REQUEST = RequestError.exit_code

_NUMBERS = "0123456789."


class Parser(argparse.ArgumentParser):
    """Of the program, or of one command."""

    commands: dict[str, Parser]
    """By name; none for the parser of a command."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {}

    def parse_known_args(  # type: ignore[override]  # argparse's signature has overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's; but a word that nothing is called is refused before what is missing is told."""
        import sys

        given = list(sys.argv[1:] if args is None else args)
        self._require_known_flags(given)
        return super().parse_known_args(given, namespace)

    def _require_known_flags(self, given: Iterable[str]) -> None:
        for word in given:
            if self.commands and not word.startswith("-"):
                if word not in self.commands:
                    self._refuse(f"there is no command {word!r}", word, self.commands)
                return  # the flags that follow are of the command
            if word == "--":
                return
            name = word.partition("=")[0]
            if len(word) > 1 and word[0] == "-" and word[1] not in _NUMBERS and not self._means(name):
                self._refuse_flag(name)

    def _means(self, name: str) -> bool:
        """Whether a flag is called so, or begins so; several short ones may be written together."""
        if any(known.startswith(name) for known in self._option_string_actions):
            return True
        return not name.startswith("--") and all(f"-{letter}" in self._option_string_actions for letter in name[1:])

    def _refuse_flag(self, name: str) -> NoReturn:
        message, option = f"{self.prog} has no flag {name}", name.lstrip("-").replace("-", "_")
        if "--pass" in self._option_string_actions and _is_of_passes(option):
            self._complain(
                message, f"{option} is an option of passes: --pass 'NAME{{{option}=...}}'; see `{self._help}`"
            )
        self._refuse(message, name, self._option_string_actions)

    def _refuse(self, message: str, word: str, known: Iterable[str]) -> NoReturn:
        near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        if not near and word.startswith("-") and " " not in self.prog:  # of the program itself
            meant = f"flags stand behind the command, as in `{self.prog} apply {word}`; "
        self._complain(message, f"{meant}see `{self._help}`")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end the program."""
        self._complain(message, f"see `{self._help}`")

    @property
    def _help(self) -> str:
        program, _, command = self.prog.partition(" ")
        return f"{program} help {command}".strip()

    def _complain(self, message: str, hint: str) -> NoReturn:
        if is_first_rank():  # all processes of torchrun have the same arguments
            screen.complain(message, hint)
        raise SystemExit(BAD_REQUEST)


def _is_of_passes(option: str) -> bool:
    """Whether a pass has an option of this name."""
    from ...passes.registry import PASSES

    return any(option == known.name for one in PASSES for known in options_of(one))
