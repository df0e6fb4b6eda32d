"""Any architecture: tiny encoders, encoder-decoders, vision and audio models that transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxprune
from fxprune.ir.groups import Group
from fxprune.ir.plan import Indices
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.export import trace_model

from ..equivalence import TOLERANCE, difference, random_units
from .other import NOT_TRACED, ROWS, SAMPLE, WITHOUT, inputs, tiny_model
from .test_families import EXPECTED, cuts

NORMALISED = {"bit", "convnextv2"}
"""Rows with a normalisation over every group, so that removing is never zeroing; they are checked as modules."""

TRACED = [
    pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in ROWS if name not in NOT_TRACED
]


MODULES = [
    pytest.param(name, marks=() if name in {*NORMALISED, "vit"} else pytest.mark.slow)
    for name in (*SAMPLE, "dinov2_with_registers", "layoutlm", "wav2vec2-conformer")
    if name not in ("deberta-v2", "siglip")
]
"""Rows whose own forward holds at smaller widths: two under normalisations only, one whose head does not read its
pooler, one with tokens that are no channels, one with features of a constant. DeBERTa-v2 has constants that count
samples times heads; SigLIP pools by torch's own attention, which remembers its width."""


def three_quarters(group: Group) -> Indices:
    """The units of a group without the first quarter, within every parent unit; one of two or three stays whole."""
    gone = group.size // 4
    parents = np.arange(group.parent.size if group.parent is not None else 1)
    return (parents[:, None] * group.size + np.arange(gone, group.size)).ravel()


@pytest.mark.parametrize("name", TRACED)
def test_a_family_couples_and_removing_equals_zeroing(name: str) -> None:
    model = tiny_model(name)
    traced = trace_model(model, inputs(name), output=ROWS[name].output, values=inputs(name))
    coupling = couple(traced.graph)
    assert not coupling.unknown
    kinds = {group.kind for group in coupling.prunable if group.size > 1}
    assert {what for what, any_of in EXPECTED.items() if not kinds & any_of} == WITHOUT.get(name, set())
    generator = np.random.default_rng(0)
    for group in cuts(coupling.prunable):
        found = difference(traced, coupling, model, {group.name: random_units(group, generator)})
        assert found <= TOLERANCE, group.name
    every = {group.name: three_quarters(group) for group in coupling.prunable if not group.normalised}
    assert bool(every) is (name not in NORMALISED)
    assert difference(traced, coupling, model, every) <= TOLERANCE


def doubled(name: str) -> dict[str, Any]:
    given = inputs(name)
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}


@pytest.mark.parametrize("name", MODULES)
def test_a_family_is_repaired_in_place_and_equals_its_graph(name: str) -> None:
    result = fxprune.prune_module(tiny_model(name).double(), doubled(name), "random", ratio=0.25)
    assert result.in_place, result.rebuilt_because
    assert result.worst_difference <= TOLERANCE
    assert result.parameters[1] < 0.9 * result.parameters[0]


@pytest.mark.parametrize("name", ["convnext", pytest.param("bert", marks=pytest.mark.slow)])
def test_a_pruned_family_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    result = fxprune.prune_module(tiny_model(name), inputs(name), "random", ratio=0.25)
    result.save(tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs(name))["logits"], result.module(**inputs(name))["logits"])


def test_the_table_is_of_every_kind_and_names_only_what_there_is() -> None:
    assert set(NOT_TRACED) | set(WITHOUT) | set(SAMPLE) <= set(ROWS)
    assert not set(NOT_TRACED) & (set(WITHOUT) | set(SAMPLE))
    assert len(ROWS) - len(NOT_TRACED) >= 105
