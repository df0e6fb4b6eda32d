"""What an operator rule is, and what it may say about the axes of one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..axes import ONE, Axes, AxisId, ClashError
from ..errors import ShapeError, UnsupportedCall
from ..graph import Arg, Op, Value
from ..plan import Indices
from .contraction import Contraction, contraction


class Equations:
    """The axes of every value, and the equations that rules state between them.

    Attributes:
        axes: the unifier.
        op: the operator whose rule is speaking; it signs every freeze.
        positions: integer tensors whose values are positions of an axis.
        least: axes and how many of their positions must stay.
    """

    def __init__(self) -> None:
        self.axes = Axes()
        self.op: Op | None = None
        self._table: dict[Value, tuple[AxisId, ...]] = {}
        self.positions: dict[Value, AxisId] = {}
        self.least: list[tuple[AxisId, int]] = []

    def of(self, value: Value) -> tuple[AxisId, ...]:
        """The axis of every dimension; fresh ones for a value not seen before."""
        if value not in self._table:
            self._table[value] = tuple(self.axes.fresh(extent) for extent in value.shape)
        return self._table[value]

    def tie(self, a: AxisId, b: AxisId) -> None:
        """Equate two axes; when they clash, both are frozen with the reason."""
        if ONE in (self.axes.find(a), self.axes.find(b)):
            return
        try:
            self.axes.unify(a, b)
        except ClashError as clash:
            self.freeze((a, b), str(clash))

    def tie_all(self, left: Iterable[AxisId], right: Iterable[AxisId]) -> None:
        """Equate axes pairwise; both sides have the same number."""
        for a, b in zip(left, right, strict=True):
            self.tie(a, b)

    def broadcast(self, operands: Sequence[Sequence[AxisId]], result: Sequence[AxisId]) -> None:
        """Equate the axes of operands with a result's, aligned at the last, as broadcasting does."""
        for axes in operands:
            if len(axes) > len(result):
                raise ShapeError(f"an operand of {len(axes)} dimensions in a result of {len(result)}")
            self.tie_all(axes, result[len(result) - len(axes) :])

    def freeze(self, axes: Iterable[AxisId], reason: str) -> None:
        """No unit of these axes may go, because of this operator."""
        signed = (
            f"{reason} ({self.op.packet}{f' at {self.op.source}' if str(self.op.source) else ''})"
            if self.op
            else reason
        )
        for axis in axes:
            self.axes.freeze(axis, signed)

    def freeze_call(self, op: Op, reason: str) -> None:
        """No unit of any axis that a call touches may go, nor of one that a tensor it touches holds positions of."""
        touched = (*op.operands, *op.made)
        self.freeze((axis for value in touched for axis in self.of(value)), reason)
        self.freeze((self.positions[value] for value in touched if value in self.positions), reason)

    def address(self, axis: AxisId, index: object) -> None:
        """An axis that is looked up: frozen, but where the index holds positions of an axis it is that axis."""
        known = self.positions.get(index) if isinstance(index, Value) else None
        if known is None:
            self.freeze([axis], "addressed by an index")
        else:
            self.tie(axis, known)

    def keep_at_least(self, axis: AxisId, count: int) -> None:
        """So many positions of an axis must stay."""
        self.least.append((axis, count))

    def mark(self, axes: Iterable[AxisId], mark: str) -> None:
        """Note a property of these axes' atoms."""
        for axis in axes:
            self.axes.mark(axis, mark)


class Resized(Protocol):
    """What is known of the smaller graph when an operator's arguments are rewritten."""

    def shape(self, value: Value) -> tuple[int, ...]:
        """The new shape of a value of the old graph."""

    def kept(self, value: Value, dim: int) -> Indices:
        """The old indices of a dimension that stay, sorted."""


class _AsItIs:
    """Nothing goes: at this, too, a rule must be able to rewrite the arguments."""

    def shape(self, value: Value) -> tuple[int, ...]:
        return value.shape

    def kept(self, value: Value, dim: int) -> Indices:
        return np.arange(value.shape[dim])


AS_IT_IS: Resized = _AsItIs()

Couple = Callable[[Equations, Op], None]
Resize = Callable[[Op, Resized], Op]


@dataclass(frozen=True)
class Rule:
    """How one operator couples axes, and how its shape arguments change when they shrink.

    Attributes:
        couple: states the equations.
        resize: rewrites arguments that depend on extents; None when no argument does.
        text: the declarative form, for the documentation.
        contracts: what a contraction multiplies and sums over; None for all other operators.
    """

    couple: Couple
    resize: Resize | None = None
    text: str = ""
    contracts: Contraction | None = None


def contracting(
    rule: Rule, arguments: str, *, weight: str = "", plain: Mapping[str, Arg] | None = None, unrecorded: str = ""
) -> Rule:
    """The rule of a contraction whose one product is what the rule's text says.

    Args:
        rule: its text is in the notation of :func:`pattern`.
        arguments, weight, plain, unrecorded: as in :func:`.contraction.contraction`.
    """
    said = contraction(rule.text, arguments, weight=weight, plain=plain, unrecorded=unrecorded)
    return replace(rule, contracts=said)


def pattern(text: str, *, freeze: Mapping[str, str] | None = None, mark: Mapping[str, str] | None = None) -> Rule:
    """A rule in einsum-like notation: ``"... k, n k, n? -> ... n"``.

    Operands are the positional arguments in order, dimensions are letters separated by blanks, the same letter is the
    same axis, ``...`` stands for any number of leading dimensions that broadcast. An operand that ends in ``?`` may be
    missing.

    Args:
        text: the notation.
        freeze: letter -> why no unit of that axis may go.
        mark: letter -> property to note.
    """
    left, _, right = text.partition("->")
    operands = [(spec.strip().removesuffix("?").split(), spec.strip().endswith("?")) for spec in left.split(",")]
    results = [spec.split() for spec in right.split(",")]

    def couple(eq: Equations, op: Op) -> None:
        bound: dict[str, AxisId] = {}
        leading: list[Sequence[AxisId]] = []
        for position, (letters, optional) in enumerate(operands):
            value = op.args[position] if position < len(op.args) else None
            if isinstance(value, Value):
                leading.append(_bind(eq, op, letters, value, bound))
            elif not optional:
                raise UnsupportedCall(f"{op.target}: operand {position} of {text!r} is no tensor")
        for letters, value in zip(results, op.results, strict=False):
            if value is not None:
                rest = _bind(eq, op, letters, value, bound)
                eq.broadcast(leading if "..." in letters else [], rest)
        for name, reason in (freeze or {}).items():
            eq.freeze([bound[name]], reason)
        for name, note in (mark or {}).items():
            eq.mark([bound[name]], note)

    return Rule(couple, text=text)


def _bind(eq: Equations, op: Op, letters: Sequence[str], value: Value, bound: dict[str, AxisId]) -> Sequence[AxisId]:
    """Tie the dimensions of a value to the letters in ``bound``; returns those that ``...`` stands for."""
    axes = eq.of(value)
    names = [letter for letter in letters if letter != "..."]
    if len(axes) < len(names) or (len(axes) > len(names) and "..." not in letters):
        raise UnsupportedCall(
            f"{op.target}: {' '.join(letters)!r} has {len(names)} dimensions, %{value.name} has {len(axes)}"
        )
    lead, tail = axes[: len(axes) - len(names)], axes[len(axes) - len(names) :]
    for name, axis in zip(names, tail, strict=True):
        if bound.get(name, ONE) == ONE:
            bound[name] = axis
        eq.tie(axis, bound[name])
    return lead
