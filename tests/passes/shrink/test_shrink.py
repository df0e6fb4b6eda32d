"""Plans and the smaller graph: what is refused, which arguments change, and that cutting equals zeroing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.backends.graph_module import raise_graph
from fxprune.ir import RequestError
from fxprune.ir.parser import parse_graph
from fxprune.ir.text import print_arg
from fxprune.passes.couple.coupling import Coupling, couple
from fxprune.passes.shrink.graph import extents_by_module, make_plan, rewrite

from ... import random_models
from ...draws import draws
from ...equivalence import TOLERANCE, difference, draw_plan, tensors_of
from ...ir.test_golden import sections


def golden(case: str) -> Coupling:
    return couple(parse_graph(sections(case)["graph"]))


def arrays(**keep: list[int]) -> dict[str, Any]:
    """``kv_heads=[0]`` -> the units of ``model:kv_heads``."""
    return {f"model:{name.replace('__', '.')}": np.array(units, dtype=np.int64) for name, units in keep.items()}


SORTED = "that are not sorted, unique and within 0.."
ERRORS = [
    ({"nobody": [0]}, "the plan names a group 'model:nobody' that this model does not have", "fxprune trace MODEL"),
    (
        {"channels": [0]}, "the plan cuts model:channels, which is frozen: input of the model, %x",
        "leave this group out of the plan",
    ),
    ({"kv_heads": []}, f"the plan keeps units of model:kv_heads {SORTED}2", "at least one unit"),
    ({"kv_heads": [1, 0]}, f"the plan keeps units of model:kv_heads {SORTED}2", "in ascending order"),
    ({"kv_heads": [1, 1]}, f"the plan keeps units of model:kv_heads {SORTED}2", "in ascending order"),
    ({"kv_heads": [-1, 0]}, f"the plan keeps units of model:kv_heads {SORTED}2", "in ascending order"),
    ({"kv_heads": [0, 3]}, f"the plan keeps units of model:kv_heads {SORTED}2", "in ascending order"),
    ({"query_heads": [0, 6]}, f"the plan keeps units of model:query_heads {SORTED}5", "in ascending order"),
    (
        {"query_heads": [0, 1, 2, 4]}, "the plan keeps [1, 2] units of model:query_heads per unit of model:kv_heads",
        "keep equally many units per parent unit",
    ),
    (
        {"query_heads": [2]}, "the plan keeps [0, 1] units of model:query_heads per unit of model:kv_heads",
        "keep equally many units per parent unit",
    ),
    (
        {"kv_heads": [0, 1], "query_heads": [0, 4]},
        "the plan keeps [0, 1] units of model:query_heads per unit of model:kv_heads",
        "keep equally many units per parent unit",
    ),
    (
        {"kv_heads": [0, 1], "query_heads": [4, 5]},
        "the plan keeps [0] units of model:query_heads per unit of model:kv_heads",
        "keep equally many units per parent unit",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keep", "message", "hint"), ERRORS, ids=lambda value: str(value)[:40])
def test_a_plan_that_cannot_be(keep: dict[str, list[int]], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_plan(golden("llama_attention"), arrays(**keep))
    assert caught.value.message == message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_plan_lists_every_dimension_that_shrinks_and_no_other() -> None:
    plan = make_plan(golden("llama_attention"), arrays(kv_heads=[0, 2], head_dim=[1]))
    q = [unit * 4 + i for unit in (0, 1, 4, 5) for i in (1, 3)]
    assert {key: kept.tolist() for key, kept in plan.slices.items()} == {
        ("q_proj.weight", 0): q,
        ("k_proj.weight", 0): [1, 3, 9, 11],
        ("v_proj.weight", 0): [0, 1, 2, 3, 8, 9, 10, 11],
        ("o_proj.weight", 1): [unit * 4 + i for unit in (0, 1, 4, 5) for i in range(4)],
        ("cos", 1): [1, 3],
        ("sin", 1): [1, 3],
    }
    assert not plan.removes_nothing


def test_every_kv_head_keeps_its_own_query_heads_and_strays_under_removed_ones_change_nothing() -> None:
    coupling = golden("llama_attention")
    plan = make_plan(coupling, arrays(kv_heads=[0, 2], query_heads=[1, 4]))
    assert plan.slices["q_proj.weight", 0].tolist() == [4, 5, 6, 7, 16, 17, 18, 19]
    strays = make_plan(coupling, arrays(kv_heads=[0, 2], query_heads=[1, 2, 3, 4]))
    assert strays.slices["q_proj.weight", 0].tolist() == plan.slices["q_proj.weight", 0].tolist()
    expands = [op.args[1] for op in rewrite(coupling, strays).ops if op.target == "aten.expand"]
    assert expands == [(7, 2, 1, 11, 4)] * 2


def test_a_tied_tensor_stands_under_its_first_name_only() -> None:
    plan = make_plan(golden("tied_embedding"), arrays(channels=[0, 3]))
    assert {name for name, _ in plan.slices} == {"embed.weight", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("keep", [{}, {"model:kv_heads": np.arange(3)}, {"model:channels": np.arange(20)}])
def test_keeping_everything_removes_nothing(keep: dict[str, Any]) -> None:
    coupling = golden("llama_attention")
    plan = make_plan(coupling, keep)
    assert plan.removes_nothing
    assert not plan.keep
    before, after = coupling.graph, rewrite(coupling, plan)
    assert [(op.target, print_arg(op.args), print_arg(tuple(op.kwargs.items()))) for op in after.ops] == [
        (op.target, print_arg(op.args), print_arg(tuple(op.kwargs.items()))) for op in before.ops
    ]


ONE_OPERATOR = {
    "aten.view(%h, [7, 4, 3]) : f32[7, 4, 3]": "aten.view(%h, [7, 2, 3])",
    "aten.slice.Tensor(%h, 1, 3, 9) : f32[7, 6]": "aten.slice.Tensor(%h, 1, 2, 5)",
    "aten.expand(%e, [7, 12, 12]) : f32[7, 12, 12]": "aten.expand(%e, [7, 6, 12])",
    "aten.repeat(%h, [2, 3]) : f32[14, 36]": "aten.repeat(%h, [2, 3])",
    "aten.narrow(%h, 1, -4, 4) : f32[7, 4]": "aten.narrow(%h, 1, 3, 3)",
    "aten.select.int(%h, 1, 6) : f32[7]": "aten.select.int(%h, 1, 1)",
    "aten.squeeze(%e) : f32[7, 12]": "aten.reshape(%e, [7, 6])",
}
KEPT = {
    "aten.view": [3, 4, 5, 9, 10, 11], "aten.slice.Tensor": [0, 1, 4, 6, 8, 10], "aten.narrow": [0, 1, 2, 8, 9, 11],
    "aten.select.int": [3, 6, 8, 9, 10, 11],
}  # fmt: skip


@pytest.mark.parametrize(("line", "wanted"), ONE_OPERATOR.items(), ids=list(ONE_OPERATOR.values()))
def test_arguments_follow_the_positions_that_stay(line: str, wanted: str) -> None:
    """Half of 12 units of ``%h`` stay; here they are listed by position and translated to the units of its groups."""
    graph = parse_graph(
        "graph @g(%x: f32[7, 5]) -> %z\n"
        '  %w = param "w" : f32[12, 5]\n'
        "  %h = aten.linear(%x, %w) : f32[7, 12]\n"
        "  %e = aten.unsqueeze(%h, 2) : f32[7, 12, 1]\n"
        f"  %y = {line}\n"
        "  %z = aten.sum(%x) : f32[]\n"
    )
    coupling = couple(graph)
    target = line.partition("(")[0]
    positions = KEPT.get(target, [0, 2, 4, 6, 8, 10])
    keep: dict[str, Any] = {}
    for group in coupling.prunable:
        for member in group.members:
            units = group.unit_map(member.axis)[positions]
            keep[group.name] = np.unique(units[units >= 0])
    after = rewrite(coupling, make_plan(coupling, keep))
    op = after.ops[2]
    assert f"{op.target}({', '.join(map(print_arg, op.args))})" == wanted


def test_extents_by_module() -> None:
    coupling = golden("phi3_mlp")
    after = rewrite(coupling, make_plan(coupling, arrays(width=[0, 1, 4, 6, 7])))
    found = extents_by_module(coupling.graph, after)
    assert found["gate_up_proj"] == {(20, 20), (16, 10)}
    assert found["down_proj"] == {(20, 20), (8, 5)}
    assert found["norm"] == {(20, 20)}
    assert found[""] == {(20, 20), (16, 10), (8, 5)}
    assert set(found) == {"", "norm", "gate_up_proj", "down_proj"}


def test_extents_of_a_module_are_those_of_its_parents_too() -> None:
    graph = parse_graph(
        'graph @g(%x: f32[b, 5]) -> %y where b=3\n  %w = param "w" : f32[4, 5]\n  %v = param "v" : f32[2, 4]\n'
        "  %h = aten.linear(%x, %w) : f32[b, 4]  # layers.0.mlp m.py:1\n"
        "  %y = aten.linear(%h, %v) : f32[b, 2]  # layers.0 m.py:2\n"
    )
    coupling = couple(graph)
    (group,) = coupling.prunable
    found = extents_by_module(graph, rewrite(coupling, make_plan(coupling, {group.name: np.array([1])})))
    assert found == {
        "layers.0.mlp": {(4, 1), (5, 5)},
        "layers.0": {(4, 1), (5, 5), (2, 2)},
        "layers": {(4, 1), (5, 5), (2, 2)},
        "": {(4, 1), (5, 5), (2, 2)},
    }


def test_constants_are_cut_where_they_are_used() -> None:
    graph = parse_graph("""\
graph @g(%x: f32[3, 5]) -> %y
  %w = param "w" : f32[4, 5]
  %v = param "v" : f32[2, 4]
  %t = buffer "table" : f32[4]
  %c = constant : f32[4]
  fold %cos = aten.cos(%t) : f32[4]
  %h = aten.linear(%x, %w) : f32[3, 4]
  %m = aten.mul.Tensor(%h, %cos) : f32[3, 4]
  %n = aten.add.Tensor(%m, %c) : f32[3, 4]
  %y = aten.linear(%n, %v) : f32[3, 2]
""")
    coupling = couple(graph)
    (group,) = coupling.prunable
    plan = make_plan(coupling, {group.name: np.array([1, 3])})
    assert {name for name, _ in plan.slices} == {"w", "v"}
    after = rewrite(coupling, plan)
    assert [f"{op.target} {print_arg(op.args)} -> {op.result}" for op in after.folded] == [
        "aten.cos [%t] -> %cos",
        "fxprune.take [%c, 0, [1, 3]] -> %c.kept0",
        "fxprune.take [%cos, 0, [1, 3]] -> %cos.kept0",
    ]
    assert [p.value.shape for p in after.parameters] == [(2, 5), (2, 2), (4,)]
    w, v, t, c, x = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 5), (2, 4), (4,), (4,), (3, 5)))
    small = raise_graph(after, {"w": w[[1, 3]], "v": v[:, [1, 3]], "table": t}, {"c": c}, dtype=torch.float64)
    expected = ((x @ w.T * t.cos() + c)[:, [1, 3]]) @ v[:, [1, 3]].T
    torch.testing.assert_close(small(x)[0], expected, rtol=1e-12, atol=1e-12)


def test_a_position_that_holds_two_units_goes_when_either_does() -> None:
    """All pairs of four units, flat for a while: two units leave four pairs."""
    graph = parse_graph("""\
graph @g(%x: f32[3, 5]) -> %y
  %a = param "a" : f32[4, 5]
  %h = aten.linear(%x, %a) : f32[3, 4]
  %u = aten.unsqueeze(%h, 1) : f32[3, 1, 4]
  %v = aten.unsqueeze(%h, 2) : f32[3, 4, 1]
  %w = aten.mul.Tensor(%u, %v) : f32[3, 4, 4]
  %f = aten.view(%w, [3, 16]) : f32[3, 16]
  %r = aten.relu(%f) : f32[3, 16]
  %s = aten.view(%r, [3, 4, 4]) : f32[3, 4, 4]
  %y = aten.sum.dim_IntList(%s, [1, 2]) : f32[3]
""")
    coupling = couple(graph)
    (group,) = coupling.prunable
    after = rewrite(coupling, make_plan(coupling, {group.name: np.array([0, 3])}))
    assert [op.result.shape for op in after.ops[3:]] == [(3, 2, 2), (3, 4), (3, 4), (3, 2, 2), (3,)]
    a, x = (torch.randn(shape, dtype=torch.float64) for shape in ((4, 5), (3, 5)))
    small = raise_graph(after, {"a": a[[0, 3]]}, dtype=torch.float64)(x)[0]
    h = x @ a[[0, 3]].T
    torch.testing.assert_close(small, (h[:, :, None] * h[:, None]).relu().sum((1, 2)), rtol=1e-12, atol=1e-12)


@draws(15)
@given(data=st.data())
def test_a_random_plan_on_a_random_model_equals_zeroing(data: st.DataObject) -> None:
    model = data.draw(random_models.models())
    traced = random_models.traced(model)
    coupling = couple(traced.graph)
    assert not coupling.unknown
    whole = raise_graph(traced.graph, tensors_of(model), traced.constants)
    x = torch.randn(random_models.BATCH, random_models.LENGTH, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(whole(x)[0], model(x), rtol=1e-12, atol=1e-12)
    for _ in range(3):
        assert difference(traced, coupling, model, draw_plan(coupling, data)) <= TOLERANCE
