"""A module that stores things as it runs is as it was afterwards: after a trace, a run and a pruning of its copy."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.runtime.streaming.left_as_found import left_as_found
from fxprune.tracer.export import trace_model
from fxprune.tracer.module import bind, run


class Slotted:
    __slots__ = ("last", "missing")

    def __init__(self) -> None:
        self.last = 0


class Storing(nn.Module):
    """Computes the same whatever it has stored before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.kept: Tensor | None = None
        self.calls = 0
        self.seen: list[Any] = []
        self.tables: dict[str, Any] = {"by name": OrderedDict(one=1)}
        self.names: set[str] = set()
        self.recent: deque[Any] = deque([1], maxlen=2)
        self.nested = SimpleNamespace(inner=SimpleNamespace(value=0))
        self.slotted = Slotted()
        self.register_buffer("table", torch.ones(6))
        self.register_buffer("running", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        STORES[self.store](self, hidden)
        return self.second(hidden)

    store: str = "tensor"


def _new_module(module: Storing, _hidden: Tensor) -> None:
    module.added = nn.Identity()


def _removes(module: Storing, _hidden: Tensor) -> None:
    if hasattr(module, "kept"):
        del module.kept


def _keyed(module: Storing, hidden: Tensor) -> None:
    module.tables["by name"]["two"] = hidden
    module.tables["three"] = 3


STORES: dict[str, Callable[[Any, Tensor], Any]] = {
    "tensor": lambda m, h: setattr(m, "kept", h),
    "tensor of its own": lambda m, _h: setattr(m, "kept", torch.arange(3)),
    "list": lambda m, h: m.seen.append(h),
    "dict": _keyed,
    "set": lambda m, _h: m.names.add("x"),
    "deque": lambda m, h: m.recent.extend([2, h]),
    "counter": lambda m, _h: setattr(m, "calls", m.calls + 1),
    "nested object": lambda m, h: setattr(m.nested.inner, "value", h),
    "slot": lambda m, h: (setattr(m.slotted, "last", h), setattr(m.slotted, "missing", h)),
    "buffer anew": lambda m, _h: m.register_buffer("table", torch.full((6,), 2.0)),
    "buffer replaced": lambda m, _h: setattr(m, "table", m.table * 2),
    "buffer in place": lambda m, _h: m.running.add_(1),
    "module": _new_module,
    "removed": _removes,
}


def storing(what: str) -> Storing:
    torch.manual_seed(0)
    net = Storing().eval()
    net.store = what
    return net


def state_of(net: Storing) -> dict[str, Any]:
    """Everything that a forward may change, by value; tensors of the same object are equal."""
    return {
        **{name: (id(tensor), tensor.tolist()) for name, tensor in net.state_dict(keep_vars=True).items()},
        **{name: value for name, value in vars(net).items() if not name.startswith("_") and name != "slotted"},
        "slots": {name: getattr(net.slotted, name) for name in Slotted.__slots__ if hasattr(net.slotted, name)},
        "tables": copy.deepcopy(net.tables), "seen": list(net.seen), "names": set(net.names),
        "recent": list(net.recent), "nested": repr(net.nested), "modules": list(net._modules),
        "not saved": set(net._non_persistent_buffers_set),
    }  # fmt: skip


@pytest.mark.parametrize("what", STORES)
def test_a_trace_and_a_run_leave_nothing_behind(what: str) -> None:
    net = storing(what)
    before, inputs = state_of(net), torch.ones(2, 4)
    trace_model(net, {"x": inputs})
    assert state_of(net) == before
    run(net, bind(net, inputs))
    assert state_of(net) == before
    copy.deepcopy(net)


@pytest.mark.parametrize("what", STORES)
def test_what_is_pruned_has_stored_nothing_and_runs(what: str) -> None:
    net = storing(what)
    pruned = fxprune.prune_module(
        net, torch.ones(2, 4), "taylor", ratio=0.5, channels=True, loss=lambda m: m(torch.ones(2, 4)).square().mean()
    )
    small: Any = pruned.module
    assert pruned.in_place
    assert small.first.out_features == 3
    assert (small.calls, small.seen, small.names, list(small.recent)) == (0, [], set(), [1])
    assert small.running == 0
    assert small.nested.inner.value == 0
    assert small.slotted.last == 0
    assert getattr(small, "kept", None) is None
    assert "added" not in small._modules
    assert small(torch.ones(5, 4)).shape == (5, 3)


def test_a_module_that_answers_otherwise_the_second_time_is_still_refused() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) * self.calls

    with pytest.raises(fxprune.FxpruneError, match="returns different outputs for the same inputs"):
        fxprune.prune_module(Counting(4, 4), torch.ones(2, 4), "magnitude", ratio=0.5)


def test_an_error_inside_and_what_refers_to_itself() -> None:
    net = nn.Linear(2, 2)
    around: dict[str, Any] = {"net": net}
    around["self"] = around
    net.around = around  # type: ignore[assignment]

    def fails() -> None:
        around["more"] = net
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), left_as_found(net):
        fails()
    assert list(around) == ["net", "self"]
