"""Buffers that a forward writes to: they have the widths of what is written, in the module and in what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.api.modules.prune import Pruned, prune_module
from fxprune.passes.couple.coupling import couple
from fxprune.tracer import export
from fxprune.tracer.export import trace_model

from ...equivalence import masked

Write = Callable[["Net", Tensor], Tensor | None]


def reassigned(net: Net, h: Tensor) -> None:
    net.last = h.mean(0)


def reassigned_and_read(net: Net, h: Tensor) -> Tensor:
    read = h + 0 * net.last
    net.last = read.mean(0)
    return read


def read_after_it_was_written(net: Net, h: Tensor) -> Tensor:
    net.last = h.mean(0)
    return h + net.last


def copied(net: Net, h: Tensor) -> None:
    net.last.copy_(h.mean(0))


def at_an_index(net: Net, h: Tensor) -> None:
    net.last[:] = h.mean(0)


def a_row(net: Net, h: Tensor) -> None:
    net.rows[1] = h.mean(0)


def shifted_rows(net: Net, h: Tensor) -> None:
    net.rows = torch.cat([net.rows[1:], h.mean(0, keepdim=True)])


def emptied_and_added(net: Net, h: Tensor) -> None:
    net.last.zero_()
    net.last.add_(h.mean(0))


def moving_average(net: Net, h: Tensor) -> None:
    net.last = net.last * 0.9 + h.mean(0) * 0.1


def through_a_diagonal(net: Net, h: Tensor) -> None:
    """A write that only torch's own second trace expresses."""
    net.last.copy_(h.mean(0))
    net.square.diagonal(0, 0, 1).add_(1.0)


def a_scalar(net: Net, h: Tensor) -> None:
    net.count = h.mean()


def counted(net: Net, _: Tensor) -> None:
    net.count += 1


def one_that_depends_on_no_width(net: Net, h: Tensor) -> None:
    net.last = torch.ones(16) * h.mean()


class Net(nn.Module):
    def __init__(self, write: Write, width: int | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        for name, shape in {"last": (16,), "rows": (3, 16), "square": (4, 4), "count": ()}.items():
            self.register_buffer(name, torch.randn(shape))
        self.write, self.width = write, width

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        h = h if self.width is None else h.view(-1, 16)
        found = self.write(self, h)
        return self.c(h if found is None else found)


CUT = {
    reassigned: "last", reassigned_and_read: "last", read_after_it_was_written: "last", copied: "last",
    at_an_index: "last", a_row: "rows", shifted_rows: "rows", emptied_and_added: "last", moving_average: "last",
    through_a_diagonal: "last",
}  # fmt: skip
"""What is written -> the buffer that gets as narrow as that."""
UNCUT = (a_scalar, counted, one_that_depends_on_no_width)


def net(write: Write) -> Net:
    torch.manual_seed(0)
    return Net(write).eval()


def pruned_net(write: Write) -> tuple[Net, Pruned]:
    module = net(write)
    return module, prune_module(module, torch.randn(2, 6), "magnitude", ratio=0.25)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(buffer.shape) for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("write", [*CUT, *UNCUT], ids=lambda write: write.__name__)
def test_a_buffer_is_cut_with_what_is_written_to_it(write: Write) -> None:
    module, pruned = pruned_net(write)
    assert pruned.in_place
    assert pruned.plan.slices["a.weight", 0].size == 12
    narrow = {"norm.running_mean", "norm.running_var", CUT.get(write, "norm.running_mean")}
    expected = {name: (*shape[:-1], 12) if name in narrow else shape for name, shape in shapes(module).items()}
    assert shapes(pruned.module) == expected
    zeroed, x = masked(module, pruned.plan), torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(x), zeroed(x))
    assert shapes(pruned.module) == expected
    kept = pruned.plan.slices["a.weight", 0]
    for name, held in zeroed.named_buffers():
        if name == CUT.get(write) and write is not moving_average:
            torch.testing.assert_close(dict(pruned.module.named_buffers())[name], held[..., kept])


@pytest.mark.parametrize("write", [reassigned, reassigned_and_read, a_row, moving_average, counted])
def test_what_is_saved_has_these_widths_and_writes_them(write: Write, tmp_path: Path) -> None:
    _, pruned = pruned_net(write)
    pruned.save(tmp_path / "out")
    loaded, x = fxprune.load(tmp_path / "out"), torch.randn(5, 6)
    torch.testing.assert_close(loaded(x), pruned.module(x))
    assert shapes(loaded) == shapes(pruned.module)
    torch.testing.assert_close(
        torch.export.load(tmp_path / "out" / "model.pt2").module()(x), pruned.module(x), rtol=1e-5, atol=1e-6
    )
    into = fxprune.load(tmp_path / "out", into=net(write))
    assert shapes(into) == shapes(pruned.module)


def test_what_only_torch_can_express_is_coupled_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature of the program that torch makes says what is written."""
    monkeypatch.setattr(export, "functional", lambda _: None)
    _, pruned = pruned_net(reassigned)
    assert pruned.in_place
    assert shapes(pruned.module)["last"] == (12,)


def sorted_first(net: Net, h: Tensor) -> None:
    net.last = h.mean(0).sort()[0]


def test_a_width_that_cannot_be_tied_is_frozen() -> None:
    """Units that are sorted have no place of their own in the buffer."""
    coupling = couple(trace_model(net(sorted_first), {"x": torch.randn(2, 6)}).graph)
    (group,) = (group for group in coupling.groups.values() if "last" in group.tensors)
    assert "a.weight" in group.tensors
    assert "aten.sort" in (group.frozen or "")


def test_a_rewritten_graph_with_a_written_buffer_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pruned = prune_module(Net(reassigned, 16), torch.randn(2, 6), "magnitude", ratio=0.25)
    assert not pruned.in_place
    pruned.save(tmp_path / "out")
    loaded, x = fxprune.load(tmp_path / "out"), torch.randn(5, 6)
    torch.testing.assert_close(loaded(x), pruned.module.eval()(x))


def test_the_graph_copies_what_is_written_at_its_end() -> None:
    graph = trace_model(net(reassigned), {"x": torch.randn(2, 6)}).graph
    (write,) = (op for op in graph.ops if op.result.name == "last.afterwards")
    assert write is graph.ops[-1]
    assert next(write.operands).name == "last"
