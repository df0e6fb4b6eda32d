"""Any architecture: tiny models of every causal language model that transformers has and that builds small."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.ir.groups import Group, Kind
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.export import trace_causal_lm

from ..equivalence import TOLERANCE, difference, random_units
from .causal_lm import NOT_TRACED, WITHOUT, inputs, names, tiny_model

SAMPLED = 5
"""Every so many names run by default, the others under the marker ``slow``."""

LONG = {"qwen4_exp"}
"""Half a minute for linear attention, which another of the sampled names has too."""

ROWS = [
    pytest.param(name, marks=() if number % SAMPLED == 0 and name not in LONG else pytest.mark.slow)
    for number, name in enumerate(name for name in names() if name not in NOT_TRACED)
]
EXPECTED = {
    "heads": {Kind.HEADS, Kind.KV_HEADS},
    "width": {Kind.WIDTH},
    "channels": {Kind.CHANNELS},
}


def cuts(groups: list[Group]) -> list[Group]:
    """One group of every kind that no normalisation crosses."""
    chosen: dict[Kind, Group] = {}
    for group in groups:
        if not group.normalised and group.size > 1:
            chosen.setdefault(group.kind, group)
    return list(chosen.values())


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("name", ROWS)
def test_a_family_couples_and_removing_equals_zeroing(name: str) -> None:
    model = tiny_model(name)
    traced = trace_causal_lm(model, **inputs(name))
    coupling = couple(traced.graph)
    kinds = {group.kind for group in coupling.prunable if group.size > 1}
    missing = {what for what, any_of in EXPECTED.items() if not kinds & any_of}
    assert missing == WITHOUT.get(name, set())
    generator = np.random.default_rng(0)
    for group in cuts(coupling.prunable):
        found = difference(traced, coupling, model, {group.name: random_units(group, generator)})
        assert found <= TOLERANCE, group.name


def test_the_table_names_only_what_there_is() -> None:
    assert set(NOT_TRACED) | set(WITHOUT) | LONG <= set(names())
    assert len(NOT_TRACED) <= 14  # at least 175 of 189
