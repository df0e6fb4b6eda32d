"""Recurrent layers and their cells: LSTM, GRU and plain ones.

All layers and directions of one call share their hidden units: unit ``i`` of one goes with unit ``i`` of every other,
because one tensor holds the states of all of them, ``[layers * directions, batch, hidden]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..axes import AxisId
from ..errors import UnsupportedCall
from ..graph import Op, Value, values_in
from .arguments import argument, integer, tensor
from .contraction import Contraction, Product
from .rule import Equations, Rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Rows of a weight for each hidden unit; those of one gate stand side by side."""


@dataclass(frozen=True)
class _Maps:
    """The tensors of one layer in one direction, or of a cell.

    Attributes:
        inward: ``[gates * hidden, input]``.
        recurrent: ``[gates * hidden, output]``; the output is the hidden state, or its projection.
        biases: ``[gates * hidden]`` each.
        projection: ``[output, hidden]``; None where the output is the hidden state itself.
    """

    inward: Value
    recurrent: Value
    biases: tuple[Value, ...]
    projection: Value | None = None

    @property
    def weights(self) -> tuple[Value, ...]:
        return (self.inward, self.recurrent, *([self.projection] if self.projection is not None else []))


def _gates(op: Op) -> int:
    return GATES[op.packet.partition(".")[2].removesuffix("_cell")]


def _maps(op: Op) -> list[list[_Maps]]:
    """The tensors of a call: of each layer, of each of its directions.

    Raises:
        UnsupportedCall: for a packed sequence, or a list of tensors that is not as the flags say.
    """
    if op.packet.endswith("_cell"):
        biases = tuple(b for at, name in ((4, "b_ih"), (5, "b_hh")) if isinstance(b := argument(op, at, name), Value))
        return [[_Maps(tensor(op, 2, "w_ih"), tensor(op, 3, "w_hh"), biases)]]
    if op.target.endswith(".data"):
        raise UnsupportedCall("a packed sequence, whose rows are of several samples")
    params = tuple(values_in(argument(op, 2, "params")))
    layers = integer(op, 4, "num_layers")
    directions = 2 if argument(op, 7, "bidirectional") else 1
    added = 2 if argument(op, 3, "has_biases") else 0
    count, rest = divmod(len(params), max(layers * directions, 1))
    if rest or count - added not in (2, 3):
        raise UnsupportedCall(f"{len(params)} tensors for {layers} layers in {directions} directions")
    each = [
        _Maps(own[0], own[1], own[2 : 2 + added], own[-1] if count - added == 3 else None)
        for own in (params[start : start + count] for start in range(0, len(params), count))
    ]
    return [each[start : start + directions] for start in range(0, len(each), directions)]


def _states(op: Op) -> Iterator[tuple[Value, bool]]:
    """Initial and final states; whether each is that of the cells, which no projection narrows."""
    after = op.results if op.packet.endswith("_cell") else op.results[1:]
    for states in (tuple(values_in(argument(op, 1, "hx"))), after):
        for place, state in enumerate(states):
            if state is not None:
                yield state, place == 1


def _couple(eq: Equations, op: Op) -> None:
    layers = _maps(op)
    first, cell = layers[0][0], op.packet.endswith("_cell")
    operand = eq.of(tensor(op, 0, "input"))
    outward = eq.of(first.recurrent)[1]
    hidden = outward if first.projection is None else eq.of(first.projection)[1]
    rows = eq.axes.concat([hidden] * _gates(op))
    taken = operand[-1]
    for layer in layers:
        for maps in layer:
            for value in (maps.inward, maps.recurrent, *maps.biases):
                eq.tie(eq.of(value)[0], rows)
            eq.tie_all((eq.of(maps.inward)[1], eq.of(maps.recurrent)[1]), (taken, outward))
            if maps.projection is not None:
                eq.tie_all(eq.of(maps.projection), (outward, hidden))
                # Torch tells that there is a projection by its being narrower.
                eq.keep_at_least(hidden, eq.axes.size(outward) + 1)
        taken = eq.axes.concat([outward] * len(layer))
    batch = operand[:-1] if cell else _sequence(eq, op, operand, taken)
    for state, of_cells in _states(op):
        axes = eq.of(state)
        eq.tie(axes[-1], hidden if of_cells else outward)
        if not cell:
            eq.freeze(axes[:1], "one position for each layer and direction")
        eq.tie_all(axes[0 if cell else 1 : -1], batch)


def _sequence(eq: Equations, op: Op, operand: Sequence[AxisId], made: AxisId) -> Sequence[AxisId]:
    """Tie the input and the output of all steps; returns the axis of the samples."""
    if len(operand) != 3:
        raise UnsupportedCall(f"an input of {len(operand)} dimensions")
    samples = 0 if argument(op, 8, "batch_first") else 1
    eq.freeze([operand[1 - samples]], "the steps of a recurrence")
    if op.results[0] is not None:
        eq.tie_all(eq.of(op.results[0]), (*operand[:2], made))
    return (operand[samples],)


def _products(op: Op) -> tuple[Product, ...]:
    """``t`` are the steps, ``b`` the samples; all but the first input and the weights stays inside the operator."""
    found = []
    operand = tensor(op, 0, "input")
    leading = ("b",) if op.packet.endswith("_cell") else ("b", "t") if argument(op, 8, "batch_first") else ("t", "b")
    taken: Value | None = operand
    for layer in _maps(op):
        for maps in layer:
            gates = (None, (*leading, "g"))
            found.append(Product(((taken, (*leading, "i")), (maps.inward, ("g", "i"))), gates))
            found.append(Product(((None, (*leading, "o")), (maps.recurrent, ("g", "o"))), gates))
            if maps.projection is not None:
                factors = (None, (*leading, "h")), (maps.projection, ("o", "h"))
                found.append(Product(factors, (None, (*leading, "o"))))
        taken = None
    return tuple(found)


def _macs(op: Op) -> int:
    """Every weight multiplies once in each step of each sample."""
    *leading, _ = tensor(op, 0, "input").shape
    weights = (weight.shape for layer in _maps(op) for maps in layer for weight in maps.weights)
    return math.prod(leading) * sum(map(math.prod, weights))


def _rules() -> Iterator[tuple[str, Rule]]:
    why = "a step takes in the state that the step before it left"
    whole = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    cell = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")
    for name, gates in GATES.items():
        rows = f"({' + '.join('h' * gates)})" if gates > 1 else "h"
        states = "layers b h" + (", layers b h" if name == "lstm" else "")
        for suffix, arguments, text in (
            (
                "",
                whole,
                f"t b i, {states}, {rows} i, {rows} h, {rows}? -> t b h, {states}; both directions: t b (h + h)",
            ),
            ("_cell", cell, f"b i, {states}, {rows} i, {rows} h, {rows}? -> {states}".replace("layers ", "")),
        ):
            contracts = Contraction(arguments, _products, unrecorded=why, count=_macs)
            yield f"aten.{name}{suffix}", Rule(_couple, text=text, contracts=contracts)


RECURRENT_RULES = dict(_rules())
