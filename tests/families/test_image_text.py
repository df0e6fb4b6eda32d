"""Models that make text from images and text: tiny, traced with images in the text, both towers prunable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fxprune.api.pruning.request import apply
from fxprune.backends.graph_module import raise_graph
from fxprune.passes.couple.coupling import couple
from fxprune.runtime.tensors import tensors_by_every_name
from fxprune.runtime.tolerances import LOGITS_TOLERANCE
from fxprune.tracer.example import example_inputs, trace_call, uncached

from ..equivalence import TOLERANCE, difference, random_units
from .image_text import IMAGE_TOKEN, NOT_SAVED, NOT_TRACED, SAMPLE, SAVED_WITH, WITHOUT, names, tiny_model
from .test_families import EXPECTED, cuts

ROWS = [
    pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in names() if name not in NOT_TRACED
]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("name", ROWS)
def test_a_family_couples_and_removing_equals_zeroing(name: str) -> None:
    model = tiny_model(name)
    inputs = example_inputs(model)
    traced = trace_call(model, inputs)
    tensors = {**dict(model.named_buffers(remove_duplicate=False)), **tensors_by_every_name(model)}
    with torch.no_grad():
        made = raise_graph(traced.graph, tensors, traced.constants)(*[inputs[v.name] for v in traced.graph.inputs])
        output = model(**inputs, **uncached(model))
    torch.testing.assert_close(made[0], output[traced.outputs[0]], rtol=1e-4, atol=1e-4)
    coupling = couple(traced.graph)
    kinds = {group.kind for group in coupling.prunable if group.size > 1}
    assert {what for what, any_of in EXPECTED.items() if not kinds & any_of} == WITHOUT.get(name, set())
    generator = np.random.default_rng(0)
    for group in cuts(coupling.prunable):
        found = difference(traced, coupling, model, {group.name: random_units(group, generator)}, given=inputs)
        assert found <= TOLERANCE, group.name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(names()) - set(NOT_TRACED) - set(NOT_SAVED)))
def test_pruned_saved_and_reloaded(name: str, tmp_path: Path) -> None:
    """By plain transformers in a fresh process, and compared with the graph on text with images."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "source")
    save_file(example_inputs(model), tmp_path / "example.safetensors")
    options, example = SAVED_WITH.get(name, "heads=kv,channels=true"), str(tmp_path / "example.safetensors")
    result = apply(
        tmp_path / "source", f"random{{{options}}}", ratio=0.5, seed=1, out=tmp_path / "out", example=example
    )
    assert result.saved is not None
    assert result.saved.checks["logits_worst_difference"] <= LOGITS_TOLERANCE
    assert {"width", "channels"} - WITHOUT.get(name, set()) <= {change.kind for change in result.groups}


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_both_towers_and_the_projector_are_in_the_graph(where: str) -> None:
    model = tiny_model("llava", device=where)
    inputs = example_inputs(model)
    assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == inputs["input_ids"].shape[0] * 16
    traced = trace_call(model, inputs)
    assert [value.name for value in traced.graph.inputs] == ["pixel_values"]
    held = {tensor for group in couple(traced.graph).prunable for tensor in group.tensors}
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        assert any(f".{part}." in name for name in held), part


def test_the_table_names_only_what_there_is() -> None:
    assert set(NOT_TRACED) | set(WITHOUT) | set(SAMPLE) | set(NOT_SAVED) <= set(names())
    assert not set(NOT_TRACED) & (set(WITHOUT) | set(SAMPLE))
    assert len(names()) - len(NOT_TRACED) >= 80
