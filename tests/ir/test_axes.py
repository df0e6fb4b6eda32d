"""The unifier: what every kind of meeting refines, and that it says neither more nor less than the equations."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.ir.axes import ONE, Atom, Axes, Axis, AxisId, ClashError, ConcatAxis, ProductAxis, Solution, atoms_of
from fxprune.ir.groups import positions


def solved(axes: Axes, *shown: AxisId) -> list[str]:
    solution = axes.solve(shown)
    return [str(solution.term(axis)) for axis in shown]


def test_a_leaf_is_refined_by_a_product_or_a_concat_it_meets() -> None:
    axes = Axes()
    flat, heads, width, one, other = (axes.fresh(n) for n in (12, 3, 4, 5, 7))
    axes.unify(flat, axes.product((heads, width)))
    joined = axes.fresh(12)
    axes.unify(axes.concat((one, other)), joined)
    assert solved(axes, flat, heads, width, joined) == ["(a0 * a1)", "a0", "a1", "(a2 + a3)"]


def test_products_are_refined_by_their_common_factors() -> None:
    """32 heads of 8 against 8 kv heads of a group of 4: kv * group * channels."""
    axes = Axes()
    heads, width, kv, group, width2 = (axes.fresh(n) for n in (32, 8, 8, 4, 8))
    axes.unify(axes.product((heads, width)), axes.product((kv, group, width2)))
    assert solved(axes, heads, kv, group, width, width2) == ["(a0 * a1)", "a0", "a1", "a2", "a2"]


def test_concats_are_refined_at_the_union_of_their_cuts() -> None:
    axes = Axes()
    a, b, c, d = (axes.fresh(n) for n in (4, 6, 7, 3))
    axes.unify(axes.concat((a, b)), axes.concat((c, d)))
    assert solved(axes, a, b, c, d) == ["a0", "(a1 + a2)", "(a0 + a1)", "a2"]


def test_rotary_halves_find_each_other() -> None:
    """cat(-x2, x1) meets (x1 + x2)."""
    axes = Axes()
    half, other = axes.fresh(3), axes.fresh(3)
    x = axes.concat((half, other))
    axes.unify(x, axes.concat((other, half)))
    assert solved(axes, x) == ["(a0 + a0)"]


def test_a_product_meets_a_concat_of_whole_multiples_of_its_inner_factor() -> None:
    """Falcon: (h + kv + kv) * d."""
    axes = Axes()
    slots, width, query, key, value = (axes.fresh(n) for n in (8, 5, 30, 5, 5))
    axes.unify(axes.product((slots, width)), axes.concat((query, key, value)))
    assert solved(axes, slots, width, query, key) == ["(a0 + 1 + 1)", "a1", "(a0 * a1)", "a1"]


def test_a_concat_is_split_when_it_meets_a_shorter_leading_factor() -> None:
    axes = Axes()
    first, second, lead, inner = axes.fresh(4), axes.fresh(8), axes.fresh(6), axes.fresh(2)
    joined = axes.concat((first, second))
    axes.unify(axes.product((lead, inner)), joined)
    assert solved(axes, first, second, lead) == ["(a0 * a1)", "(a2 * a1)", "(a0 + a2)"]


def test_cuts_that_fall_inside_the_last_factor_refine_it() -> None:
    axes = Axes()
    lead, inner = axes.fresh(2), axes.fresh(6)
    parts = [axes.fresh(3) for _ in range(4)]
    axes.unify(axes.product((lead, inner)), axes.concat(parts))
    assert solved(axes, *parts, inner) == ["a0", "a0", "a0", "a0", "((1 + 1) * a0)"]


def test_axes_that_no_refinement_makes_the_same_clash() -> None:
    axes = Axes()
    with pytest.raises(ClashError, match="extents 4 and 6 differ"):
        axes.unify(axes.fresh(4), axes.fresh(6))
    with pytest.raises(ClashError, match="factors 6 and 4 have no common refinement"):
        axes.unify(axes.product((axes.fresh(4), axes.fresh(6))), axes.product((axes.fresh(6), axes.fresh(4))))
    with pytest.raises(ClashError, match=r"the cuts 5 \+ 7 fall inside the units of 4 \* 3"):
        axes.unify(axes.product((axes.fresh(4), axes.fresh(3))), axes.concat((axes.fresh(5), axes.fresh(7))))
    short = axes.product((axes.concat((axes.fresh(5), axes.fresh(7))), axes.fresh(2)))
    with pytest.raises(ClashError, match="a part of 5 is no multiple of the inner extent 3"):
        axes.unify(short, axes.product((axes.fresh(4), axes.fresh(6))))


def clashed(axes: Axes, left: AxisId, right: AxisId, *shown: AxisId) -> list[str]:
    """Equate two axes that clash, freeze the parts that stay apart, and show terms; frozen atoms have a ``!``."""
    with pytest.raises(ClashError) as caught:
        axes.unify(left, right)
    for part in caught.value.apart:
        axes.freeze(part, str(caught.value))
    solution = axes.solve(shown)
    marked = re.compile("a([0-9]+)")
    flags = {str(atom): "!" for atom in solution.frozen}
    return [marked.sub(lambda m: m[0] + flags.get(m[1], ""), str(solution.term(axis))) for axis in shown]


def test_cuts_inside_the_units_of_a_normalisation_leave_runs_of_their_common_divisor() -> None:
    """Four groups of 12 over a skip of 32 and one of 16: everything is made of runs of 4."""
    axes = Axes()
    groups, inner, first, second = (axes.fresh(n) for n in (4, 12, 32, 16))
    shown = clashed(axes, axes.product((groups, inner)), axes.concat((first, second)), first, second, groups, inner)
    assert shown == ["(a0! * a1)", "(a2! * a1)", "a3!", "(a4! * a1)"]


def test_factors_that_do_not_divide_one_another_leave_runs_of_their_common_divisor() -> None:
    axes = Axes()
    a, b, c, d = (axes.fresh(n) for n in (4, 18, 6, 12))
    shown = clashed(axes, axes.product((a, b)), axes.product((c, d)), a, b, c, d)
    assert shown == ["a0!", "(a1! * a2)", "a3!", "(a4! * a2)"]


def test_parts_that_the_rest_does_not_divide_are_frozen_and_the_inner_factor_is_not() -> None:
    axes = Axes()
    first, second, lead, inner = (axes.fresh(n) for n in (5, 7, 4, 2))
    left = axes.product((axes.concat((first, second)), inner))
    shown = clashed(axes, left, axes.product((lead, axes.fresh(6))), first, second, lead, inner)
    assert shown == ["a0!", "a1!", "a2!", "a3"]


def test_an_innermost_concat_is_cut_into_runs_of_the_common_divisor_of_all_its_parts() -> None:
    axes = Axes()
    two, four = axes.fresh(2), axes.fresh(4)
    left = axes.product((axes.fresh(6), axes.concat((two, four))))
    assert clashed(axes, left, axes.product((axes.fresh(9), axes.fresh(4))), two, four) == ["a0", "(a1! * a0)"]


def test_extent_one_is_equated_with_nothing_and_vanishes() -> None:
    axes = Axes()
    n, m = axes.fresh(4), axes.fresh(4)
    assert axes.fresh(1) == ONE
    axes.unify(n, ONE)
    axes.unify(ONE, m)
    axes.mark(ONE, "normalised")
    assert axes.product((ONE, n, ONE)) == n
    assert axes.product(()) == axes.product((ONE,)) == ONE
    assert axes.concat((axes.fresh(0), n)) == n
    assert solved(axes, ONE, n, m) == ["1", "a0", "a1"]
    assert axes.solve([n]).marks == {}


def nested() -> tuple[Axes, AxisId, AxisId]:
    axes = Axes()
    flat, lead = axes.fresh(12), axes.fresh(3)
    axes.unify(flat, axes.product((lead, axes.concat((axes.fresh(1), axes.fresh(3))))))
    return axes, flat, lead


def test_a_freeze_reaches_every_atom_of_the_term_and_the_first_reason_stays() -> None:
    axes, flat, lead = nested()
    axes.freeze(flat, "output")
    axes.freeze(flat, "second")
    axes.freeze(lead, "counted")
    assert axes.solve([flat]).frozen == {0: "counted", 1: "output"}


def test_what_was_frozen_and_marked_before_it_was_refined_stays_so() -> None:
    axes = Axes()
    early, a, b = axes.fresh(12), axes.fresh(3), axes.fresh(4)
    axes.freeze(early, "input")
    axes.mark(early, "normalised")
    axes.unify(early, axes.product((a, b)))
    solution = axes.solve([a, b])
    assert solution.frozen == {0: "input", 1: "input"}
    assert solution.marks == {0: {"normalised"}, 1: {"normalised"}}


def test_a_mark_reaches_the_atoms_and_stays_off_the_others() -> None:
    axes, flat, lead = nested()
    axes.mark(lead, "heads")
    axes.mark(flat, "normalised")
    other = axes.fresh(2)
    solution = axes.solve([flat, other])
    assert solution.marks == {0: {"heads", "normalised"}, 1: {"normalised"}}


def test_atoms_are_numbered_by_first_appearance() -> None:
    axes = Axes()
    a, b = axes.fresh(2), axes.fresh(3)
    assert solved(axes, b, a) == ["a0", "a1"]
    solution = axes.solve([b, a])
    assert solution.sizes == {0: 3, 1: 2}
    assert solution.term(a) is solution.term(a)


# Properties. A hidden truth gives every axis a term over hidden atoms; equations are drawn that it obeys.

ATOMS = [Atom(i, size) for i, size in enumerate((2, 2, 3, 4, 6))]
ROW = st.lists(st.sampled_from(ATOMS), min_size=1, max_size=3).map(tuple)


def _product(factors: tuple[Axis, ...]) -> Axis:
    flat = [f for factor in factors for f in (factor.factors if isinstance(factor, ProductAxis) else (factor,))]
    return flat[0] if len(flat) == 1 else ProductAxis(tuple(flat))


def _concat(parts: tuple[Axis, ...]) -> Axis:
    flat = [p for part in parts for p in (part.parts if isinstance(part, ConcatAxis) else (part,))]
    return flat[0] if len(flat) == 1 else ConcatAxis(tuple(flat))


FACTOR = st.one_of(st.sampled_from(ATOMS), ROW.map(_concat))
TERM = st.one_of(
    st.lists(FACTOR, min_size=1, max_size=3).map(tuple).map(_product),
    st.lists(ROW.map(_product), min_size=1, max_size=3).map(tuple).map(_concat),
)
"""Products of concats and concats of products."""


@dataclass
class World:
    """Axes, the hidden term of each, and the equations that were stated and solved."""

    axes: Axes = field(default_factory=Axes)
    hidden: dict[AxisId, Axis] = field(default_factory=dict)
    held: dict[Axis, list[AxisId]] = field(default_factory=lambda: defaultdict(list))
    stated: list[tuple[AxisId, str, tuple[AxisId, ...]]] = field(default_factory=list)

    def axis(self, term: Axis, draw: st.DataObject) -> AxisId:
        """A new axis of this hidden term, or one that is there already."""
        known = self.held[term]
        if known and draw.draw(st.booleans(), label="reuse"):
            return draw.draw(st.sampled_from(known), label="which")
        made = self.axes.fresh(term.size)
        self.hidden[made] = term
        known.append(made)
        return made

    def state(self, axis: AxisId, form: str, children: tuple[AxisId, ...]) -> None:
        build = {"same": lambda c: c[0], "product": self.axes.product, "concat": self.axes.concat}[form]
        try:
            self.axes.unify(axis, build(children))
        except ClashError as clash:
            for part in clash.apart:
                self.axes.freeze(part, str(clash))
        self.stated.append((axis, form, children))


def decompositions(term: Axis) -> list[tuple[str, tuple[Axis, ...]]]:
    """Ways to say the same axis."""
    found: list[tuple[str, tuple[Axis, ...]]] = [("same", (term,))]
    if isinstance(term, ProductAxis):
        cuts = range(1, len(term.factors))
        found += [("product", (_product(term.factors[:k]), _product(term.factors[k:]))) for k in cuts]
        found.append(("product", term.factors))
        if isinstance(first := term.factors[0], ConcatAxis):
            found.append(("concat", tuple(_product((part, *term.factors[1:])) for part in first.parts)))
    elif isinstance(term, ConcatAxis):
        cuts = range(1, len(term.parts))
        found += [("concat", (_concat(term.parts[:k]), _concat(term.parts[k:]))) for k in cuts]
        found.append(("concat", term.parts))
    return found


def coordinates(axis: Axis) -> list[tuple[tuple[int, ...], ...]]:
    """For every position the units that stand there, of every atom; an atom squared in a product has several."""
    if isinstance(axis, Atom):
        return [((axis.id, i),) for i in range(axis.size)]
    if isinstance(axis, ConcatAxis):
        return [c for part in axis.parts for c in coordinates(part)]
    rows: list[tuple[tuple[int, ...], ...]] = [()]
    for factor in axis.factors:
        rows = [(*row, *c) for row in rows for c in coordinates(factor)]
    return rows


def restated(form: str, children: list[list[tuple[tuple[int, ...], ...]]]) -> list[tuple[tuple[int, ...], ...]]:
    """Coordinates of an axis from those of the axes that an equation makes it of."""
    if form != "product":
        return [c for child in children for c in child]
    rows: list[tuple[tuple[int, ...], ...]] = [()]
    for child in children:
        rows = [(*row, *c) for row in rows for c in child]
    return rows


def draw_world(data: st.DataObject) -> tuple[World, Solution]:
    world = World()
    terms = data.draw(st.lists(TERM, min_size=1, max_size=3), label="terms")
    for _ in range(data.draw(st.integers(1, 12), label="equations")):
        term = data.draw(st.sampled_from([*terms, *world.held]), label="term")
        form, children = data.draw(st.sampled_from(decompositions(term)), label="form")
        world.state(world.axis(term, data), form, tuple(world.axis(child, data) for child in children))
    return world, world.axes.solve(world.hidden)


@given(data=st.data())
def test_every_equation_holds_in_the_solution(data: st.DataObject) -> None:
    """For all units that may go, and for all others too unless something clashed."""
    world, solution = draw_world(data)
    assert world.stated
    for axis, form, children in world.stated:
        made = restated(form, [coordinates(solution.term(child)) for child in children])
        assert movable(coordinates(solution.term(axis)), solution) == movable(made, solution)


def movable(rows: list[tuple[tuple[int, ...], ...]], solution: Solution) -> list[tuple[tuple[int, ...], ...]]:
    """Without the units of frozen atoms."""
    return [tuple(unit for unit in row if unit[0] not in solution.frozen) for row in rows]


@given(data=st.data())
def test_positions_are_coupled_only_where_the_truth_couples_them(data: st.DataObject) -> None:
    """What the solution calls the same unit is the same unit in truth: there is nothing that no equation said."""
    world, solution = draw_world(data)
    units = {
        unit
        for axis, term in world.hidden.items()
        for unit in zip(coordinates(solution.term(axis)), coordinates(term), strict=True)
        if unit[0]
    }
    assert len(units) == len({found for found, _ in units})


@given(data=st.data())
def test_the_unit_map_of_a_group_is_what_the_term_says(data: st.DataObject) -> None:
    axis = data.draw(TERM)
    rows = coordinates(axis)
    # An atom that is squared in a product is frozen.
    once = [atom.id for atom in atoms_of(axis) if all(sum(a == atom.id for a, _ in row) <= 1 for row in rows)]
    assert {atom: positions(axis, atom).tolist() for atom in once} == {
        atom: [next((i for a, i in row if a == atom), -1) for row in rows] for atom in once
    }
