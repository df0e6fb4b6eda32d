"""Units that are cut at different places: norms over concatenated skips, merged patches, tables that an index reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.ir.groups import Kind
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.module import bind, trace_module

from ...equivalence import TOLERANCE, restricted

GRID, HEADS = 4, 4


class Skips(nn.Module):
    """A group norm over a skip of 32 channels beside one of 16, and a group norm over the skip of 32 alone."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32)
        self.down, self.norm = nn.Conv2d(32, 16, 3, padding=1), nn.GroupNorm(groups, 48)
        self.up, self.head = nn.Conv2d(48, 10, 3, padding=1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        joined = torch.cat([skip, self.down(F.silu(self.first(skip)))], 1)
        return self.head(self.up(F.silu(self.norm(joined))).mean((2, 3)))


def strided(grid: Tensor) -> Tensor:
    """The four patches of every square of a grid ``[b, y, x, c]``, side by side."""
    corners = [grid[:, y::2, x::2] for x in (0, 1) for y in (0, 1)]
    return torch.cat(corners, -1).flatten(1, 2)


def permuted(grid: Tensor) -> Tensor:
    rows = grid.unflatten(2, (2, 2)).unflatten(1, (2, 2))
    return rows.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)


def padded(grid: Tensor) -> Tensor:
    return strided(F.pad(grid, (0, 0, 0, 2, 0, 2)))


def gathered(grid: Tensor) -> Tensor:
    corners = torch.tensor([0, 2, 8, 10])
    return torch.cat([grid.flatten(1, 2).index_select(1, corners + at) for at in (0, 1, 4, 5)], -1)


def unfolded(grid: Tensor) -> Tensor:
    return F.unfold(grid.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)


def unshuffled(grid: Tensor) -> Tensor:
    return F.pixel_unshuffle(grid.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)


MERGES = (strided, permuted, padded, gathered, unfolded, unshuffled)


class Merging(nn.Module):
    """Patches, a shortcut, and a linear layer over four patches side by side."""

    def __init__(self, merge: Callable[[Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.mlp, self.merge = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 24), merge
        self.norm, self.reduction, self.head = norm, nn.Linear(96, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).permute(0, 2, 3, 1)
        merged = self.merge(patches + F.gelu(self.mlp(patches)))
        if isinstance(self.norm, nn.GroupNorm):
            merged = self.norm(merged.transpose(1, 2)).transpose(1, 2)
        else:
            merged = self.norm(merged)
        return self.head(F.gelu(self.reduction(merged)).mean(1))


def by_index(table: Tensor, places: Tensor) -> Tensor:
    """What is added to attention scores, ``[heads, n, n]``, from a table ``[positions, heads]``."""
    return table[places.view(-1)].view(*places.shape, -1).permute(2, 0, 1)


def by_select(table: Tensor, places: Tensor) -> Tensor:
    return table.index_select(0, places.view(-1)).view(*places.shape, -1).permute(2, 0, 1)


def by_gather(table: Tensor, places: Tensor) -> Tensor:
    rows = torch.gather(table, 0, places.view(-1, 1).expand(-1, table.shape[1]))
    return rows.view(*places.shape, -1).permute(2, 0, 1)


def by_take(table: Tensor, places: Tensor) -> Tensor:
    return torch.take_along_dim(table, places.view(-1, 1), 0).view(*places.shape, -1).permute(2, 0, 1)


def by_embedding(table: Tensor, places: Tensor) -> Tensor:
    return F.embedding(places, table).permute(2, 0, 1)


def heads_first(table: Tensor, places: Tensor) -> Tensor:
    return table.t()[:, places]


TABLES = (by_index, by_select, by_gather, by_take, by_embedding, heads_first)


class Windows(nn.Module):
    """Attention in a window, with a table of relative positions."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 72), nn.Linear(24, 5)
        self.table, self.look_up = nn.Parameter(torch.randn(49, HEADS)), look_up
        places = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None, :] + GRID - 1
        self.register_buffer("places", apart[0] * 7 + apart[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(patches).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / 6**0.5 + self.look_up(self.table, self.places)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2)).mean(1)


class Coordinates(nn.Module):
    """A table of positions that a small network computes from fixed coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.randn(9, 2))
        self.embed, self.table, self.head = nn.Linear(3, 12), nn.Linear(2, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.embed(x) + self.table(self.grid)))


def random(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return net.double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pruned(net: nn.Module, ratio: float) -> Pruned:
    """Checked against the original without the removed channels, in float64."""
    x = images()
    result = prune_module(net, x, "random", ratio=ratio, seed=3)
    with torch.no_grad():
        expected, got = restricted(net, result.plan)(x), result.module(x)
    assert float((got - expected).abs().max() / expected.abs().max()) <= TOLERANCE
    return result


def frozen_groups(net: nn.Module, example: Tensor, tensor: str) -> set[str]:
    """Why groups of a tensor are frozen."""
    coupling = couple(trace_module(net, bind(net, example), batch=False).graph)
    return {group.frozen for group in coupling.groups.values() if tensor in group.tensors and group.frozen}


@pytest.mark.parametrize(("groups", "runs"), [(4, 4), (6, 8), (3, 8), (12, 4)])
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_group_norm_over_concatenated_skips_is_pruned_in_runs(groups: int, runs: int, ratio: float) -> None:
    result = pruned(random(Skips(groups)), ratio)
    gone = int(runs * ratio)
    assert {(g.before, g.after) for g in result.groups} >= {(runs, runs - gone)}
    small = result.module
    assert small.stem.weight.shape[0] == 32 - 32 // runs * gone
    assert small.norm.weight.shape[0] == 48 - 48 // runs * gone
    assert small.norm.num_groups == groups


def test_skips_without_a_common_run_stay_as_they_are_and_say_why() -> None:
    class Odd(Skips):
        def __init__(self) -> None:
            super().__init__(6)
            self.down = nn.Conv2d(32, 13, 3, padding=1)
            self.norm, self.up = nn.GroupNorm(5, 45), nn.Conv2d(45, 10, 3, padding=1)

    reasons = frozen_groups(random(Odd()), images(), "down.bias")
    assert len(reasons) == 1
    assert "the cuts 32 + 13 fall inside the units of 5 * 9 (aten.group_norm" in reasons.pop()


@pytest.mark.parametrize("merge", MERGES)
def test_merged_patches_are_pruned(merge: Callable[[Tensor], Tensor]) -> None:
    small = pruned(random(Merging(merge, nn.LayerNorm(96))), 0.5).module
    assert small.embed.weight.shape[0] == 12
    assert small.reduction.weight.shape == (20, 48)


@pytest.mark.parametrize("merge", MERGES)
def test_a_group_norm_over_merged_patches_is_pruned_in_runs(merge: Callable[[Tensor], Tensor]) -> None:
    small = pruned(random(Merging(merge, nn.GroupNorm(8, 96))), 0.34).module
    assert small.embed.weight.shape[0] == 16
    assert small.reduction.weight.shape == (27, 64)


@pytest.mark.parametrize("look_up", TABLES)
def test_a_table_that_an_index_reads_loses_heads_and_no_position(look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
    result = pruned(random(Windows(look_up)), 0.5)
    assert {g.kind: (g.before, g.after) for g in result.groups}[Kind.HEADS.value] == (4, 2)
    assert result.module.table.shape == (49, 2)


def test_coordinates_in_a_buffer_are_no_units() -> None:
    reasons = frozen_groups(random(Coordinates()), images()[0, 0, :9, :3], "table.weight")
    assert reasons == {"features of the buffer grid that table.weight takes in"}
