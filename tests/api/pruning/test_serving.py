"""What `apply` says of servers that need more than the files of the free form, or refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.api.pruning.group_change import GroupChange
from fxprune.api.pruning.result import Applied
from fxprune.backends.huggingface.save import SavedModel
from fxprune.cli import main

DECODER = "transformers.AutoModelForCausalLM"
HEADS, WIDTH = GroupChange("m.0:kv_heads", "kv_heads", 0, 4, 3), GroupChange("m.0:width", "width", 0, 64, 48)
VALUES = GroupChange("m.0:head_dim.1", "head_dim", 0, 64, 48)
NEEDS = "vLLM needs --model-impl transformers --trust-remote-code"
PARTS = {"drop": {"sub_blocks": [{"module": "m.0.attention"}]}}


def said(form: Any, groups: tuple[GroupChange, ...], report: dict[str, Any], loaded_by: str = DECODER) -> list[str]:
    saved = SavedModel(Path("out"), form, "any", checks={"loaded_by": loaded_by})
    return Applied("m", "", "", "", (2, 1), (2, 1), groups, (), report, saved=saved).serving


@pytest.mark.parametrize(
    ("groups", "report", "start"),
    [
        ((HEADS, WIDTH), {}, f"{NEEDS}, and --hf-overrides"),
        ((WIDTH,), {}, f"{NEEDS} (docs/deploy.md)"),
        ((), {"drop": {"dropped": [1]}}, f"{NEEDS} (docs/deploy.md)"),
        ((VALUES, WIDTH), {}, "vLLM refuses models whose values are narrower"),
        ((WIDTH,), PARTS, "vLLM refuses models with parts taken out"),
        ((HEADS, WIDTH), PARTS, "vLLM refuses models with parts taken out"),
    ],
)
def test_one_remark_says_what_is_needed_or_refused(groups: Any, report: dict[str, Any], start: str) -> None:
    (remark,) = said("free", groups, report)
    assert remark.startswith(start)


def test_there_is_no_remark_of_a_plain_configuration_or_of_what_no_known_server_is_for() -> None:
    assert said("uniform", (HEADS,), {}) == []
    assert said("free", (HEADS,), PARTS, "transformers.AutoModelForImageClassification") == []


def test_apply_says_it(tmp_path: Path) -> None:
    heads = fxprune.apply("demo", "random{ratio=0.25,layers=1:3}", out=tmp_path / "heads")
    assert heads.saved is not None
    assert heads.saved.form == "free"
    (remark,) = heads.to_json()["serving"]
    assert "--hf-overrides" in remark


def test_apply_says_it_of_inner_widths_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration has the heads of all layers, so nothing is to be overridden."""
    only = "random{ratio=0.25,layers=1:3,heads=off}"
    assert main(["apply", "demo", "--pass", only, "--out", str(tmp_path / "out")]) == 0
    assert f"{NEEDS} (docs/deploy.md)" in " ".join(capsys.readouterr().out.split())
