"""Names that a graph module has for itself: as submodules, parameters and buffers of a user's own module."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

import fxprune
from fxprune.backends.own_names import GraphModuleWithOwnNames, attribute_name, own_name
from fxprune.ir.errors import RequestError
from fxprune.runtime.tolerances import relative_difference, same_function

MODULES = (
    "code", "graph", "meta", "recompile", "print_readable", "add_submodule", "delete_submodule", "code_", "t0_x",
    "batch_norm_default_mode",
)  # fmt: skip
TENSORS = ("code", "graph", "meta", "recompile", "print_readable", "t1_x")


class Named(nn.Module):
    """A layer of any name, which is found as ``nn.Module`` holds it; ``literal`` is a width in the code."""

    def __init__(self, name: str, *, literal: bool = False) -> None:
        super().__init__()
        self._name, self.literal = name, literal
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self._modules[name] = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self._modules[self._name](x.view(-1, 8) if self.literal else x)  # type: ignore[misc]
        return self.head(x)


class Holding(nn.Module):
    """A parameter and a buffer at the root."""

    def __init__(self, name: str, *, buffer: bool) -> None:
        super().__init__()
        self._name = name
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        if buffer:
            self.register_buffer(name, torch.linspace(1, 2, 8).square())
        else:
            self.register_parameter(name, nn.Parameter(torch.linspace(1, 2, 8).square()))

    def forward(self, x: Tensor) -> Tensor:
        return self.second((self.first(x) * getattr(self, self._name)).view(-1, 8).relu())


def pruned(net: nn.Module, **options: Any) -> Any:
    torch.manual_seed(0)
    return fxprune.prune_module(net.eval(), torch.randn(3, 4), "magnitude", ratio=0.5, channels=True, **options)


def names_and_shapes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.dim() for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", MODULES)
def test_a_submodule_of_any_name(name: str) -> None:
    result = pruned(Named(name))
    assert result.in_place
    assert result.parameters[1] < result.parameters[0]
    assert result.module._modules[name][0].out_features == 3


@pytest.mark.parametrize("name", ["code", "graph", "meta", "print_readable", "code_", "batch_norm_default_mode"])
def test_a_graph_that_is_returned_keeps_the_names(name: str) -> None:
    net = Named(name, literal=True)
    result = pruned(net)
    graph, x = result.module, torch.randn(5, 4)
    expected = graph(x)
    assert isinstance(graph, fx.GraphModule)
    known = names_and_shapes(net.state_dict())
    assert f"{name}.0.weight" in known
    assert {at: known[at] for at in names_and_shapes(graph.state_dict())} == names_and_shapes(graph.state_dict())
    assert known.keys() == names_and_shapes(graph.state_dict()).keys()
    assert {at for at, _ in graph.named_parameters()} == {at for at, _ in net.named_parameters()}
    assert {at for at, _ in graph.named_buffers("prefix")} <= {f"prefix.{at}" for at, _ in net.named_buffers()}
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert torch.equal(other(x), expected)
        assert other.state_dict().keys() == graph.state_dict().keys()
    other = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(x), expected)
    around = nn.ModuleDict({"inner": other})
    around.load_state_dict({f"inner.{at}": tensor for at, tensor in graph.state_dict().items()})
    assert torch.equal(other(x), expected)
    graph.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "parameter"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_any_name_at_the_root(name: str, buffer: bool) -> None:
    net = Holding(name, buffer=buffer)
    result = pruned(net)
    assert not result.in_place
    assert result.module.state_dict().keys() == net.state_dict().keys()
    small = result.module.state_dict()[name]
    assert small.shape == (4,)
    kept = result.plan.slices[name, 0]
    assert torch.equal(small, net.state_dict()[name][torch.from_numpy(kept)])


@pytest.mark.parametrize("name", ["to", "forward", "state_dict", "train", "compile", "half"])
def test_what_torch_cannot_reach_is_refused(name: str) -> None:
    match = f"the submodule 'inner.{name}' of Sequential is called as an attribute of every torch.nn.Module"
    with pytest.raises(RequestError, match=match):
        pruned(nn.Sequential(OrderedDict(inner=Named(name))))


@pytest.mark.parametrize("name", ["code", "graph", "meta", "code_"])
@pytest.mark.parametrize("literal", [False, True], ids=["module", "graph"])
def test_it_is_written_and_read(name: str, literal: bool, tmp_path: Path) -> None:
    net, x = Named(name, literal=literal), torch.randn(3, 4)
    result = pruned(net)
    result.save(tmp_path / "out")
    assert torch.export.load(tmp_path / "out" / "model.pt2").module()(x).shape == (3, 3)
    read = fxprune.load(tmp_path / "out")
    assert read.state_dict().keys() == load_file(tmp_path / "out" / "model.safetensors").keys()
    with torch.no_grad():
        assert relative_difference(read(x), result.module.eval()(x)) <= same_function(torch.float32)


@pytest.mark.parametrize("name", ["code", "code_", "code__", "a.code", "code.to.weight", "weight", "_modules", "c_.d_"])
def test_names_come_back(name: str) -> None:
    assert own_name(attribute_name(name)) == name
    assert (attribute_name(name) == name) is (name in ("a.code", "weight", "c_.d_"))
    assert not hasattr(fx.GraphModule(nn.Module(), fx.Graph()), attribute_name(name).partition(".")[0])


def test_other_graphs_are_plain_graph_modules() -> None:
    result = pruned(Named("middle", literal=True))
    assert not isinstance(result.module, GraphModuleWithOwnNames)
