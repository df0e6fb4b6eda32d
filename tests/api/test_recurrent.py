"""Recurrent layers and cells in modules: removing units is zeroing them, and the module itself shrinks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.api import Pruned

from ..equivalence import masked

TOLERANCE = 1e-10
"""float64, relative: rounding."""


def check(dense: nn.Module, example: Any, fresh: Any, passes: str = "random", **options: Any) -> Pruned:
    """Prune, and compare with the masked dense module on other inputs than the example."""
    pruned = fxprune.prune_module(dense, example, passes, **{"ratio": 0.5, **options})
    inputs = fresh if isinstance(fresh, tuple) else (fresh,)
    with torch.no_grad():
        torch.testing.assert_close(
            pruned.module(*inputs), masked(dense, pruned.plan)(*inputs), rtol=TOLERANCE, atol=1e-12
        )
    return pruned


def sizes(pruned: Pruned) -> dict[int, int]:
    return {change.before: change.after for change in pruned.groups}


class Tagger(nn.Module):
    """Features, a recurrent layer, and a class for every step; the last states count too."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.features = nn.Linear(5, 12)
        self.layer = getattr(nn, kind)(12, 16, batch_first=True, **options)
        width = options.get("proj_size") or 16
        self.classes = nn.Linear(width * (1 + self.layer.bidirectional), 3)
        self.last = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, states = self.layer(self.features(x))
        hidden = states[0] if isinstance(states, tuple) else states
        return self.classes(steps) + self.last(hidden).sum(0).unsqueeze(1)


def tagger(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Tagger(kind, **options).double().eval()


def inputs(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYERS: list[tuple[str, Mapping[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "bidirectional": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 6, "bias": False}),
    ("GRU", {"num_layers": 2, "dropout": 0.1}),
    ("GRU", {"bidirectional": True, "bias": False}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("RNN", {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_a_recurrent_layer_shrinks(kind: str, options: Mapping[str, Any]) -> None:
    pruned = check(tagger(kind, **options), inputs(1, 2, 4, 5), inputs(2, 3, 6, 5))
    layer = pruned.module.layer
    assert pruned.in_place
    assert (layer.input_size, layer.hidden_size) == (6, 8)
    assert layer.proj_size == options.get("proj_size", 0) // 2
    assert pruned.macs[1] < pruned.macs[0] / 1.9


@pytest.mark.parametrize(("inward", "hidden", "layers"), [(12, 4, 4), (4, 4, 4), (8, 8, 2), (2, 8, 2)])
def test_a_number_of_layers_that_equals_a_width_stays(inward: int, hidden: int, layers: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(5, inward)
            self.layer = nn.LSTM(inward, hidden, layers, batch_first=True)
            self.classes = nn.Linear(hidden, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classes(self.layer(self.features(x))[0])

    torch.manual_seed(0)
    pruned = check(Net().double().eval(), inputs(1, 2, 6, 5), inputs(2, 3, 7, 5))
    layer = pruned.module.layer
    assert (layer.input_size, layer.hidden_size, layer.num_layers) == (inward // 2, hidden // 2, layers)


def test_a_projection_stays_narrower_than_the_hidden_width() -> None:
    pruned = check(tagger("LSTM", proj_size=6), inputs(1, 2, 4, 5), inputs(2, 3, 4, 5), ratio=0.9)
    assert sizes(pruned) == {12: 2, 16: 7, 6: 1}


class Residual(nn.Module):
    """Two layers of the width of the shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(5, 8)
        self.first, self.second = nn.GRU(8, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)
        self.classes = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = x + self.first(x)[0]
        return self.classes(x + self.second(x)[0])


def test_a_hidden_width_that_is_the_input_width_goes_with_it() -> None:
    torch.manual_seed(0)
    pruned = check(Residual().double().eval(), inputs(1, 2, 4, 5), inputs(2, 3, 6, 5))
    assert sizes(pruned) == {8: 4}
    assert pruned.in_place


class Started(nn.Module):
    """Initial states that are learnt or computed, and are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.cells = nn.Linear(5, 12), nn.Linear(5, 8)
        self.hidden = nn.Parameter(torch.randn(2, 1, 8))
        self.layer = nn.LSTM(12, 8, 2, batch_first=True)
        self.classes = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden.expand(-1, x.shape[0], -1).contiguous()
        cells = self.cells(x.mean(1)).unsqueeze(0).repeat(2, 1, 1)
        steps, _ = self.layer(self.features(x), (hidden, cells))
        return self.classes(steps)


def test_initial_states_lose_the_units_of_the_layer() -> None:
    torch.manual_seed(0)
    pruned = check(Started().double().eval(), inputs(1, 2, 4, 5), inputs(2, 3, 6, 5))
    assert pruned.module.hidden.shape == (2, 1, 4)
    assert pruned.module.cells.weight.shape == (4, 5)


def test_initial_states_that_are_inputs_keep_the_hidden_width() -> None:
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.layer = nn.Linear(5, 12), nn.GRU(12, 8, batch_first=True)

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            return self.layer(self.features(x), state)[0]

    torch.manual_seed(0)
    example = inputs(1, 2, 4, 5), inputs(2, 1, 2, 8)
    pruned = check(Stateful().double().eval(), example, (inputs(3, 2, 4, 5), inputs(4, 1, 2, 8)))
    assert sizes(pruned) == {12: 6}


class Cells(nn.Module):
    """Two cells, one on the other, in a loop over the steps."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.features, self.classes = nn.Linear(5, 12), nn.Linear(6, 3)
        self.first, self.second = getattr(nn, kind)(12, 8), getattr(nn, kind)(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: list[Any] = [None, None]
        for step in x.unbind(1):
            taken = self.features(step)
            for place, cell in enumerate((self.first, self.second)):
                states[place] = cell(taken, states[place])
                taken = states[place][0] if isinstance(states[place], tuple) else states[place]
        return self.classes(taken)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_shrink(kind: str) -> None:
    torch.manual_seed(0)
    pruned = check(Cells(kind).double().eval(), inputs(1, 2, 3, 5), inputs(2, 3, 3, 5))
    assert pruned.in_place
    assert sizes(pruned) == {12: 6, 8: 4, 6: 3}
    assert (pruned.module.first.input_size, pruned.module.first.hidden_size) == (6, 4)


class Translator(nn.Module):
    """An encoder in two directions, whose last states start a decoder that attends to its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.encoder = nn.GRU(12, 8, bidirectional=True, batch_first=True)
        self.bridge, self.query = nn.Linear(16, 10), nn.Linear(10, 16)
        self.decoder = nn.GRU(12, 10, batch_first=True)
        self.out = nn.Linear(26, 20)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        memory, (there, back) = self.encoder(self.embedding(source))
        start = torch.tanh(self.bridge(torch.cat([there, back], -1))).unsqueeze(0)
        steps, _ = self.decoder(self.embedding(target), start)
        weights = torch.softmax(self.query(steps) @ memory.transpose(1, 2), -1)
        return self.out(torch.cat([steps, weights @ memory], -1))


def test_an_encoder_and_a_decoder_shrink_together() -> None:
    def tokens(seed: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    pruned = check(
        Translator().double().eval(),
        (tokens(1, 2, 5), tokens(2, 2, 4)),
        (tokens(3, 3, 5), tokens(4, 3, 4)),
        "magnitude",
    )
    assert pruned.in_place
    assert sizes(pruned) == {12: 6, 8: 4, 10: 5}


def test_a_shrunken_layer_trains_and_moves() -> None:
    """The list of its weights that torch keeps beside the parameters holds the new ones."""
    layer = check(tagger("LSTM", num_layers=2), inputs(1, 2, 4, 5), inputs(2, 3, 6, 5)).module.train().layer
    layer(inputs(3, 2, 4, 6))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert list(map(id, layer._flat_weights)) == list(map(id, layer.parameters()))
    assert layer.float()(inputs(3, 2, 4, 6).float())[0].dtype is torch.float32


def test_a_shrunken_layer_is_saved_and_loaded(tmp_path: Path) -> None:
    pruned = check(tagger("GRU", bidirectional=True), inputs(1, 2, 4, 5), inputs(2, 3, 4, 5))
    pruned.save(tmp_path / "smaller")
    x = inputs(3, 3, 4, 5)
    again = fxprune.load(tmp_path / "smaller", into=tagger("GRU", bidirectional=True)).eval()
    with torch.no_grad():
        assert torch.equal(again(x), pruned.module(x))
        assert torch.equal(fxprune.load(tmp_path / "smaller")(x), pruned.module(x))
