"""Which values an option may have, and what is said of one that it may not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .errors import RequestError


class OptionError(RequestError):
    """An option has a value that it cannot have.

    Attributes:
        option: its name.
    """

    def __init__(self, option: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.option = option


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The finite numbers that an option may be; open on a side that says nothing.

    Attributes:
        at_least: the smallest.
        above: all are larger than this one.
        at_most: the largest.
        below: all are smaller than this one.
        hint: what to do about another one; made of the bounds when empty.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    hint: str = ""

    def complaint(self, value: float) -> tuple[str, str] | None:
        """What is wrong with a value and what to do about it; None when nothing is."""
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if isinstance(value, float) and not math.isfinite(value):
            wrong = "is not finite"
        elif (low is None or value > low or value == self.at_least) and (
            high is None or value < high or value == self.at_most
        ):
            return None
        elif low is not None and high is not None:
            wrong = f"is outside {self}"
        elif low is not None:
            wrong = f"is {'below' if self.above is None else 'not above'} {written(low)}"
        else:
            assert high is not None, "bounds without a bound"
            wrong = f"is {'above' if self.below is None else 'not below'} {written(high)}"
        return wrong, self.advice

    @property
    def advice(self) -> str:
        """What to give: the hint, or else what the bounds say."""
        if self.hint:
            return self.hint
        match (self.at_least, self.above, self.at_most, self.below):
            case (low, None, None, None):
                return f"give {written(low)} or more"
            case (None, low, None, None):
                return f"give a number above {written(low)}"
            case (None, None, high, None):
                return f"give {written(high)} or less"
            case (None, None, None, high):
                return f"give a number below {written(high)}"
        return f"give a number in {self}"

    def __str__(self) -> str:
        """As an interval: ``[0, 1)``; both ends are bounded."""
        left = f"[{written(self.at_least)}" if self.above is None else f"({written(self.above)}"
        right = f"{written(self.at_most)}]" if self.below is None else f"{written(self.below)})"
        return f"{left}, {right}"


def written(value: Any) -> str:
    """A value as its user would write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_options(owner: str, options: Any) -> None:
    """Refuse values that are outside the bounds or the choices of their options.

    Args:
        owner: what the options are of, for the message.
        options: a dataclass, of whose fields those that :func:`.base.option` made are checked. None is no value.

    Raises:
        OptionError: for the first one, in the order of the fields.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value is not None and (found := _complaint(field.metadata, value)):
            raise OptionError(field.name, f"{owner}: {field.name}={written(value)} {found[0]}", found[1])


def _complaint(metadata: Mapping[str, Any], value: Any) -> tuple[str, str] | None:
    choices, bounds = metadata.get("choices"), metadata.get("bounds")
    if choices and value not in choices:
        return "is not supported", f"choose from {', '.join(map(str, choices))}"
    return bounds.complaint(value) if bounds is not None and not isinstance(value, str) else None
