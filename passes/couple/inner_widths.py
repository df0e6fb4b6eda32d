"""Widths that stay inside a block of the network, found from the paths that data takes through the graph.

A block is what lies between a fork and the place where both ways meet again: a residual block, a gate, a branch. A
width is inner if data takes another way around all of it. What is itself passed on from block to block is shared,
however the modules are called: there is no way around it, or blocks add their results to it, or a later block reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...ir.axes import Axis, atoms_of
from ...ir.graph import Graph, Op, Value
from ...ir.rules import contraction_of

CONCATENATION = "aten.cat"
ADDITIONS = frozenset({"aten.add", "aten.add_", "aten.sub", "aten.sub_"})


@dataclass(frozen=True)
class InnerWidths:
    """Answers for the groups of one graph.

    Attributes:
        graph: any graph.
        axes: every value -> the axis term of each of its dimensions.
    """

    graph: Graph
    axes: Mapping[Value, tuple[Axis, ...]]

    def holds(self, atom: int, module: str) -> bool:
        """Whether an atom is the width of something inside a block.

        Args:
            atom: of a group.
            module: the innermost module that all tensors of the group are in; empty for the root.
        """
        values = self._carriers.get(atom, frozenset[Value]())
        if not values or self._is_stream(values):
            return False
        met = self._met(values)
        if met is None or contraction_of(met.op) is not None or self._goes_on(values, met.op):
            return False
        if met.op.packet != CONCATENATION or met.around not in self._before(values):
            return True
        # A skip is concatenated: to an encoder's and decoder's levels this is no block, but to a module inside it is.
        return bool(module) and self._met(self._made_in(module), entered=True) is not None

    @cached_property
    def _carriers(self) -> dict[int, frozenset[Value]]:
        """Atom -> the activations that hold its units."""
        found: dict[int, set[Value]] = {}
        for value in self._inputs_of:
            for atom in {atom.id for axis in self.axes[value] for atom in atoms_of(axis)}:
                found.setdefault(atom, set()).add(value)
        return {atom: frozenset(values) for atom, values in found.items()}

    @cached_property
    def _inputs_of(self) -> dict[Value, int]:
        """Activation -> a bit for every input of the model that it depends on; weights and constants have none."""
        bits = {value: 1 << number for number, value in enumerate(self.graph.inputs)}
        for op in self.graph.ops:
            own = 0
            for value in op.operands:
                own |= bits.get(value, 0)
            if own:
                bits.update(dict.fromkeys(op.made, own))
        return bits

    @cached_property
    def _maker(self) -> dict[Value, int]:
        return {value: number for number, op in enumerate(self.graph.ops) for value in op.made}

    def _from(self, values: Iterable[Value]) -> list[Op]:
        """The operators from the first that makes one of some values on."""
        first = min((self._maker[value] for value in values if value in self._maker), default=len(self.graph.ops))
        return self.graph.ops[first:]

    def _met(self, values: Collection[Value], *, entered: bool = False) -> _Meeting | None:
        """The first operator behind some values that also takes in what comes from the same input around all of them.

        None if there is none, or if the values go through it themselves; ``entered``: not those that go through it on
        their way in.
        """
        own = 0
        for value in values:
            own |= self._inputs_of[value]
        behind = set(values)
        for op in self._from(values):
            operands = [value for value in op.operands if value in self._inputs_of]
            if not any(value in behind for value in operands):
                continue
            behind.update(op.made)
            around = next((v for v in operands if v not in behind and self._inputs_of[v] & own), None)
            if around is None or (entered and any(value in values for value in op.made)):
                continue
            return None if any(value in values for value in op.made) else _Meeting(op, around)
        return None

    def _is_stream(self, values: frozenset[Value]) -> bool:
        """Whether something is computed from these values and added to them again."""
        for op in self.graph.ops:
            operands = [value for value in op.operands if value in values]
            if op.packet not in ADDITIONS or len(operands) < 2 or not any(value in values for value in op.made):
                continue
            early, late = sorted(operands[:2], key=lambda value: self._maker.get(value, -1))
            if self._leaves_and_returns(values, early, late):
                return True
        return False

    def _goes_on(self, values: frozenset[Value], met: Op) -> bool:
        """Whether some of these values are used again behind an operator, as by the next block."""
        after = self.graph.ops[self._maker[next(iter(met.made))] + 1 :]
        return any(value in values for op in after for value in op.operands)

    def _leaves_and_returns(self, values: frozenset[Value], early: Value, late: Value) -> bool:
        inside, left = {early}, set[Value]()
        for op in self.graph.ops[self._maker.get(early, -1) + 1 : self._maker.get(late, -1) + 1]:
            operands = list(op.operands)
            if any(value in left for value in operands):
                left.update(op.made)
            elif any(value in inside for value in operands):
                for value in op.made:
                    (inside if value in values else left).add(value)
        return late in left

    def _before(self, values: Iterable[Value]) -> set[Value]:
        """All that some values are computed from."""
        found: set[Value] = set()
        waiting = list(values)
        while waiting:
            number = self._maker.get(waiting.pop())
            for value in self.graph.ops[number].operands if number is not None else ():
                if value not in found:
                    found.add(value)
                    waiting.append(value)
        return found

    def _made_in(self, module: str) -> list[Value]:
        inside = (op for op in self.graph.ops if f"{op.source.module}.".startswith(f"{module}."))
        return [value for op in inside for value in op.made if value in self._inputs_of]


@dataclass(frozen=True)
class _Meeting:
    """Where data that went through a width meets data that went around it.

    Attributes:
        op: the operator that takes in both.
        around: what came around.
    """

    op: Op
    around: Value
