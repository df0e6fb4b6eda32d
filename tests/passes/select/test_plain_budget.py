"""Budgets that are met with counts that a configuration can say: made-up ones, and one of transformers' own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from fxprune import api
from fxprune.ir import RequestError
from fxprune.ir.groups import Group, Kind
from fxprune.passes.model.measure import parameter_count
from fxprune.passes.select.allocate import LossCurve, allocate
from fxprune.passes.select.plain_budget import plain_within_budget
from fxprune.passes.select.plain_counts import Moved, nearest_counts

from ...decoders import random_decoder, special_tokens


class Linear:
    """Every unit of a group costs equally much."""

    def __init__(self, prices: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        self.prices, self.sizes = prices, sizes

    def of(self, counts: Mapping[str, int]) -> int:
        return sum(price * counts.get(name, self.sizes[name]) for name, price in self.prices.items())

    def shown(self, cost: int) -> str:
        return f"{cost:,}"


HEADS, WIDTH = Group("heads", 0, 8, Kind.HEADS, ()), Group("width", 1, 100, Kind.WIDTH, ())
BOTH = [HEADS, WIDTH]


def chosen(
    budget: int, head: int, unit: int, heads: set[int], tolerance: float = 0.005
) -> tuple[int, dict[str, int], list[Moved]]:
    """What is reached, the counts and what was moved, where a configuration can say these numbers of heads."""
    prices = {"heads": head, "width": unit}
    costs: Any = Linear(prices, {group.name: group.size for group in BOTH})
    curves = []
    for group in BOTH:
        counts = np.arange(1, group.size + 1, dtype=np.int64)
        price = prices[group.name]
        losses = price * group.size * (1 - counts / group.size) ** 2
        curves.append(LossCurve((group.name,), counts, losses, price * (counts - 1)))

    def plain(counts: Mapping[str, int]) -> tuple[dict[str, int], list[Moved]]:
        steps = {group.name: 1 for group in BOTH}
        return nearest_counts(BOTH, counts, steps, [], lambda held: "" if held["heads"] in heads else "no")

    counts, moved = plain_within_budget(BOTH, curves, lambda some: allocate(some, costs, budget, tolerance), plain)
    return costs.of(counts), counts, moved


def test_other_groups_make_up_for_heads_that_stay() -> None:
    reached, counts, moved = chosen(800, head=50, unit=6, heads={8})
    assert (reached, counts) == (796, {"heads": 8, "width": 66})
    assert moved == [Moved("heads", 8, 6, 8, "no")]


def test_other_groups_make_up_for_heads_that_go() -> None:
    reached, counts, moved = chosen(800, head=50, unit=6, heads={4, 8})
    assert (reached, counts) == (800, {"heads": 4, "width": 100})
    assert moved == [Moved("heads", 8, 6, 4, "no")]


def test_heads_stay_where_nothing_makes_up_for_those_that_go() -> None:
    reached, counts, moved = chosen(900, head=100, unit=2, heads={4, 8})
    assert (reached, counts) == (900, {"heads": 8, "width": 50})
    assert moved == [Moved("heads", 8, 7, 8, "the budget is not met with 4; no")]


def test_what_no_plain_counts_meet_is_refused_with_the_tolerance_that_would_do() -> None:
    with pytest.raises(RequestError, match=r"budget of 501 .* costs 802, .* keeps all 8 heads$") as caught:
        chosen(501, head=100, unit=2, heads={8})
    assert "--form free" in caught.value.hint
    (enough,) = re.findall(r"tolerance=([\d.]+)", caught.value.hint)
    assert chosen(501, head=100, unit=2, heads={8}, tolerance=float(enough))[0] == 802
    with pytest.raises(RequestError):
        chosen(501, head=100, unit=2, heads={8}, tolerance=float(enough) - 0.001)


def five_heads() -> Any:
    shape = {"n_embd": 60, "n_head": 5, "n_layer": 2, "n_positions": 64, **special_tokens(61)}
    return random_decoder(transformers.GPT2Config(**shape), 0.2).float()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param("target=params:0.8", 0.005, id="uniform"),
        pytest.param("target=params:0.8,by=kinds,tolerance=0.01", 0.01, id="kinds", marks=pytest.mark.slow),
        pytest.param("ratio=0.25,by=kinds", 0.005, id="a ratio", marks=pytest.mark.slow),
        pytest.param("target=macs:0.8", 0.005, id="macs", marks=pytest.mark.slow),
    ],
)
def test_what_is_written_meets_the_budget(options: str, tolerance: float, tmp_path: Path) -> None:
    five_heads().save_pretrained(tmp_path / "model")
    api.apply(tmp_path / "model", f"magnitude{{{options}}}", out=tmp_path / "out", form="uniform")
    found = json.loads((tmp_path / "out" / "fxprune.json").read_text())["passes"]["magnitude"]
    assert [(one["kind"], one["size"], one["kept"]) for one in found["nearest"]] == [("heads", 5, 5)]
    allocation = found["allocation"]
    assert abs(allocation["reached"] / allocation["budget"] - 1) <= tolerance
    if allocation["measure"] == "params":
        written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert parameter_count(written) == allocation["reached"]


def test_what_a_configuration_cannot_meet_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    five_heads().save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match="a plain configuration keeps all 5 heads"):
        api.apply(tmp_path / "model", "magnitude{target=params:0.3}", out=tmp_path / "out", form="uniform")
    assert not (tmp_path / "out").exists()
