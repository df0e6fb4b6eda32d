"""The BlockRunner: block by block, all batches in step, forward and back, wherever the weights are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.backends.huggingface.streamed_weights import obstacle, stored_tensors
from fxprune.ir.errors import FxpruneError
from fxprune.passes.state import Subject
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.runtime.streaming.gradient_receiver import GradientReceiver
from fxprune.runtime.streaming.mapped_files import Checkpoint
from fxprune.runtime.streaming.residence import Residence
from fxprune.runtime.streaming.store import InMemory, OnDisk, Store
from fxprune.tracer.export import trace_model
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
    model = Looped().double()  # the order of sums differs, and some nearly cancel
    losses = [lambda m, ids=ids % 11: m(ids).loss for ids in tokens(3)]
    expected, kept = whole_backward(model, losses), Kept()
    BlockRunner(model).gradients(losses, [name for name, _ in model.named_parameters()], kept)
    assert kept.gradients.keys() == expected.keys()
    for key, gradient in kept.gradients.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-12, atol=1e-14)


class Toy(nn.Module):
    """Two blocks whose forward is called, or only parts of which are, or that remember what they were given."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.table = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([Remembering() if kind == "remembers" else Part() for _ in range(2)])
        self.head = nn.Linear(6, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = x + (layer.inner(x) if self.kind == "parts" else layer(x))
            if self.kind == "remembers":
                x = x * layer.seen
            if self.kind == "read":
                x = x @ layer.inner.weight
        logits: Tensor = self.head(x)
        return logits


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


class Remembering(Part):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.mean()
        return super().forward(x)


def toy(kind: str, folder: Path) -> tuple[Toy, BlockRunner]:
    """The same model with its weights in memory, and in a file."""
    model, empty = Toy(kind).eval(), Toy(kind).to("meta").eval()
    save_file(dict(model.state_dict()), folder / "toy.safetensors")
    store = Store(Checkpoint([folder / "toy.safetensors"]).tensors, InMemory())
    return model, BlockRunner(empty, Residence(empty, store, torch.device("cpu"), torch.float32))


def feeds_on(count: int) -> list[Any]:
    return [lambda model, ids=ids % 11: model(ids) for ids in tokens(count)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("", None),
        ("parts", "layers.0 is not called itself: its parts are"),
        ("remembers", "layers.0 keeps tensors from one call to the next"),
    ],
)
def test_a_list_whose_members_cannot_wait_for_their_turns_runs_as_a_whole(
    kind: str, why: str | None, tmp_path: Path
) -> None:
    model, runner = toy(kind, tmp_path)
    feeds, seen = feeds_on(3), []
    begun_again = []
    with torch.no_grad():
        expected = [feed(model) for feed in feeds]
    runner.model.head.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr,operator]
    found = runner.run(feeds, restart=lambda: begun_again.append(seen.clear()))
    assert all(torch.equal(got, wanted) for got, wanted in zip(found, expected, strict=True))
    assert runner.whole == ({} if why is None else {"layers": why})
    assert len(begun_again) == len(runner.whole)
    assert len(seen) == 3, "what a run that began again had seen is forgotten"
    assert all(parameter.is_meta for parameter in runner.model.parameters())
    assert not any(module._forward_pre_hooks for module in runner.model.modules())


def test_a_session_begins_again_and_gradients_do(tmp_path: Path) -> None:
    model, runner = toy("parts", tmp_path)
    (feed,) = feeds_on(1)

    def called() -> Tensor:
        with runner.session() as module:
            # Within a session that reads the list block by block, a run cannot go on by itself.
            return torch.cat([feed(module), *runner.run([feed])])

    with torch.no_grad():
        assert torch.equal(runner.again(called), torch.cat([feed(model)] * 2))
    fresh, kept = toy("parts", tmp_path)[1], Kept()
    fresh.gradients([lambda m: feed(m).mean()], ["layers.1.inner.weight"], kept)
    feed(model).mean().backward()
    assert torch.equal(kept.gradients[0, "layers.1.inner.weight"], model.layers[1].inner.weight.grad)
    assert fresh.whole.keys() == {"layers"}


def test_weights_that_other_code_reads_are_found_in_the_graph(tmp_path: Path) -> None:
    model, runner = toy("read", tmp_path)
    graph = trace_model(model, {"ids": torch.zeros(2, 3, dtype=torch.long)}).graph
    subject = Subject(graph, runner.model, residence=runner.residence)
    assert subject.whole == {"layers": "layers.0.inner.weight is read in the model's own code"}
    (feed,) = feeds_on(1)
    with torch.no_grad():
        assert torch.equal(subject.runner.run([feed])[0], feed(model))
    assert not Subject(trace_model(Toy(), {"ids": torch.zeros(2, 3, dtype=torch.long)}).graph, Toy()).whole


def test_batches_begin_while_there_is_room(tmp_path: Path) -> None:
    model, runner = toy("", tmp_path)
    feeds, size = feeds_on(5), 2 * 8 * 6 * 4
    steps, together = runner.turns(feeds, room=2 * size), []
    while True:
        try:
            together.append(next(steps).batches)
        except StopIteration as end:
            results = end.value
            break
    assert together == [[0, 1]] * 2 + [[2, 3]] * 2 + [[4]] * 2
    with torch.no_grad():
        assert all(torch.equal(got, feed(model)) for got, feed in zip(results, feeds, strict=True))


def test_an_error_in_a_block_is_raised_where_the_block_was_called(tmp_path: Path) -> None:
    _, runner = toy("", tmp_path)
    (good,) = feeds_on(1)

    def narrow(model: nn.Module) -> str:
        try:
            model.layers[1](torch.zeros(2, 5))  # type: ignore[index,operator]
        except RuntimeError as error:
            return str(error)
        return "no error"

    said, logits = runner.run([narrow, good])
    assert "cannot be multiplied" in said
    assert logits.isfinite().all()


def test_weights_can_be_edited_as_they_are_brought_in(tmp_path: Path) -> None:
    model, runner = toy("", tmp_path)
    (feed,) = feeds_on(1)
    with torch.no_grad():
        before = feed(model)
        runner.residence.edit = lambda name, value: value * 0 if name == "layers.0.inner.weight" else value  # type: ignore[union-attr]
        model.layers[0].inner.weight.zero_()
        assert torch.equal(runner.run([feed])[0], feed(model))
    runner.residence.edit = None  # type: ignore[union-attr]
    assert torch.equal(runner.run([feed])[0], before)
