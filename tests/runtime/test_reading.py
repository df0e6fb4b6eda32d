"""How often the weights of a block are read, and what is read ahead."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from fxprune.runtime.streaming import block_runner
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.runtime.streaming.mapped_files import StoredTensor

from ..families import causal_lm
from .test_block_runner import Kept, loss_on, offloaded, tokens


@pytest.mark.parametrize(("kept", "wanted", "reads"), [(1, False, 6), (1 << 28, False, 4), (1, True, 2)])
def test_batches_that_fit_go_back_together_unless_weights_have_gradients(
    kept: int, wanted: bool, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_runner, "HELD", kept)
    runner, name = offloaded(causal_lm.tiny_model("llama").float(), tmp_path, on_disk=True), "model.layers.0.mlp"
    read: list[str] = []
    own = runner.residence.value  # type: ignore[union-attr]
    monkeypatch.setattr(runner.residence, "value", lambda at: read.append(at) or own(at))
    losses = [loss_on(ids) for ids in tokens(3)]
    values = runner.gradients(losses, [f"{name}.up_proj.weight"] if wanted else [], Kept())
    assert read.count(f"{name}.down_proj.weight") == reads, "twice for every batch, or for all that go together"
    assert values == BlockRunner(causal_lm.tiny_model("llama").float()).gradients(losses, [], Kept())


def test_the_next_block_is_announced_on_the_way_on_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = causal_lm.tiny_config("llama")
    config.num_hidden_layers = 4
    runner = offloaded(LlamaForCausalLM(config).float(), tmp_path, on_disk=True)
    announced: list[str | None] = []
    own = StoredTensor.announce

    def note(stored: StoredTensor) -> None:
        announced.append(runner.blocks.holder(stored.name))
        own(stored)

    monkeypatch.setattr(StoredTensor, "announce", note)
    runner.gradients([loss_on(tokens(1)[0])], ["model.layers.0.mlp.up_proj.weight"], Kept())
    turns = [str(path)[-1] for path, _ in groupby(announced)]
    assert turns == ["1", "2", "3", "0", "2", "1", "0", "3"], "on through all, and back from the last one"
