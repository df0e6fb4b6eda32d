"""Which integer attributes of a module become which arguments of operators, seen in one run of it.

In the run every attribute that is an integer reads as a marked one, equal to it in all respects. Where a torch
function is called with a marked integer as it is, the graph has the same call, and its rewrite says what the integer
must become.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...ir.graph import Arg, Graph
from ...ir.repairs import Number
from ..data import Observed, Use
from .dry_run import following, reading

NewValues = dict[tuple[str, str], Number]

_DEEP = 4
"""Lists in lists in arguments are followed so far; an index is a tuple of slices."""


class Marked(int):
    """An integer that knows the attribute that it was read from.

    Attributes:
        origin: path of the module, name of the attribute, place in it where it is a tuple, otherwise -1.
    """

    origin: tuple[str, str, int]

    @classmethod
    def of(cls, value: Number, path: str, name: str, place: int = -1) -> Any:
        """An integer or a tuple of integers, marked."""
        if isinstance(value, tuple):
            return tuple(cls.of(item, path, name, at) for at, item in enumerate(value))
        made = cls(value)
        made.origin = path, name, place
        return made


@contextmanager
def observing(model: nn.Module) -> Iterator[Observed]:
    """Inside, the model is to be run once. Its attributes read as marked integers there."""
    found = Observed()
    stack = [""]
    with following(model, [], stack), reading(model, Marked.of) as found.reads, _Calls(found.uses, stack):
        yield found


class _Calls(TorchFunctionMode):
    """Records the calls with marked integers."""

    def __init__(self, uses: list[Use], stack: list[str]) -> None:
        super().__init__()
        self.uses, self.stack = uses, stack

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        integers = tuple(_integers((*args, *(kwargs or {}).values())))
        if any(type(integer) is Marked for integer in integers):
            self.uses.append(Use(self.stack[-1], _line(), integers))
        return func(*args, **(kwargs or {}))


def _line() -> int:
    """The line that a traced operator has: of the innermost ``forward`` outside torch, which may call functions."""
    frame = sys._getframe(2)
    while frame.f_back is not None and (frame.f_code.co_name != "forward" or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_lineno


def _integers(given: Iterable[Any], deep: int = _DEEP) -> Iterator[int]:
    for value in given:
        if isinstance(value, int):
            if not isinstance(value, bool):
                yield value
        elif isinstance(value, Tensor) or not deep:
            continue
        elif isinstance(value, list | tuple):
            yield from _integers(value, deep - 1)
        elif isinstance(value, slice):
            yield from _integers((value.start, value.stop, value.step), deep - 1)


AttributeItem = tuple[str, str, int]
Calls = Mapping[tuple[str, int], list[tuple[list[int], list[int]]]]


def new_values(uses: Sequence[Use], before: Graph, after: Graph) -> tuple[NewValues, NewValues]:
    """What attributes must become, where all their uses agree on one value; and what others most likely become.

    Args:
        uses: from a run of the module that ``before`` was traced from, with any number of samples.
        before, after: a graph and its rewrite, with the same operators.

    Returns:
        (path of the module, attribute) -> the new value: of those that are an argument in their place in a traced
        operator; and of those that equal one on the same line of code, such as the end of a slice.
    """
    calls = _calls(before, after)
    samples = before.extents.get("b", 0)
    sure: dict[AttributeItem, set[int]] = defaultdict(set)
    likely: dict[AttributeItem, set[int]] = defaultdict(set)
    for use in uses:
        here = calls.get((use.module, use.line), ())
        pairs = [pair for pair in here if _matches(use.integers, pair[0], samples)]
        for at, integer in enumerate(use.integers):
            if isinstance(integer, Marked):
                sure[integer.origin] |= {new[at] for _, new in pairs}
                same = {two for pair in here for one, two in zip(*pair, strict=True) if one == integer}
                likely[integer.origin] |= same - {integer} or same
    return _joined(sure, uses), _joined(likely, uses)


def _calls(before: Graph, after: Graph) -> Calls:
    """Module and line -> the integers of every operator there, before and after."""
    calls: dict[tuple[str, int], list[tuple[list[int], list[int]]]] = defaultdict(list)
    for old, new in zip(before.ops, after.ops, strict=True):
        pair = tuple(_whole((*op.args, *op.kwargs.values())) for op in (old, new))
        if old.target == new.target and len(pair[0]) == len(pair[1]):
            calls[old.source.module, old.source.line].append((pair[0], pair[1]))
    return calls


def _whole(args: Arg) -> list[int]:
    if isinstance(args, tuple):
        return [integer for arg in args for integer in _whole(arg)]
    return [args] if isinstance(args, int) and not isinstance(args, bool) else []


def _matches(called: tuple[int, ...], traced: list[int], samples: int) -> bool:
    """Whether a call and a traced operator have the same integers; those that count samples may differ."""
    return len(called) == len(traced) and all(
        one == other or (samples and other and other % samples == 0 and not isinstance(one, Marked))
        for one, other in zip(called, traced, strict=True)
    )


def _joined(found: Mapping[AttributeItem, set[int]], uses: Iterable[Use]) -> NewValues:
    """Those with one value each; a tuple if all its items have one."""
    held: dict[tuple[str, str], set[int]] = defaultdict(set)
    for use in uses:
        for integer in use.integers:
            if isinstance(integer, Marked):
                path, name, place = integer.origin
                held[path, name].add(place)
    result: dict[tuple[str, str], Number] = {}
    for (path, name), places in held.items():
        news = [found.get((path, name, place), set()) for place in sorted(places)]
        if all(len(new) == 1 for new in news) and (places == {-1} or sorted(places) == list(range(len(places)))):
            values = tuple(next(iter(new)) for new in news)
            result[path, name] = values[0] if places == {-1} else values
    return result
