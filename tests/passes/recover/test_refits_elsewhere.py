"""Refits where weights are elsewhere, and how often a layer runs: results do not depend on either."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig

import fxprune
from fxprune.backends.huggingface import weight_source
from fxprune.ir.groups import Group, Kind
from fxprune.passes.calibrate.dense_and_pruned import DenseAndPruned
from fxprune.passes.recover.block_distillation import distil_blocks
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.score import output_metrics
from fxprune.passes.score.obs import Obs
from fxprune.passes.score.random import Random
from fxprune.passes.state import State
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm

from ...checkpoints import WIDTHS, contents, write_checkpoint
from ...corpora import word_tokenizer
from ...decoders import llama
from ...runtime.test_block_runner import offloaded
from ...states import decoder_state, module_state, run_passes

pytestmark = pytest.mark.usefixtures("one_thread")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT = [" ".join(LETTERS[i * i % 26] for i in range(start, start + 60)) for start in range(12)]
SMALL = "samples=12,length=16"
PLAIN = LlamaConfig(**WIDTHS | {"num_hidden_layers": 3})
BIASED = LlamaConfig(**WIDTHS, attention_bias=True, mlp_bias=True)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (PLAIN, f"wanda{{{SMALL}}},compensate{{{SMALL}}}"),
        (PLAIN, f"obs{{{SMALL}}},compensate{{{SMALL}}}"),
        (PLAIN, f"obs{{by=global,channels=true,{SMALL}}},compensate{{{SMALL}}}"),
        (PLAIN, f"drop{{layers=1,{SMALL}}},obs{{sequential=false,{SMALL}}},compensate{{residual=false,{SMALL}}}"),
        (BIASED, f"taylor{{{SMALL}}},compensate{{method=bias,{SMALL}}}"),
    ],
)
def test_the_same_bytes_wherever_weights_are(
    config: LlamaConfig, passes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})
    source = write_checkpoint(tmp_path / "source", config, dtype=torch.float32)
    word_tokenizer({word: number for number, word in enumerate(LETTERS)}).save_pretrained(source)
    before = contents(source)
    found = {}
    for offload in ("none", "memory", "disk"):
        out = tmp_path / offload
        applied = fxprune.apply(source, passes, calib=TEXT, ratio=0.5, out=out, device="cpu", offload=offload)
        assert applied.placement is not None
        assert applied.placement.offload == offload
        found[offload] = contents(out)
    assert found["memory"] == found["disk"] == found["none"]
    assert contents(source) == before, "the source is mapped, and not written to"
    refitted = load_file(tmp_path / "none" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert refitted.shape == (16 if "channels" in passes else 32, 24) or "global" in passes


def elsewhere(model: Any, folder: Path) -> State:
    """A state of a copy of the model whose weights are in files."""
    folder.mkdir()
    runner = offloaded(model, folder, on_disk=True)
    traced = trace_causal_lm(copy.deepcopy(model))
    return decoder_state(runner.model, traced, residence=runner.residence)


def values(state: State) -> dict[str, Tensor]:
    runner = state.subject.runner
    return {name: runner.value(name).clone() for name, _ in state.subject.model.named_parameters()}


STEPS = Random(ratio=0.5, channels=True), Compensate(samples=8, length=8, batch=4)


@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("way", ["lists left whole", "nothing has a turn"])
def test_whole_passes_give_what_turns_give(
    files: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    expected = values(run_passes(decoder_state(copy.deepcopy(model)), *STEPS))
    state = elsewhere(model, tmp_path / "model") if files else decoder_state(copy.deepcopy(model))
    if way == "lists left whole":
        state.subject.whole["model.layers"] = "a test says so"
    else:
        monkeypatch.setattr(DenseAndPruned, "place", lambda *_, **__: None)
    found = values(run_passes(state, *STEPS))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6 * float(expected[name].abs().max()))


def counted(model: Any) -> list[int]:
    """How often each block's first norm has run."""
    runs = [0] * len(model.model.layers)

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[index] += 1

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(count(index))
    return runs


def widths(state: State) -> list[Group]:
    """Heads and inner widths: what two maps of every layer read."""
    assert state.subject.coupling is not None
    return [group for group in state.subject.coupling.groups.values() if group.kind in (Kind.KV_HEADS, Kind.WIDTH)]


@pytest.mark.parametrize(("channels", "sets"), [(False, 2), (True, 4)])
def test_a_dense_layer_runs_once_and_a_pruned_one_for_every_set_of_maps(channels: bool, sets: int) -> None:
    state = run_passes(decoder_state(llama()), Random(ratio=0.5, channels=channels), Compensate(samples=1, length=8))
    assert state.before.same_layers is not None
    dense, pruned = counted(state.before.same_layers), counted(state.subject.model)
    Compensate(samples=8, length=8, batch=2).run(state)
    assert dense == [4, 4]
    # One batch to look at calls; and nothing runs after the last map, which the head is if channels were removed.
    assert pruned == [1 + 4 * sets + 4, 1 + 4 * sets + 4 * channels]


def test_without_refits_one_forward_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    state = decoder_state(llama())
    groups = widths(state)
    runs = counted(state.subject.model)
    monkeypatch.setattr(output_metrics, "activation_gradients", lambda *_: 1)
    Obs(sequential=False, samples=8, length=8, batch=2).scores(groups, state)
    assert runs == [1 + 4, 1 + 4]


def test_metrics_of_one_block_are_in_memory_and_files_go_when_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    given, state = decoder_state(copy.deepcopy(model)), elsewhere(model, tmp_path / "model")
    most = []
    add = output_metrics._OuterProducts.add

    def counting(self: Any, *call: Any) -> None:
        add(self, *call)
        most.append(len(self._growing))

    monkeypatch.setattr(output_metrics._OuterProducts, "add", counting)
    step, scores = Obs(ratio=0.5, samples=8, length=8, batch=4), []
    for one in (state, given):
        scores.append(step.scores(widths(one), one))
        assert max(most) == (2 if one is state else 4)
        most.clear()
    assert all((scores[0][name] == scores[1][name]).all() for name in scores[1])
    gc.collect()
    assert not list((tmp_path / "model" / "written").iterdir())


def test_blocks_are_trained_where_their_weights_are(tmp_path: Path) -> None:
    dense, student = llama(), llama()
    with torch.no_grad():
        for layer in student.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0
    rows = [{"input_ids": [1 + i, 2, 3, 4 + i], "labels": [0] * 4} for i in range(6)]
    options: dict[str, Any] = {"steps": 6, "lr": 0.01, "batch": 2, "seed": 0}
    for name in ("dense", "student"):
        (tmp_path / name).mkdir()
    away = offloaded(student, tmp_path / "student", on_disk=True)
    losses = distil_blocks(away, offloaded(dense, tmp_path / "dense", on_disk=True), rows, **options)
    assert losses == distil_blocks(BlockRunner(student), BlockRunner(dense), rows, **options)
    assert all(torch.equal(away.value(name), parameter) for name, parameter in student.named_parameters())
    assert all(last < first for first, last in losses)


class Notes:
    """What blocks leave for one another, past their outputs."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        notes.left.append(self.down(self.up(x).relu()))
        return x + notes.left[-1] + notes.left[0]


class Chain(nn.Module):
    """Three blocks, in a list or not."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [Noting() for _ in range(3)]
        self.blocks = nn.ModuleList(blocks) if listed else nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        notes = Notes()
        for block in self.blocks:
            x = block(x, notes)
        return x


def test_blocks_that_pass_on_more_than_their_outputs_are_refitted_in_whole_passes() -> None:
    found = []
    for listed in (True, False):
        model = Chain(listed).double().eval()
        data = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        state = module_state(model, data[:2], losses=[lambda m, x=x: m(x).sum() for x in data.split(10)])
        run_passes(state, Random(ratio=0.5), Compensate(damping=1e-6))
        assert len(state.ledger.report["compensate"]["refitted"]) == 3
        assert bool(state.subject.whole) == listed
        found.append(values(state))
    assert all(torch.allclose(found[0][name], found[1][name], rtol=0, atol=1e-9) for name in found[0])
