"""What fxprune wrote in the free form is traced, measured and pruned again by its configuration: no file of it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxprune import api
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import FxpruneError

from ...checkpoints import write_checkpoint
from ...corpora import word_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact in the free form, whose modelling file must not run."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source", dtype=torch.float32)
    word_tokenizer({"a": 0, "b": 1}).save_pretrained(source)
    api.apply(str(source), "magnitude{by=global,target=params:0.7}", out=str(tmp_path / "free"), form="free")
    (tmp_path / "free" / "modeling_fxprune.py").write_text("raise SystemExit('this file ran')")
    return tmp_path / "free"


def test_its_own_widths_are_traced(free: Path) -> None:
    traced, loaded = api.trace(str(free)), api.load(free)
    assert traced.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in loaded.named_parameters()}
    found = {parameter.name: parameter.value.shape for parameter in traced.graph.parameters if not parameter.is_buffer}
    assert {name: shapes[name] for name in found} == found


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("offload", ["none", "disk"])
def test_it_is_pruned_again(free: Path, offload: str, tmp_path: Path) -> None:
    before = api.trace(str(free)).parameters
    dry = api.apply(str(free), "magnitude{ratio=0.5}", dry_run=True)
    assert dry.parameters[0] == before
    again = api.apply(str(free), "magnitude{ratio=0.5}", out=str(tmp_path / "again"), offload=offload)
    assert again.parameters == dry.parameters
    loaded = api.load(tmp_path / "again")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == again.parameters[1] < before
    tokens, plain = torch.tensor([[1, 2, 3]]), api.load(free)
    (first,) = {group.after for group in again.groups if group.name == "model.layers.0.mlp:width"}
    kept = plain.model.layers[0].mlp.down_proj.weight.shape[1]
    assert 0 < first < kept
    assert loaded(tokens).logits.isfinite().all()


def test_an_entry_that_fxprune_did_not_write_is_refused(free: Path) -> None:
    config = free / "config.json"
    text = config.read_text()
    assert '"shapes": {' in text
    config.write_text(text.replace('"shapes": {', '"shapes": {"model.norm.weight": [100000],', 1))
    with pytest.raises(FxpruneError, match=r"model\.norm\.weight"):
        api.trace(str(free))
