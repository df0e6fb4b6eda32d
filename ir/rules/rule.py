"""What an operator rule is, and what it may say about the axes of one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..axes import ONE, Axes, AxisId, ClashError
from ..graph import Arg, Op, Value
from ..plan import Indices


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
            assert len(axes) <= len(result), f"an operand of {len(axes)} dimensions in a result of {len(result)}"
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


Couple = Callable[[Equations, Op], None]
Resize = Callable[[Op, Resized], Op]


@dataclass(frozen=True)
class Rule:
    """How one operator couples axes, and how its shape arguments change when they shrink.

    Attributes:
        couple: states the equations.
        resize: rewrites arguments that depend on extents; None when no argument does.
        text: the declarative form, for the documentation.
    """

    couple: Couple
    resize: Resize | None = None
    text: str = ""


def with_args(op: Op, args: Mapping[int, Arg], kwargs: Mapping[str, Arg] | None = None) -> Op:
    """The same operator with some positional arguments replaced."""
    positional = list(op.args)
    for position, arg in args.items():
        positional[position] = arg
    return Op(op.target, tuple(positional), {**op.kwargs, **(kwargs or {})}, op.results, op.source)


def argument(op: Op, position: int, name: str, default: Arg = None) -> Arg:
    """An argument that may be given by position or by name."""
    return op.args[position] if position < len(op.args) else op.kwargs.get(name, default)


def tensor(op: Op, position: int, name: str = "") -> Value:
    """An operand that must be a tensor."""
    value = argument(op, position, name)
    assert isinstance(value, Value), f"{op.target} argument {position} is no tensor"
    return value


def integer(op: Op, position: int, name: str, default: int = 0) -> int:
    """An argument that must be an integer."""
    value = argument(op, position, name, default)
    assert isinstance(value, int), f"{op.target} argument {name} is no integer"
    return value


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

        def bind(letters: list[str], value: Value) -> Sequence[AxisId]:
            axes = eq.of(value)
            names = [letter for letter in letters if letter != "..."]
            assert len(axes) == len(names) or (len(axes) > len(names) and "..." in letters), (
                f"{op.target}: {' '.join(letters)!r} has {len(names)} dimensions, %{value.name} has {len(axes)}"
            )
            lead, tail = axes[: len(axes) - len(names)], axes[len(axes) - len(names) :]
            for name, axis in zip(names, tail, strict=True):
                if bound.get(name, ONE) == ONE:
                    bound[name] = axis
                eq.tie(axis, bound[name])
            return lead

        for position, (letters, optional) in enumerate(operands):
            value = op.args[position] if position < len(op.args) else None
            if isinstance(value, Value):
                leading.append(bind(letters, value))
            elif not optional:
                raise AssertionError(f"{op.target}: operand {position} of {text!r} is no tensor")
        for letters, value in zip(results, op.results, strict=False):
            if value is not None:
                eq.broadcast(leading, bind(letters, value)) if "..." in letters else bind(letters, value)
        for name, reason in (freeze or {}).items():
            eq.freeze([bound[name]], reason)
        for name, note in (mark or {}).items():
            eq.mark([bound[name]], note)

    return Rule(couple, text=text)
