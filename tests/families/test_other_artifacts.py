"""Encoders, encoder-decoders, vision, two towers and audio, saved: pruned by the command's own code, reloaded by
transformers alone in a fresh process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from fxprune.api.pruning.request import Applied, apply
from fxprune.backends.verify import Job, verify
from fxprune.passes.model.measure import parameter_count
from fxprune.runtime.tolerances import LOGITS_TOLERANCE

from .other import HALF, NOT_SAVED, NOT_TRACED, ROWS, SAMPLE, SAVED_WITH, STAYS, WITHOUT, tiny_model

PARTS_OF = 16
"""Parts of the rows under the marker ``slow``."""

FAMILIES = [name for name in ROWS if name not in NOT_TRACED and name not in NOT_SAVED]
DEFAULT = [name for name in SAMPLE if name in FAMILIES][::2]
"""Rows that run by default."""
PARTS = [
    *(pytest.param(DEFAULT[part::2], id=f"sample{part}of2") for part in range(2)),
    *(
        pytest.param(FAMILIES[part::PARTS_OF], marks=pytest.mark.slow, id=f"part{part}of{PARTS_OF}")
        for part in range(PARTS_OF)
    ),
]


def saved(name: str, folder: Path) -> Applied:
    """A quarter of the heads, inner widths and residual width of a row removed, half where a quarter is no whole head,
    and written to ``out``."""
    source = folder / name / "source"
    tiny_model(name).save_pretrained(source)
    return apply(
        source,
        f"random{{{SAVED_WITH.get(name, 'channels=true')}}}",
        ratio=0.5 if name in HALF else 0.25,
        seed=1,
        example=ROWS[name].inputs,
        out=folder / name / "out",
    )


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("families", PARTS)
def test_pruned_saved_and_reloaded(families: list[str], tmp_path: Path, jobs: list[Job]) -> None:
    for name in families:
        applied = saved(name, tmp_path)
        found = {"heads" if "heads" in change.kind else change.kind for change in applied.groups}
        expected = {"heads", "width"} - WITHOUT.get(name, set()) - STAYS.get(name, set())
        assert expected <= found, f"{name}: {sorted(found)}"
        assert found & {"heads", "width", "channels"}, name
        jobs[-1] = replace(jobs[-1], consent=jobs[-1].consent.moved(tmp_path / name / "out"))
    assert len(jobs) == len(families) > 0
    for name, checks in zip(families, verify(jobs), strict=True):
        assert checks["logits_worst_difference"] <= LOGITS_TOLERANCE, name
        assert checks["cached_generate_equals_uncached"] is not False, name


def test_a_free_form_is_found_by_the_auto_class_of_its_task(tmp_path: Path) -> None:
    """Pipelines of transformers ask that class alone, so that another one in its place would leave them without.
    ``AutoModel`` loads the model within it."""
    source = tmp_path / "source"
    tiny_model("whisper").save_pretrained(source)
    applied = apply(source, "random{ratio=0.5,seed=1}", form="free", out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert set(config["auto_map"]) == {"AutoModel", "AutoModelForSpeechSeq2Seq"}
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert parameter_count(model) == applied.parameters[1]
    held = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).state_dict()
    expected = model.model.state_dict()
    assert expected
    assert held.keys() == expected.keys()
    assert [name for name in expected if not held[name].equal(expected[name])] == []


def test_the_tables_name_only_what_there_is_and_leave_enough() -> None:
    assert {*NOT_SAVED, *SAVED_WITH, *HALF, *STAYS} <= set(ROWS) - set(NOT_TRACED)
    assert not set(NOT_SAVED) & {*SAVED_WITH, *HALF, *STAYS, *DEFAULT}
    assert len(FAMILIES) >= 100
