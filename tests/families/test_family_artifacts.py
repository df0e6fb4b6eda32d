"""Any architecture, saved: pruned by the command's own code, reloaded by transformers alone in a fresh process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fxprune.api.pruning.request import apply
from fxprune.backends.verify import Job, verify
from fxprune.runtime.tolerances import LOGITS_TOLERANCE

from .causal_lm import DECODES_OTHERWISE, HEADS_STAY, NOT_SAVED, NOT_TRACED, SAVED_WITH, WITHOUT, names, tiny_model

PARTS_OF = 20
BY_DEFAULT = (2, 3)
"""Parts of the families that run by default, the others under the marker ``slow``. In these two are mixtures of
experts, a state-space model, encoder-decoders, and attention with biases in place of positions."""

FAMILIES = [name for name in names() if name not in NOT_TRACED and name not in NOT_SAVED]
PARTS = [
    pytest.param(FAMILIES[part::PARTS_OF], marks=() if part in BY_DEFAULT else pytest.mark.slow, id=f"part{part}")
    for part in range(PARTS_OF)
]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("families", PARTS)
def test_pruned_saved_and_reloaded(families: list[str], tmp_path: Path, jobs: list[Job]) -> None:
    for name in families:
        source, out = tmp_path / name / "source", tmp_path / name / "out"
        tiny_model(name).save_pretrained(source)
        options = SAVED_WITH.get(name, "heads=kv,channels=true")
        applied = apply(source, f"random{{{options}}}", ratio=0.5, seed=1, out=out)
        found = {"heads" if "heads" in change.kind else change.kind for change in applied.groups}
        stays = WITHOUT.get(name, set()) | ({"heads"} if name in HEADS_STAY or "heads=off" in options else set())
        assert {"heads", "width"} - stays <= found, name
        assert ("channels" in found) == ("channels=true" in options), name
        jobs[-1] = replace(jobs[-1], consent=jobs[-1].consent.moved(out), decodes=name not in DECODES_OTHERWISE)
    assert len(jobs) == len(families) > 0
    for name, checks in zip(families, verify(jobs), strict=True):
        assert checks["logits_worst_difference"] <= LOGITS_TOLERANCE, name
        assert checks["cached_generate_equals_uncached"] is (name not in DECODES_OTHERWISE), name
