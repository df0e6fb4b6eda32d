"""What a module returns keeps its arrangement: in a rewritten graph, and in what is saved and loaded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.api.modules.prune import prune_module
from fxprune.backends.pt2.plain_output import plain_output


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor]


Arrange = Callable[[Tensor, Tensor], Any]
ARRANGED: dict[str, Arrange] = {
    "dict": lambda y, _: {"y": y},
    "list": lambda y, h: [h.sum(-1), y],
    "ordered dict": lambda y, h: OrderedDict(b=y, a=h.sum(-1)),
    "nested": lambda y, h: {"y": [y, (h.sum(-1), {"z": h.mean(-1)})], 3: OrderedDict(q=[h.mean(-1)])},
    "constants": lambda y, _: {"y": y, "none": None, "three": 3, "empty": []},
    "one tensor twice": lambda y, _: [y, y],
    "named tuple": lambda y, h: Pair(y, [h.sum(-1)]),
}


class Arranged(nn.Module):
    def __init__(self, arrange: Arrange, *, rewritten: bool) -> None:
        super().__init__()
        self.l, self.o = nn.Linear(4, 16), nn.Linear(16, 2)
        self.arrange, self.rewritten = arrange, rewritten

    def forward(self, x: Tensor) -> Any:
        h = self.l(x)
        h = torch.relu(h.view(-1, 16) if self.rewritten else h)
        return self.arrange(self.o(h), h)


def form(output: Any) -> Any:
    """The classes in an output, with the shapes of its tensors."""
    if isinstance(output, dict):
        return type(output), [(key, form(value)) for key, value in output.items()]
    if isinstance(output, list | tuple):
        return type(output), [form(value) for value in output]
    return tuple(output.shape) if isinstance(output, Tensor) else output


@pytest.mark.parametrize("rewritten", [True, False], ids=["rewritten", "in place"])
@pytest.mark.parametrize("name", ARRANGED)
def test_the_arrangement_is_that_of_the_original(name: str, rewritten: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Arranged(ARRANGED[name], rewritten=rewritten), torch.randn(3, 4)
    pruned = prune_module(module, torch.randn(2, 4), "magnitude", ratio=0.25)
    assert pruned.in_place is not rewritten
    with torch.no_grad():
        original, found = module(x), pruned.module(x)
        plain = form(plain_output(original))
        assert form(found) == (plain if rewritten else form(original))
        pruned.save(tmp_path / "out")
        again = fxprune.load(tmp_path / "out")(x)
        torchs = torch.export.load(tmp_path / "out" / "model.pt2").module()(x)
    assert form(again) == form(torchs) == plain
    for made in (again, torchs):
        torch.testing.assert_close(plain_output(made), plain_output(found))


def test_other_mappings_are_dicts() -> None:
    from torch.fx.immutable_collections import immutable_dict, immutable_list

    given = immutable_dict({"a": immutable_list([1]), "b": MappingProxyType({"c": (2,)})})
    assert form(plain_output(given)) == (dict, [("a", (list, [1])), ("b", (dict, [("c", (tuple, [2]))]))])
