"""Hidden states that wait in files for the way back: the same gradients, whatever else reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.runtime.streaming.mapped_files import Checkpoint
from fxprune.runtime.streaming.residence import Residence
from fxprune.runtime.streaming.store import InMemory, Kept, OnDisk, Store

from .test_block_runner import Kept as Gradients
from .test_block_runner import whole_backward

BLOCKS = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Stack(nn.Module):
    """Blocks whose outputs are read by the next block alone, or elsewhere too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first = nn.Linear(3, 5, dtype=torch.float64)
        self.layers = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.gate = nn.Parameter(torch.rand(5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        seen = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if self.kind == "all of them" or (self.kind == "the first" and not number):
                seen.append(x)
            elif self.kind == "a view" and not number:
                seen.append(x[:, :2])
            elif self.kind == "saved by a product":
                x = x * self.gate
            elif self.kind == "squared between" and number == 1:
                seen.append(x * x)
        for other in seen:
            x = x + torch.tanh(other).mean()
        return (x**2).mean()


class Counting(OnDisk):
    """Counts what is put, and what is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(lambda: folder)
        self.puts = 0

    def put(self, name: str, value: Tensor) -> Kept:
        self.puts += 1
        return super().put(name, value)


def stacks(kind: str, folder: Path, shelf: Any) -> tuple[Stack, BlockRunner]:
    """The same model with its weights in memory, and in a file."""
    model, empty = Stack(kind).eval(), Stack(kind).to("meta").eval()
    save_file(dict(model.state_dict()), folder / "stack.safetensors")
    store = Store(Checkpoint([folder / "stack.safetensors"]).tensors, shelf)
    return model, BlockRunner(empty, Residence(empty, store, torch.device("cpu"), torch.float64))


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("plain", BLOCKS - 2),
        ("all of them", 0),
        ("the first", BLOCKS - 3),
        # What autograd alone holds may move: it is brought back before it is read. Not all versions of torch show it.
        ("a view", None),
        ("saved by a product", None),
        ("squared between", None),
    ],
)
def test_gradients_are_those_of_states_in_memory(kind: str, moved: int | None, tmp_path: Path) -> None:
    """Of two batches, the outputs of all blocks but the last two wait in files, if nothing else reads them."""
    (tmp_path / "states").mkdir()
    shelf = Counting(tmp_path / "states")
    model, runner = stacks(kind, tmp_path, shelf)
    inputs = [torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    losses = [lambda m, x=x: m(x) for x in inputs]
    expected, found = whole_backward(model, losses), Gradients()
    names = [name for name, _ in model.named_parameters()]
    values = runner.gradients(losses, names, found)
    assert values == [float(loss(model).detach()) for loss in losses]
    assert not runner.whole
    assert {key for key in expected if expected[key].any()} <= found.gradients.keys()
    for key, gradient in found.gradients.items():
        torch.testing.assert_close(gradient, expected.get(key, torch.zeros_like(gradient)), rtol=1e-12, atol=1e-14)
    assert moved is None or shelf.puts == 2 * moved
    assert not list((tmp_path / "states").iterdir()), "nothing is left"


def test_states_in_the_memory_where_they_are_do_not_move(tmp_path: Path) -> None:
    assert stacks("plain", tmp_path, InMemory())[1].residence.states_shelf is None  # type: ignore[union-attr]
