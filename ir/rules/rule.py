"""Operator rules, and the equations that they state about the axes of one operator."""

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
    """The axes of every value, and the equations between them that rules state.

    Attributes:
        axes: the unifier.
        op: the operator whose rule runs now; its name is part of every freeze reason.
        positions: integer tensors whose values are positions of an axis -> that axis.
        named: axes whose positions have names that outlast them, as tokens do: an operator may compare with one.
        least: pairs (axis, minimum number of positions to keep).
    """

    def __init__(self) -> None:
        self.axes = Axes()
        self.op: Op | None = None
        self._table: dict[Value, tuple[AxisId, ...]] = {}
        self.positions: dict[Value, AxisId] = {}
        self.named: set[AxisId] = set()
        self.least: list[tuple[AxisId, int]] = []

    def of(self, value: Value) -> tuple[AxisId, ...]:
        """The axes of all dimensions of a value; new axes for a new value."""
        if value not in self._table:
            self._table[value] = tuple(self.axes.fresh(extent) for extent in value.shape)
        return self._table[value]

    def tie(self, a: AxisId, b: AxisId) -> None:
        """Equate two axes; the parts for which this is impossible are frozen with the reason."""
        if ONE in (self.axes.find(a), self.axes.find(b)):
            return
        try:
            self.axes.unify(a, b)
        except ClashError as clash:
            self.freeze(clash.apart, str(clash))

    def tie_all(self, left: Iterable[AxisId], right: Iterable[AxisId]) -> None:
        """Equate axes pairwise; both sides have the same length."""
        for a, b in zip(left, right, strict=True):
            self.tie(a, b)

    def broadcast(self, operands: Sequence[Sequence[AxisId]], result: Sequence[AxisId]) -> None:
        """Equate the axes of operands with those of a result, aligned at the last one as in broadcasting."""
        for axes in operands:
            if len(axes) > len(result):
                raise ShapeError(f"an operand of {len(axes)} dimensions in a result of {len(result)}")
            self.tie_all(axes, result[len(result) - len(axes) :])

    def freeze(self, axes: Iterable[AxisId], reason: str) -> None:
        """Freeze axes; the reason includes this operator."""
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
        """An axis that an index looks up: frozen; if the index holds positions of an axis, equated with that axis."""
        known = self.positions.get(index) if isinstance(index, Value) else None
        if known is None:
            self.freeze([axis], "addressed by an index")
        else:
            self.tie(axis, known)

    def keep_at_least(self, axis: AxisId, count: int) -> None:
        """At least ``count`` positions of an axis must be kept."""
        self.least.append((axis, count))

    def mark(self, axes: Iterable[AxisId], mark: str) -> None:
        """Add a mark to the atoms of these axes."""
        for axis in axes:
            self.axes.mark(axis, mark)


class Resized(Protocol):
    """The shapes of the smaller graph, for rewriting an operator's arguments."""

    def shape(self, value: Value) -> tuple[int, ...]:
        """The new shape of a value."""

    def kept(self, value: Value, dim: int) -> Indices:
        """The kept indices of a dimension, sorted."""


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

    Operands are the positional arguments in order. Dimensions are letters separated by spaces; the same letter is the
    same axis. ``...`` is any number of leading dimensions, which broadcast. An operand that ends with ``?`` may be
    missing.

    Args:
        text: the notation.
        freeze: letter -> reason to freeze that axis.
        mark: letter -> mark for that axis.
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise ValueError(f"{text!r} has no '->' between operands and results")
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
