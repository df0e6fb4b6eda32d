"""What `apply` says of servers that need more than the files of the free form, or refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.api.pruning.group_change import GroupChange
from fxprune.api.pruning.result import Applied
from fxprune.backends.huggingface.save import SavedModel
from fxprune.backends.huggingface.serving import unlike_config
from fxprune.cli import main

DECODER = "transformers.AutoModelForCausalLM"
HEADS, WIDTH = GroupChange("m.0:kv_heads", "kv_heads", 0, 4, 3), GroupChange("m.0:width", "width", 0, 64, 48)
NEEDS = "vLLM needs --model-impl transformers --trust-remote-code"
ENTRY = {"shapes": {}, "attributes": {}}
PARTS, VALUES = {**ENTRY, "absent": {"m.0.attention": {}}}, {**ENTRY, "values": {"m.0.v_proj": ["makes", 16]}}


def said(
    groups: tuple[GroupChange, ...], entry: Any, again: bool = False, form: Any = "free", loaded_by: str = DECODER
) -> list[str]:
    saved = SavedModel(
        Path("out"), form, "any", checks={"loaded_by": loaded_by}, unlike=unlike_config(entry, again=again)
    )
    return Applied("m", "", "", "", (2, 1), (2, 1), groups, (), {}, saved=saved).serving


@pytest.mark.parametrize(
    ("groups", "entry", "again", "start"),
    [
        ((HEADS, WIDTH), ENTRY, False, f"{NEEDS}, and --hf-overrides"),
        ((WIDTH,), ENTRY, False, f"{NEEDS} (docs/deploy.md)"),
        ((WIDTH,), ENTRY, True, f"{NEEDS}, and --hf-overrides"),
        ((), ENTRY, False, f"{NEEDS} (docs/deploy.md)"),
        ((WIDTH,), VALUES, False, "vLLM refuses models whose values are narrower"),
        ((HEADS,), VALUES, True, "vLLM refuses models whose values are narrower"),
        ((WIDTH,), PARTS, True, "vLLM refuses models with parts taken out"),
        ((HEADS, WIDTH), {**PARTS, **VALUES}, False, "vLLM refuses models with parts taken out"),
    ],
)
def test_one_remark_says_what_is_needed_or_refused(groups: Any, entry: Any, again: bool, start: str) -> None:
    (remark,) = said(groups, entry, again)
    assert remark.startswith(start)


def test_there_is_no_remark_of_a_plain_configuration_or_of_what_no_known_server_is_for() -> None:
    assert said((HEADS,), {}, form="uniform") == []
    assert said((HEADS,), PARTS, loaded_by="transformers.AutoModelForImageClassification") == []


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


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("first", "refused"),
    [
        ("drop{sub_blocks=1,samples=2,length=16}", "refuses models with parts taken out"),
        ("turn{samples=2},magnitude{ratio=0.25,values=true}", "refuses models whose values are narrower"),
        ("random{ratio=0.25,layers=1:3}", "--hf-overrides"),
    ],
)
def test_a_model_that_is_pruned_again_is_refused_as_before(first: str, refused: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert refused in fxprune.apply("demo", first, out=one).serving[0]
    assert refused in fxprune.apply(one, "random{ratio=0.1,heads=off}", out=two).serving[0]
