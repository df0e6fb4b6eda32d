"""The BlockRunner: block by block, all batches in step, forward and back, wherever the weights are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.backends.huggingface.streamed_weights import obstacle, stored_tensors
from fxprune.ir.errors import FxpruneError
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.runtime.streaming.mapped_files import Checkpoint
from fxprune.runtime.streaming.residence import Residence
from fxprune.runtime.streaming.reverse import GradientReceiver
from fxprune.runtime.streaming.store import InMemory, OnDisk, Store
from fxprune.tracer.model import build_meta

from ..families import causal_lm

FAMILIES = ["llama", "gpt2", "falcon", "mixtral", "mamba", "gemma3n_text", "xlm", "blt", "zamba2"]
"""A fifth of what there is would take minutes: these have biases, parallel parts, experts, states, several lists of
blocks, caches that blocks write to, outputs that are written to, and blocks that share weights."""

STREAMED = ["llama", "gpt2", "falcon", "gemma2", "mamba"]


class Kept(GradientReceiver):
    """All gradients, by batch and name."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.gradients: dict[tuple[int, str], Tensor] = {}
        self.done: list[str] = []

    def parameter(self, batch: int, name: str, weight: Tensor, gradient: Tensor) -> None:
        assert (batch, name) not in self.gradients, "a gradient comes once"
        assert name not in self.done
        assert weight.shape == gradient.shape
        assert not weight.detach().isnan().any(), "the weight is in memory"
        self.gradients[batch, name] = gradient.clone()

    def finished(self, names: Iterable[str]) -> None:
        self.done += names


def tokens(count: int = 2) -> list[Tensor]:
    """Batches ``[2, 8]``."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return [torch.randint(3, causal_lm.VOCAB, (2, 8), generator=generator) for generator in generators]


def loss_on(ids: Tensor) -> Any:
    return lambda model: model(input_ids=ids, labels=ids, use_cache=False).loss


def logits_on(ids: Tensor) -> Any:
    return lambda model: model(input_ids=ids, use_cache=False).logits


def whole_backward(model: nn.Module, losses: list[Any]) -> dict[tuple[int, str], Tensor]:
    """Gradients by torch alone."""
    found = {}
    for number, loss in enumerate(losses):
        model.zero_grad()
        loss(model).backward()
        found |= {(number, n): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def offloaded(model: Any, folder: Path, *, on_disk: bool) -> BlockRunner:
    """The same model with its weights in files."""
    model.save_pretrained(folder)
    checkpoint = Checkpoint(sorted(folder.glob("*.safetensors")))
    module = build_meta(model.config, buffers=True)
    assert not obstacle(checkpoint, module)
    (folder / "written").mkdir()
    shelf = OnDisk(lambda: folder / "written") if on_disk else InMemory()
    store = Store(stored_tensors(checkpoint, module), shelf, resident=not on_disk)
    return BlockRunner(module, Residence(module, store, torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_whole_backward(family: str) -> None:
    model = causal_lm.tiny_model(family).float()
    losses = [loss_on(ids) for ids in tokens()]
    expected = whole_backward(model, losses)
    runner, kept = BlockRunner(model), Kept()
    names = [name for name, _ in model.named_parameters()]
    before = [p.requires_grad for p in model.parameters()]
    runner.gradients(losses, names, kept)
    assert {key for key in expected if expected[key].any()} <= kept.gradients.keys()
    assert sorted(kept.done) == sorted(names)
    for key, gradient in kept.gradients.items():
        wanted = expected.get(key, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, wanted, rtol=2e-4, atol=1e-7)
    if family in STREAMED:
        assert all(torch.equal(kept.gradients[key], expected[key]) for key in expected), "to the last bit"
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("family", "why"), [("gemma3n_text", "writes to what it is given"), ("xlm", "written to")])
def test_blocks_that_pass_on_more_than_outputs_are_left_whole(family: str, why: str) -> None:
    model = causal_lm.tiny_model(family).float()
    runner = BlockRunner(model)
    lists = len(runner.blocks.modules)
    runner.gradients([loss_on(ids) for ids in tokens(1)], [], Kept())
    assert any(why in reason for reason in runner.whole.values())
    assert len(runner.blocks.modules) < lists


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("family", STREAMED)
def test_weights_elsewhere_give_the_same_bits(family: str, on_disk: bool, tmp_path: Path) -> None:
    model = causal_lm.tiny_model(family).float()
    runner, whole = offloaded(model, tmp_path, on_disk=on_disk), BlockRunner(model)
    feeds, losses = [logits_on(ids) for ids in tokens()], [loss_on(ids) for ids in tokens()]
    with torch.no_grad():
        expected = [feed(model) for feed in feeds]
    with runner.session() as module:
        called = [feed(module) for feed in feeds]
    for results in (whole.run(feeds), runner.run(feeds), called):
        assert all(torch.equal(got, wanted) for got, wanted in zip(results, expected, strict=True))
    names = [name for name, _ in model.named_parameters()]
    first, second = Kept(), Kept()
    assert whole.gradients(losses, names, first) == runner.gradients(losses, names, second)
    assert first.gradients.keys() == second.gradients.keys()
    assert all(torch.equal(first.gradients[key], second.gradients[key]) for key in first.gradients)
    assert all(parameter.is_meta for parameter in runner.model.parameters()), "nothing stays in memory"


def test_a_block_is_in_memory_during_its_turn_only(tmp_path: Path) -> None:
    model = causal_lm.tiny_model("llama").float()
    runner = offloaded(model, tmp_path, on_disk=True)
    with_values = []
    for turn in runner.turns([logits_on(ids) for ids in tokens()]):
        there = {name for name, p in runner.model.named_parameters() if not p.detach().isnan().any()}
        with_values.append({name for name in there if runner.blocks.holder(name) is not None})
        assert with_values[-1] == {f"{turn.path}.{name}" for name, _ in turn.block.named_parameters()}
        assert turn.batches == [0, 1]
    assert len(with_values) == len(runner.blocks.modules)


def test_what_a_turn_changes_passes_on_and_is_kept(tmp_path: Path) -> None:
    model = causal_lm.tiny_model("llama").float()
    runner, name = offloaded(model, tmp_path, on_disk=True), "model.layers.0.mlp.down_proj.weight"
    dense = runner.twin()
    for turn in runner.turns([logits_on(tokens(1)[0])]):
        if turn.path == "model.layers.0":
            before = turn.run(0)
            turn.block.get_parameter("mlp.down_proj.weight").data.mul_(0.5)
            runner.residence.keep([name])  # type: ignore[union-attr]
            assert not torch.equal(turn.run(0), before), "it runs with its present weights"
    with torch.no_grad():
        kept = model.get_parameter(name).detach().clone()
        assert torch.equal(runner.value(name), kept / 2)
        assert torch.equal(dense.value(name), kept), "a twin looks back"
        model.get_parameter(name).mul_(0.5)
        expected = logits_on(tokens(1)[0])(model)
    assert torch.equal(runner.run([logits_on(tokens(1)[0])])[0], expected)


def test_an_error_in_a_batch_ends_all_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = causal_lm.tiny_model("llama").float()
    runner = offloaded(model, tmp_path, on_disk=True)

    def fails(module: nn.Module) -> None:
        logits_on(tokens(1)[0])(module)
        raise ValueError("of a feed")

    with pytest.raises(ValueError, match="of a feed"):
        runner.run([logits_on(tokens(1)[0]), fails])
    steps = runner.turns([logits_on(ids) for ids in tokens()])
    next(steps)
    steps.close()
    assert all(parameter.is_meta for parameter in runner.model.parameters())
    assert not any("forward" in vars(module) for module in runner.model.modules())
    with pytest.raises(FxpruneError, match="is nan"):
        runner.gradients([lambda m: loss_on(tokens(1)[0])(m) * torch.nan], [], Kept())


class Looped(nn.Module):
    """Two blocks that run three times each, and share one parameter with what is outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])
        self.layers[1].append(nn.Linear(6, 6))
        self.layers[1][2].weight = nn.Parameter(torch.randn(6, 6))
        self.mix = nn.Linear(6, 6)
        self.mix.weight = self.layers[1][2].weight

    def forward(self, ids: Tensor) -> Any:
        start = x = self.table(ids)
        for _ in range(3):
            for layer in self.layers:
                x = layer(x) + self.mix(start) * x.mean()
        return SimpleNamespace(loss=F.cross_entropy((x @ self.table.weight.T).flatten(0, 1), ids.flatten()))


def test_blocks_that_run_again_and_shared_weights_have_complete_gradients() -> None:
    model = Looped()
    losses = [lambda m, ids=ids % 11: m(ids).loss for ids in tokens(3)]
    expected, kept = whole_backward(model, losses), Kept()
    BlockRunner(model).gradients(losses, [name for name, _ in model.named_parameters()], kept)
    assert kept.gradients.keys() == expected.keys()
    for key, gradient in kept.gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-7)
