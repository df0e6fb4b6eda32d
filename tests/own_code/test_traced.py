"""Models that bring their own code are traced like any other: no group is lost, and removing is zeroing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fxprune
from fxprune.passes.couple.coupling import couple
from fxprune.tests.equivalence import TOLERANCE, difference, random_units
from fxprune.tracer.example import example_inputs, trace_call
from fxprune.tracer.export import Traced, trace_causal_lm
from fxprune.tracer.model import load_model, resolve

from .written import OWN

KINDS = {
    "packed": {"heads", "head_dim", "width"},
    "interleaved": {"kv_heads", "query_heads", "width"},
    "planar": {"heads", "head_dim", "width"},
    "mixture": {"kv_heads", "query_heads", "head_dim", "width"},
    "reader": {"heads", "head_dim", "width"},
}
"""What can be pruned beside the widths that several blocks share."""


def traced(name: str, folder: Path, **fields: int) -> tuple[Traced, torch.nn.Module]:
    fields["padded_vocab_size" if name == "planar" else "vocab_size"] = 40
    model = load_model(resolve(OWN[name].write(folder / name, **fields), trust_remote_code=True))
    return (trace_causal_lm(model) if OWN[name].causal else trace_call(model, example_inputs(model))), model


@pytest.mark.parametrize("name", OWN)
def test_removing_is_zeroing(name: str, tmp_path: Path) -> None:
    graph, model = traced(name, tmp_path)
    coupling = couple(graph.graph)
    free = [group for group in coupling.prunable if not group.normalised and group.size > 1]
    assert {group.kind.value for group in free} - {"channels"} >= KINDS[name]
    generator = np.random.default_rng(0)
    keep: dict[str, np.ndarray] = {}
    for group in sorted(free, key=lambda group: group.parent is not None):
        parents = keep.get(group.parent.name) if group.parent else None
        keep[group.name] = random_units(group, generator, parents)
        if parents is None:
            assert difference(graph, coupling, model, {group.name: keep[group.name]}) <= TOLERANCE, group.name
    assert difference(graph, coupling, model, keep) <= TOLERANCE


def test_one_key_head_for_all_queries(tmp_path: Path) -> None:
    graph, model = traced("interleaved", tmp_path, multi_query_group_num=1)
    coupling = couple(graph.graph)
    (heads, *_) = [group for group in coupling.prunable if group.kind.value in ("heads", "query_heads")]
    assert heads.size == 8
    assert difference(graph, coupling, model, {heads.name: np.array([0, 3, 4, 7])}) <= TOLERANCE


def test_a_loop_that_picks_rows_by_value_is_refused_before_any_pass(tmp_path: Path) -> None:
    source = OWN["mixture"].write(tmp_path / "mixture")
    code = source / "modeling_mixture.py"
    start, end = "            weight = (topk_weight", "        return routed.view"
    held = code.read_text()
    loop = "            rows, place = torch.where(topk_idx == number)\n"
    loop += "            routed.index_add_(0, rows, expert(tokens[rows]) * topk_weight[rows, place, None])\n"
    code.write_text(held[: held.index(start)] + loop + held[held.index(end) :])
    with pytest.raises(fxprune.FxpruneError, match="extents depend on values"):
        fxprune.apply(source, "magnitude", ratio=0.25, out=tmp_path / "out", trust_remote_code=True)
    assert not (tmp_path / "out").exists()
