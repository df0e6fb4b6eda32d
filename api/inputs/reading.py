"""How rows of texts are read, as a request says it: for all texts, or for those of one argument."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ...ir.errors import RequestError
from ..request_checks import CALIBRATION, RECOVERY

GivenReading: TypeAlias = "str | Iterable[str] | None"
"""A name for all texts, ``calib=NAME`` or ``data=NAME`` for those of one argument, or several of these."""

ARGUMENTS = {CALIBRATION: "calib", RECOVERY: "data"}
"""What data is given for -> the argument that names it."""

_FOR_ONE = re.compile(rf"({'|'.join(ARGUMENTS.values())})=(.+)")


@dataclass(frozen=True)
class Reading:
    """How the rows of one text are read.

    Attributes:
        field: the field of the rows, or ``PROMPT,ANSWER``; None where they have one of the usual names.
        split: of a data set; None where its name says it.
    """

    field: str | None = None
    split: str | None = None

    def to_json(self) -> dict[str, str]:
        """What was given."""
        given = {"field": self.field, "split": self.split}
        return {name: value for name, value in given.items() if value is not None}


AS_NAMED = Reading()
"""Fields of the usual names, of the split that the name of a data set says."""


@dataclass(frozen=True)
class Readings:
    """How the rows of all texts of a request are read.

    Attributes:
        usual: of those of which nothing else is said.
        of: argument -> what is said of its text alone.
    """

    usual: Reading = AS_NAMED
    of: Mapping[str, Reading] = field(default_factory=dict)

    @classmethod
    def parse(cls, fields: GivenReading, splits: GivenReading) -> Readings:
        """What the user said.

        Raises:
            RequestError: it is no name, or is said twice.
        """
        field_of, split_of = _by_argument(fields, "field"), _by_argument(splits, "split")
        usual = Reading(field_of.pop("", None), split_of.pop("", None))
        return cls(
            usual,
            {
                name: Reading(field_of.get(name, usual.field), split_of.get(name, usual.split))
                for name in ARGUMENTS.values()
                if name in field_of or name in split_of
            },
        )

    def for_part(self, part: str) -> Reading:
        """That of calibration or recovery."""
        return self.of.get(ARGUMENTS[part], self.usual)

    def to_json(self) -> dict[str, dict[str, str]]:
        """What was given, for all under ``""``."""
        given = {"": self.usual.to_json(), **{name: one.to_json() for name, one in self.of.items()}}
        return {name: one for name, one in given.items() if one}


def _by_argument(given: GivenReading, name: str) -> dict[str, str]:
    """Argument -> name; under "" the one for all."""
    found: dict[str, str] = {}
    for value in [given] if isinstance(given, str) else given or ():
        if not isinstance(value, str) or not value.strip():
            raise RequestError(f"{name} is {value!r}, which is no name", f"give the name of a {name}")
        match = _FOR_ONE.fullmatch(value)
        key, text = (match[1], match[2]) if match else ("", value)
        if key in found:
            raise RequestError(
                f"--{name} {value} and --{name} {found[key]} are for the same text",
                f"leave one out, or say which text it is for: --{name} calib={text}",
            )
        found[key] = text
    return found
