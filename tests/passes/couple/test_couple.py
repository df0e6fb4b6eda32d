"""Coupling: groups partition what they cover, the network says why, and what cannot be known is frozen."""

from __future__ import annotations

import itertools
from collections import Counter

import networkx as nx
import pytest

from fxprune.ir.axes import atoms_of
from fxprune.ir.groups import Kind, positions
from fxprune.ir.parser import parse_graph
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.couple.explain import why

from ...ir.test_golden import CASES, sections

TWO_LAYERS = """\
graph @g(%x: f32[3, 5]) -> %y
  %a = param "layers.0.up.weight" : f32[8, 5]
  %b = param "layers.0.down.weight" : f32[6, 8]
  %c = param "layers.1.up.weight" : f32[9, 6]
  %d = param "layers.1.down.weight" : f32[6, 9]
  %e = param "head.weight" : f32[2, 6]
  %h = aten.linear(%x, %a) : f32[3, 8]
  %i = aten.linear(%h, %b) : f32[3, 6]
  %j = aten.linear(%i, %c) : f32[3, 9]
  %k = aten.linear(%j, %d) : f32[3, 6]  # layers.1 model.py:4
  %l = aten.add.Tensor(%i, %k) : f32[3, 6]
  %y = aten.linear(%l, %e) : f32[3, 2]
"""


def golden(case: str) -> Coupling:
    return couple(parse_graph(sections(case)["graph"]))


@pytest.mark.parametrize("case", CASES)
def test_groups_partition_the_positions_of_every_tensor(case: str) -> None:
    """A dimension is in each group along it once, and all units of the group stand in it equally often."""
    coupling = golden(case)
    members = [(m.tensor, m.dim, g) for g in coupling.groups.values() for m in g.members]
    for parameter in coupling.graph.parameters:
        for dim, axis in enumerate(coupling.axes[parameter.value]):
            along = [group for tensor, at, group in members if (tensor, at) == (parameter.name, dim)]
            assert sorted(group.atom for group in along) == sorted({atom.id for atom in atoms_of(axis)})
            for group in along:
                found = Counter(unit for unit in positions(axis, group.atom).tolist() if unit >= 0)
                assert sorted(found) == list(range(group.size))
                assert len(set(found.values())) == 1


@pytest.mark.parametrize("case", CASES)
def test_connected_components_of_the_network_are_the_groups(case: str) -> None:
    coupling = golden(case)
    found = [{atom for _, _, atom in component} for component in nx.connected_components(coupling.network)]
    assert all(len(atoms) == 1 for atoms in found)
    assert sorted(atom for atoms in found for atom in atoms) == sorted(coupling.by_atom)
    for component in nx.connected_components(coupling.network):
        names = {p.value: p.name for p in coupling.graph.parameters}
        places = {(names[value], dim) for value, dim, _ in component if value in names}
        ((_, _, atom), *_) = component
        assert places == {(m.tensor, m.dim) for m in coupling.by_atom[atom].members}


@pytest.mark.parametrize("case", CASES)
def test_every_path_of_why_starts_and_ends_where_asked_and_each_hop_is_an_operator(case: str) -> None:
    coupling = golden(case)
    names = {p.name: p.value for p in coupling.graph.parameters}
    assert len(names) > 1
    for first, second in itertools.combinations(names, 2):
        for group, path in why(coupling, first, second).items():
            assert {first, second} <= coupling.groups[group].tensors
            assert (path[0][0], path[0][2]) == (names[first], None)
            assert path[-1][0] is names[second]
            for (before, *_), (after, _, op) in itertools.pairwise(path):
                assert op is not None
                assert {before, after} <= {*op.operands, *op.made}


def test_why_takes_the_shortest_chain() -> None:
    coupling = couple(parse_graph(TWO_LAYERS))
    shown = {
        group: [f"%{value.name}.{dim} {op.target if op else ''}".strip() for value, dim, op in path]
        for group, path in why(coupling, "layers.0.down.weight", "head.weight").items()
    }
    (group,) = shown
    assert coupling.groups[group].kind is Kind.CHANNELS
    assert shown[group] == ["%b.0", "%i.1 aten.linear", "%l.1 aten.add.Tensor", "%e.1 aten.linear"]


def test_why_is_empty_for_weights_that_share_nothing_and_knows_every_name_of_a_tied_one() -> None:
    assert why(couple(parse_graph(TWO_LAYERS)), "layers.0.up.weight", "head.weight") == {}
    tied = golden("tied_embedding")
    assert why(tied, "head.weight", "fc.weight").keys() == why(tied, "embed.weight", "fc.weight").keys() != set()
    with pytest.raises(KeyError):
        why(tied, "nothing", "fc.weight")


def test_a_weight_is_coupled_with_itself_at_no_distance() -> None:
    paths = why(couple(parse_graph(TWO_LAYERS)), "head.weight", "head.weight")
    assert [len(path) for path in paths.values()] == [1, 1]


def test_kinds_layers_and_names() -> None:
    coupling = couple(parse_graph(TWO_LAYERS))
    found = {name: (group.kind, group.layer, group.size) for name, group in coupling.groups.items()}
    assert found == {
        "layers.0:width": (Kind.WIDTH, 0, 8),
        "layers.0.up:width": (Kind.WIDTH, 0, 5),
        "model:channels": (Kind.CHANNELS, None, 6),
        "layers.1:width": (Kind.WIDTH, 1, 9),
        "head:channels": (Kind.CHANNELS, None, 2),
    }
    assert [group.name for group in coupling.prunable] == ["layers.0:width", "model:channels", "layers.1:width"]


def test_coupling_is_deterministic() -> None:
    for case in CASES:
        first, second = golden(case), golden(case)
        assert list(first.groups) == list(second.groups)
        assert [str(a) for axes in first.axes.values() for a in axes] == [
            str(a) for axes in second.axes.values() for a in axes
        ]


def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_reported() -> None:
    coupling = golden("unknown_operator")
    assert [op.target for op in coupling.unknown] == ["aten.renorm"]
    reasons = {group.name: group.frozen for group in coupling.groups.values()}
    assert reasons["up:channels"] == reasons["down:channels"] == "no rule for aten.renorm (aten.renorm)"
    assert reasons["model:channels"] is None


POSITIONS = """
graph @table(%x: f32[b, 6]) -> %out where b=7
  %table = param "positions.weight" : f32[9, 6]
  %half = param "register" : f32[4, 6]
  %w = param "head.weight" : f32[2, 6]
  %reached = aten.slice.Tensor(%table, 0, 0, 5) : f32[5, 6]
  %all = aten.cat([%reached, %half]) : f32[9, 6]
  %scores = aten.linear(%x, %all) : f32[b, 9]
  %mixed = aten.matmul(%scores, %all) : f32[b, 6]
  %out = aten.linear(%mixed, %w) : f32[b, 2]
"""
"""Learned positions, of which the example reaches five, and tokens beside them; none of them is a channel."""


def test_positions_of_a_table_are_no_channels() -> None:
    coupling = couple(parse_graph(POSITIONS))
    reasons = Counter(group.frozen for group in coupling.groups.values())
    assert reasons["positions of positions.weight"] == 2  # reached and not
    assert reasons["positions of register"] == 1


CONSTANT = """
graph @constant(%x: f32[b, 6]) -> %out where b=7
  %w = param "positions.weight" : f32[6, 4]
  fold %table = aten.ones([5, 4]) : f32[5, 4]
  %keys = aten.linear(%table, %w) : f32[5, 6]
  %out = aten.linear(%x, %keys) : f32[b, 5]
"""


def test_features_of_a_constant_stay() -> None:
    coupling = couple(parse_graph(CONSTANT))
    reasons = {group.frozen for group in coupling.groups.values()}
    assert "features of a constant that positions.weight takes in" in reasons


def test_a_unit_that_stands_twice_in_one_product_is_frozen() -> None:
    """All pairs of units: a cut would have to take a row and a column of a flat dimension."""
    coupling = couple(
        parse_graph("""\
graph @g(%x: f32[3, 5]) -> %y
  %a = param "a" : f32[4, 5]
  %b = param "b" : f32[2, 16]
  %h = aten.linear(%x, %a) : f32[3, 4]
  %u = aten.unsqueeze(%h, 1) : f32[3, 1, 4]
  %v = aten.unsqueeze(%h, 2) : f32[3, 4, 1]
  %w = aten.mul.Tensor(%u, %v) : f32[3, 4, 4]
  %f = aten.reshape(%w, [3, 16]) : f32[3, 16]
  %y = aten.linear(%f, %b) : f32[3, 2]
""")
    )
    group = next(group for group in coupling.groups.values() if "a" in group.tensors and group.size == 4)
    assert group.frozen == "the units occur twice in one product"


def test_a_buffer_that_only_folded_operators_read_is_in_no_group() -> None:
    coupling = couple(
        parse_graph("""\
graph @g(%x: f32[3, 5]) -> %y
  %w = param "w" : f32[4, 5]
  %v = param "v" : f32[2, 4]
  %t = buffer "table" : f32[4]
  fold %c = aten.cos(%t) : f32[4]
  %h = aten.linear(%x, %w) : f32[3, 4]
  %m = aten.mul.Tensor(%h, %c) : f32[3, 4]
  %y = aten.linear(%m, %v) : f32[3, 2]
""")
    )
    (group,) = coupling.prunable
    assert group.tensors == {"w", "v"}
    assert not any("table" in group.tensors for group in coupling.groups.values())


def test_what_the_caller_gives_and_gets_is_frozen() -> None:
    reasons = {group.frozen for group in couple(parse_graph(TWO_LAYERS)).groups.values()}
    assert reasons == {None, "input of the model, %x", "output of the model, %y"}
