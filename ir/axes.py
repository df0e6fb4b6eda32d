"""Axis terms, and the unifier that computes them.

Every dimension of every value has an axis: an *atom* of interchangeable units, a *product* of axes (row-major, as in a
reshape) or a *concat* of axes (as in a split or a cat). Operators equate axes. The unifier solves these equations like
type inference, with a union-find over terms: a leaf that is equated with a product or a concat is refined into it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import ShapeError

AxisId = int
ONE: AxisId = 0
"""The axis of every dimension of extent 1. It broadcasts and is never equated with another axis."""

TermForm = Literal["leaf", "product", "concat"]


class ClashError(Exception):
    """Two axes cannot be equal in whole; the message says why.

    Attributes:
        apart: the parts of them that could not be equated. The equation holds for all units that may go once these are
            frozen; for axes without a common refinement they are the whole axes.
    """

    def __init__(self, reason: str, apart: Sequence[AxisId] = ()) -> None:
        super().__init__(reason)
        self.apart = tuple(apart)


@dataclass(frozen=True, slots=True)
class Atom:
    """``size`` interchangeable units."""

    id: int
    size: int

    def __str__(self) -> str:
        return f"a{self.id}"


@dataclass(frozen=True, slots=True)
class ProductAxis:
    """Factors in row-major order; without factors, the axis of extent 1."""

    factors: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return math.prod(factor.size for factor in self.factors)

    def __str__(self) -> str:
        return "(" + " * ".join(map(str, self.factors)) + ")" if self.factors else "1"


@dataclass(frozen=True, slots=True)
class ConcatAxis:
    """Concatenated parts, in order."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return "(" + " + ".join(map(str, self.parts)) + ")"


Axis = Atom | ProductAxis | ConcatAxis


@dataclass(slots=True)
class _Node:
    size: int
    parent: AxisId
    form: TermForm = "leaf"
    children: tuple[AxisId, ...] = ()
    frozen: str | None = None
    marks: frozenset[str] = frozenset()


class Axes:
    """A set of axes and the equations between them; every equation is solved at once."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = [_Node(1, ONE, "product")]
        self._follow: list[tuple[AxisId, AxisId]] = []
        self._apart: list[AxisId] = []
        self._clash = ""

    def fresh(self, size: int) -> AxisId:
        """An axis of which nothing is known but its extent.

        Raises:
            ShapeError: for a negative extent, which a rule computed from a call that runs past an axis.
        """
        if size < 0:
            raise ShapeError(f"an axis of extent {size}")
        return ONE if size == 1 else self._add(_Node(size, len(self._nodes)))

    def product(self, factors: Iterable[AxisId]) -> AxisId:
        """The row-major product; factors of extent 1 are left out."""
        kept = tuple(f for f in factors if self.find(f) != ONE)
        if len(kept) < 2:
            return kept[0] if kept else ONE
        size = math.prod(self.size(f) for f in kept)
        return self._add(_Node(size, len(self._nodes), "product", kept))

    def concat(self, parts: Iterable[AxisId]) -> AxisId:
        """The concat of parts; empty parts are left out."""
        kept = tuple(p for p in parts if self.size(p))
        if len(kept) == 1:
            return kept[0]
        size = sum(self.size(p) for p in kept)
        return self._add(_Node(size, len(self._nodes), "concat", kept))

    def size(self, axis: AxisId) -> int:
        return self._nodes[axis].size

    def find(self, axis: AxisId) -> AxisId:
        """The representative of an axis."""
        nodes = self._nodes
        while nodes[axis].parent != axis:
            nodes[axis].parent = nodes[nodes[axis].parent].parent
            axis = nodes[axis].parent
        return axis

    def freeze(self, axis: AxisId, reason: str) -> None:
        """Freeze an axis: no unit of it may be removed. The first reason is kept."""
        node = self._nodes[self.find(axis)]
        node.frozen = node.frozen or reason

    def follow(self, axis: AxisId, leader: AxisId) -> None:
        """If ``leader`` is frozen, ``axis`` is frozen too."""
        if self.size(axis) > 1:
            self._follow.append((axis, leader))

    def mark(self, axis: AxisId, mark: str) -> None:
        """Add a mark, a named property, to every atom of this axis."""
        root = self.find(axis)
        if root != ONE:
            self._nodes[root].marks |= {mark}

    def unify(self, a: AxisId, b: AxisId) -> None:
        """State that two axes are equal.

        Raises:
            ClashError: when no refinement makes them equal in whole. All parts that can be equal are equated, and the
                error names the others. Where factors or cuts do not divide one another, the common divisors of the
                innermost ones can be: 4 * 12 and 32 + 16 are both made of runs of 4.
        """
        self._apart = []
        self._equate(a, b)
        if self._apart:
            raise ClashError(self._clash, self._apart)

    def _equate(self, a: AxisId, b: AxisId) -> None:
        """Equate two axes, but for the parts that it notes as apart."""
        a, b = self.find(a), self.find(b)
        if a == b or ONE in (a, b):
            return
        first, second = self._nodes[a], self._nodes[b]
        if first.size != second.size:
            self._part([a, b], f"extents {first.size} and {second.size} differ")
            return
        if first.form != "leaf" and (second.form == "leaf" or (first.form, second.form) == ("product", "concat")):
            a, b, first, second = b, a, second, first
        if first.form == second.form == "product":
            self._align_factors(self._flat(a, "product"), self._flat(b, "product"))
        elif first.form == second.form == "concat":
            self._align_parts(self._flat(a, "concat"), self._flat(b, "concat"))
        elif first.form == "concat":
            self._distribute(b, a)
        self._link(a, b)

    def _part(self, axes: Iterable[AxisId], reason: str) -> None:
        """Note axes that could not be equated. The first reason is kept."""
        self._clash = self._clash if self._apart else reason
        self._apart.extend(axes)

    def _add(self, node: _Node) -> AxisId:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _link(self, child: AxisId, root: AxisId) -> None:
        child, root = self.find(child), self.find(root)
        if child == root:
            return
        below, above = self._nodes[child], self._nodes[root]
        below.parent = root
        above.frozen = above.frozen or below.frozen
        above.marks |= below.marks

    def _flat(self, axis: AxisId, form: TermForm) -> list[AxisId]:
        """The representatives of the children; nested nodes of the same form are flattened."""
        root = self.find(axis)
        if self._nodes[root].form != form or root == ONE:
            return [root]
        return [leaf for child in self._nodes[root].children for leaf in self._flat(child, form)]

    def _split(self, axis: AxisId, lead: int) -> tuple[AxisId, AxisId]:
        """Refine an axis, if a concat one whose parts all allow it, into a product whose first factor has extent
        ``lead``; returns both factors."""
        root = self.find(axis)
        inner = self.fresh(self.size(root) // lead)
        if self._nodes[root].form != "concat":
            leading = self.fresh(lead)
            self._equate(root, self.product((leading, inner)))
            return leading, inner
        leading = self.concat(self._lead_parts(self._flat(root, "concat"), inner))
        self._link(root, self.product((leading, inner)))
        return leading, inner

    def _lead_parts(self, parts: Sequence[AxisId], inner: AxisId) -> list[AxisId]:
        """Refine every part, a multiple of the inner extent, into ``lead * inner``; returns the leads."""
        leads = [self.fresh(self.size(part) // self.size(inner)) for part in parts]
        for part, lead in zip(parts, leads, strict=True):
            self._equate(part, self.product((lead, inner)))
        return leads

    def _run(self, *axes: AxisId) -> int:
        """The longest run that all these axes are made of."""
        return math.gcd(*(self.size(part) for axis in axes for part in self._flat(axis, "concat")))

    def _align_factors(self, left: list[AxisId], right: list[AxisId]) -> None:
        left, right = left[::-1], right[::-1]
        while left and right:
            a, b = self.find(left.pop()), self.find(right.pop())
            if self._nodes[a].form == "product" or self._nodes[b].form == "product":
                left.extend(reversed(self._flat(a, "product")))  # an earlier equation may have refined it
                right.extend(reversed(self._flat(b, "product")))
                a, b = left.pop(), right.pop()
            if self.size(a) < self.size(b):
                a, b, left, right = b, a, right, left
            if self.size(a) > self.size(b):
                reason = self._no_lead(a, b)
                if reason:
                    self._align_innermost([*left, a], [*right, b], reason)
                    return
                a, rest = self._split(a, self.size(b))
                left.append(rest)
            self._equate(a, b)

    def _no_lead(self, a: AxisId, b: AxisId) -> str:
        """Why the longer axis ``a`` cannot be split into ``b`` and a rest; empty when it can."""
        if self.size(a) % self.size(b):
            return f"factors {self.size(a)} and {self.size(b)} have no common refinement"
        inner = self.size(a) // self.size(b)
        odd = next((part for part in self._flat(a, "concat") if self.size(part) % inner), None)
        return "" if odd is None else f"a part of {self.size(odd)} is no multiple of the inner extent {inner}"

    def _align_innermost(self, left: list[AxisId], right: list[AxisId], reason: str) -> None:
        """Equate the innermost runs that two products have in common; their factors are given inner ones first.

        The position modulo a common divisor of the innermost factors is the same in both, whatever stands before them.
        """
        left, right = left[::-1], right[::-1]
        while left and right:
            left[-1:], right[-1:] = self._flat(left[-1], "product"), self._flat(right[-1], "product")
            a, b = sorted((left[-1], right[-1]), key=self.size)
            run = self._run(a, b) if self._run(b) % self.size(a) else self.size(a)
            if run == 1:
                break
            inner = [self._peel(left, run), self._peel(right, run)]
            self._equate(*inner)
        self._part([*left, *right], reason)

    def _peel(self, factors: list[AxisId], run: int) -> AxisId:
        """Take the innermost ``run`` positions off the last of some factors."""
        axis = factors.pop()
        if self.size(axis) == run:
            return axis
        lead, inner = self._split(axis, self.size(axis) // run)
        factors.append(lead)
        return inner

    def _align_parts(self, left: list[AxisId], right: list[AxisId]) -> None:
        left, right = left[::-1], right[::-1]
        while left and right:
            a, b = self.find(left.pop()), self.find(right.pop())
            if self.size(a) < self.size(b):
                a, b, left, right = b, a, right, left
            if self.size(a) > self.size(b):
                head = self.fresh(self.size(b))
                rest = self.fresh(self.size(a) - self.size(b))
                self._equate(a, self.concat((head, rest)))
                a = head
                left.append(rest)
            self._equate(a, b)

    def _distribute(self, product: AxisId, concat: AxisId) -> None:
        """Equate a product with a concat: leading factors become a concat, if all parts are multiples of the rest.

        If they are not, the last factor is split at the longest run that it and all parts are made of.
        """
        factors, parts = self._flat(product, "product"), self._flat(concat, "concat")
        if all(self.size(part) == 1 for part in parts):  # single positions cannot be permuted
            for factor in factors:
                self._equate(factor, self.concat([ONE] * self.size(factor)))
            return
        for k in range(1, len(factors)):
            extent = math.prod(self.size(f) for f in factors[k:])
            if all(self.size(part) % extent == 0 for part in parts):
                inner = self.product(factors[k:])
                leads = self._lead_parts(parts, inner)
                self._equate(self.product(factors[:k]), self.concat(leads))
                return
        sizes = " * ".join(str(self.size(f)) for f in factors), " + ".join(str(self.size(p)) for p in parts)
        reason, noted = f"the cuts {sizes[1]} fall inside the units of {sizes[0]}", len(self._apart)
        run = self._run(factors[-1], *parts)
        if 1 < run < self.size(factors[-1]):
            self._split(factors[-1], self.size(factors[-1]) // run)
            self._distribute(product, concat)
            self._clash = self._clash if noted or len(self._apart) == noted else reason  # in the sizes before the split
        else:
            self._part([*factors, *parts], reason)

    def solve(self, order: Iterable[AxisId]) -> Solution:
        """The terms of all axes; atoms are numbered by first appearance in ``order``."""
        return Solution(self, order)


class Solution:
    """Solved axes: their terms, and the properties of every atom.

    Attributes:
        sizes: atom id -> number of units.
        frozen: atom id -> reason; only for frozen atoms.
        marks: atom id -> marks that rules set.
    """

    def __init__(self, axes: Axes, order: Iterable[AxisId]) -> None:
        self._axes = axes
        self._terms: dict[AxisId, Axis] = {ONE: ProductAxis(())}
        self.sizes: dict[int, int] = {}
        self.frozen: dict[int, str] = {}
        self.marks: dict[int, set[str]] = {}
        self._leaves: dict[AxisId, int] = {}
        for axis in order:
            self.term(axis)
        self._spread()

    def term(self, axis: AxisId) -> Axis:
        """The term of an axis; the same object for the same axis."""
        root = self._axes.find(axis)
        if root not in self._terms:
            self._terms[root] = self._build(root)
        return self._terms[root]

    def _build(self, root: AxisId) -> Axis:
        node = self._axes._nodes[root]
        if node.form == "leaf":
            atom = Atom(len(self.sizes), node.size)
            self._leaves[root] = atom.id
            self.sizes[atom.id] = node.size
            return atom
        children = tuple(self.term(c) for c in self._axes._flat(root, node.form))
        return ProductAxis(children) if node.form == "product" else ConcatAxis(children)

    def _spread(self) -> None:
        """Pass freezes and marks from every term to its atoms."""
        for root, node in enumerate(self._axes._nodes):
            if self._axes.find(root) != root or (node.frozen is None and not node.marks):
                continue
            for atom in atoms_of(self.term(root)):
                if node.frozen is not None:
                    self.frozen.setdefault(atom.id, node.frozen)
                self.marks.setdefault(atom.id, set()).update(node.marks)
        self._spread_to_followers()

    def _spread_to_followers(self) -> None:
        """Freeze the followers of frozen axes, their followers, and so on."""
        pending = list(self._axes._follow)
        found = True
        while found:
            found = False
            for pair in list(pending):
                axis, leader = map(self.term, pair)
                reason = next((self.frozen[atom.id] for atom in atoms_of(leader) if atom.id in self.frozen), None)
                if reason is not None:
                    pending.remove(pair)
                    found = True
                    for atom in atoms_of(axis):
                        self.frozen.setdefault(atom.id, reason)


def atoms_of(axis: Axis) -> list[Atom]:
    """All atoms of a term from left to right; an atom that occurs twice is listed twice."""
    if isinstance(axis, Atom):
        return [axis]
    children = axis.factors if isinstance(axis, ProductAxis) else axis.parts
    return [atom for child in children for atom in atoms_of(child)]
