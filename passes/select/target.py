"""target: the budget of a whole model as the user gives it, ``params=0.8`` or ``memory=6GB@8192x4``, and the ways to
distribute it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ...ir.errors import RequestError
from ...runtime.place.memory import parse_bytes

UNIFORM, SEARCH = "uniform", "search"
WAYS = (UNIFORM, "kinds", "global", SEARCH)
BUDGET_TOLERANCE = 0.005
"""Largest relative difference between the cost of a plan and its budget, where nothing else is said."""

LATENCY, MEMORY_IN_USE, ACTIVE = "latency", "memory", "active"
MEASURES = ("params", "bytes", "macs", LATENCY, MEMORY_IN_USE, ACTIVE)
SHARES_ONLY = (LATENCY, "macs", "bytes")
"""Measures that take no amounts."""
EXAMPLES = {MEMORY_IN_USE: "memory=6GB@8192x4"}

CACHE_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element of a key-value cache, by the names that torch has for the dtypes that one may be kept in."""

LEAST_AMOUNT = 100
"""An amount below this is most likely meant as something else: a share, or millions."""

_SIZES = "params=0.9,0.8,0.7"
_BETWEEN = re.compile("[:=]")
_USE = re.compile(r"(?P<context>\d+)x(?P<batch>\d+)(?::(?P<dtype>\w+))?")


@dataclass(frozen=True)
class Target:
    """The budget of a model: a measure and a value.

    Attributes:
        measure: ``params``, ``bytes``, ``macs``, ``latency``, ``memory`` or ``active``.
        value: below 1, a share of the cost before any pass; above 1, an amount.
        context, batch: for ``memory``, the tokens of each sequence that a key-value cache holds, and how many sequences
            there are; 0 where weights alone count.
        dtype: for ``memory``, of the cache; that of the weights when empty.
    """

    measure: str
    value: float
    context: int = 0
    batch: int = 0
    dtype: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``params=0.8`` or ``params:0.8``; of ``memory``, also ``memory=6GB@8192x4:bfloat16``.

        Raises:
            RequestError: for an unknown measure, or a value that is neither a share nor an amount.
        """
        measure, _, number = _BETWEEN.sub("=", text, count=1).partition("=")
        if measure not in MEASURES:
            known = ", ".join(EXAMPLES.get(m, f"{m}=0.8") for m in MEASURES)
            raise RequestError(f"target {text!r} has no measure", f"use {known}")
        if "," in number:
            raise RequestError(
                f"target {text!r} holds several sizes, and this takes one",
                "several sizes of a model of transformers go to `fxprune apply --target`, or to fxprune.apply_sizes",
            )
        if measure == MEMORY_IN_USE:
            return cls._of_memory(text, number)
        value = _number(number)
        if not 0 < value < math.inf or value == 1:
            raise _no_number(text, measure)
        if measure == LATENCY and value > 1:
            raise RequestError(
                f"target {text!r} is not a share; latency takes a share only, because times differ between machines",
                "give a share of the time that the model takes on this machine: latency=0.8",
            )
        if measure == "macs" and value > 1:
            raise RequestError(
                f"target {text!r} is an amount; macs takes a share only, because a number of multiplications is one of "
                "some length and number of samples",
                "give a share, macs=0.8, or a number of parameters, params=5e9",
            )
        if measure == "bytes" and value > 1:
            raise RequestError(
                f"target {text!r} is an amount; bytes takes a share only, because files keep the dtype of the source",
                "give a share, bytes=0.8, or a number of parameters, params=5e9; memory=2GB takes amounts",
            )
        if value > 1 and value != int(value):
            raise RequestError(
                f"target {text!r} is above what the model has as a share, and no whole number as an amount",
                f"{measure}=0.8 keeps 80 percent",
            )
        if 1 < value < LEAST_AMOUNT and measure in ("params", "bytes", ACTIVE):
            why = f"target {text!r} is an amount of {value:g}, and no model is that small"
            raise RequestError(why, f"{measure}=0.8 keeps 80 percent; a million is written 1e6")
        return cls(measure, value)

    @classmethod
    def _of_memory(cls, text: str, number: str) -> Target:
        amount, at, place = number.partition("@")
        use = _USE.fullmatch(place) if at else None
        if at and (use is None or not int(use["context"]) or not int(use["batch"])):
            raise RequestError(
                f"target {text!r} has no context and batch after the @: {place!r}",
                "memory=6GB@8192x4 is for 4 sequences of 8192 tokens; memory=6GB counts the weights alone",
            )
        dtype = (use["dtype"] or "") if use is not None else ""
        if dtype and dtype not in CACHE_DTYPES:
            raise RequestError(
                f"target {text!r}: no cache is kept in {dtype!r}", f"use {', '.join(CACHE_DTYPES)}, or leave it out"
            )
        value: float = _number(amount)
        if not 0 < value < 1:
            value = parse_bytes(amount, f"target {text!r}:")
        if value == 1:
            raise RequestError(f"target {text!r} is one byte", "give an amount such as 6GB, or a share such as 0.8")
        return cls(MEMORY_IN_USE, value, int(use["context"]) if use else 0, int(use["batch"]) if use else 0, dtype)

    def __str__(self) -> str:
        place = f"@{self.context}x{self.batch}" if self.context else ""
        amount = round(self.value) if self.measure == MEMORY_IN_USE and self.value > 1 else f"{self.value:g}"
        return f"{self.measure}={amount}{place}{f':{self.dtype}' if self.dtype else ''}"

    def amount(self, dense: int) -> int:
        """The budget as an amount, for a model whose dense cost is ``dense``."""
        return round(self.value * dense) if self.value < 1 else round(self.value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _no_number(text: str, measure: str) -> RequestError:
    amounts = measure not in SHARES_ONLY
    return RequestError(
        f"target {text!r} needs a share between 0 and 1{', or an amount above 1' if amounts else ''}",
        f"{measure}=0.8 keeps 80 percent; {f'{measure}=5e9 is an amount; ' if amounts else ''}"
        f"inside a pipeline write {measure}:0.8",
    )


def holds_sizes(target: object, out: object = None) -> bool:
    """Whether a target names several sizes, or one whose value is asked for in the name of the directory ``out``."""
    if not isinstance(target, str):
        return False
    return "," in target or f"{{{_BETWEEN.split(target, maxsplit=1)[0]}}}" in str(out)


def parse_sizes(text: str) -> list[str]:
    """The targets in ``params=0.9,0.8,0.7``, each with its measure.

    Raises:
        RequestError: one of them is none, or they do not become smaller.
    """
    if not isinstance(text, str):
        raise RequestError(f"target is {text!r}", f"give the sizes as text: {_SIZES}")
    measure, _, values = _BETWEEN.sub("=", text, count=1).partition("=")
    single = [value.strip().removeprefix(f"{measure}=") for value in values.split(",")]
    found = [Target.parse(f"{measure}={value}") for value in single]
    for larger, smaller, value in zip(found, found[1:], single[1:], strict=False):
        where = [(one.value < 1, one.context, one.batch, one.dtype) for one in (larger, smaller)]
        if where[0] != where[1]:
            raise RequestError(
                f"target {text!r} mixes shares and amounts, or contexts, which cannot be ordered",
                "give all sizes as shares, or all as amounts, with the same context and batch",
            )
        if not smaller.value < larger.value:
            raise RequestError(
                f"target {text!r} does not become smaller at {value}", f"give the largest size first: {_SIZES}"
            )
    return [f"{measure}={value}" for value in single]
