"""What is inner and what is shared follows from the paths of data: networks whose blocks have names without numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.ir.errors import RequestError
from fxprune.ir.groups import Kind
from fxprune.passes.couple.coupling import couple
from fxprune.tracer.module import bind, trace_module


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)


class Net(nn.Module):
    """Layers by name; the forward of each shape is below."""

    shared: tuple[int, ...]
    inner: tuple[int, ...]

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def run(self, name: str, x: Tensor) -> Tensor:
        found: Tensor = self.get_submodule(name)(x)
        return found


class Chain(Net):
    shared, inner = (8, 10, 12), ()

    def __init__(self) -> None:
        super().__init__(first=conv(3, 8), second=conv(8, 10), third=conv(10, 12), head=nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third"):
            x = F.relu(self.run(name, x))
        return self.run("head", x.mean((2, 3)))


class Bottleneck(Net):
    """With a shortcut of its own width, and squeeze and excitation (RegNetY)."""

    def __init__(self, inputs: int, inner: int, squeezed: int, outputs: int) -> None:
        super().__init__(
            down=conv(inputs, inner, 1), norm=nn.BatchNorm2d(inner), middle=conv(inner, inner + 1),
            squeeze=conv(inner + 1, squeezed, 1), excite=conv(squeezed, inner + 1, 1), up=conv(inner + 1, outputs, 1),
            shortcut=conv(inputs, outputs, 1) if inputs != outputs else nn.Identity(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.run("middle", F.relu(self.run("norm", self.run("down", x))))
        y = y * self.run("excite", F.relu(self.run("squeeze", y.mean((2, 3), keepdim=True)))).sigmoid()
        return F.relu(self.run("shortcut", x) + self.run("up", F.relu(y)))


class Residual(Net):
    shared, inner = (8, 16), (4, 5, 2, 6, 7, 3, 9, 10, 2)

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8), b1=Bottleneck(8, 4, 2, 8), b2=Bottleneck(8, 6, 3, 16), b3=Bottleneck(16, 9, 2, 16),
            head=nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.run("stem", x))
        for name in ("b1", "b2", "b3"):
            x = self.run(name, x)
        return self.run("head", x.mean((2, 3)))


class FlatResidual(Net):
    """All in one module; two convolutions in parallel inside a block are no block themselves."""

    shared, inner = (8,), (12, 14)

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8), a=conv(8, 12), b=conv(12, 8), c=conv(8, 14), d=conv(8, 14, 1), e=conv(14, 8),
            head=nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.run("stem", x))
        x = x + self.run("b", F.relu(self.run("a", x)))
        x = x + self.run("e", F.relu(self.run("c", x) + self.run("d", x)))
        return self.run("head", x.mean((2, 3)))


class DenseLayer(Net):
    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__(squeeze=conv(inputs, inner, 1), grow=conv(inner, 5))

    def forward(self, *features: Tensor) -> Tensor:
        return self.run("grow", F.relu(self.run("squeeze", F.relu(torch.cat(features, 1)))))


class Dense(Net):
    shared, inner = (8, 5, 5, 5), (10, 11, 12)

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8), one=DenseLayer(8, 10), two=DenseLayer(13, 11), three=DenseLayer(18, 12),
            head=nn.Linear(23, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        features = [self.run("stem", x)]
        for name in ("one", "two", "three"):
            features.append(self.get_submodule(name)(*features))
        return self.run("head", torch.cat(features, 1).mean((2, 3)))


class Skips(Net):
    """An encoder and a decoder: what a level passes on is shared, the deepest too; what its module holds is not."""

    shared, inner = (6, 10, 16, 11, 9, 7), (15, 20)

    def __init__(self) -> None:
        super().__init__(
            high=conv(3, 6), low=conv(6, 10), deep=nn.Sequential(conv(10, 15), nn.ReLU(), conv(15, 16)),
            up=nn.ConvTranspose2d(16, 11, 2, stride=2), merge=nn.Sequential(conv(21, 20), nn.ReLU(), conv(20, 9)),
            top=nn.ConvTranspose2d(9, 7, 2, stride=2), out=conv(13, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.run("high", x))
        low = F.relu(self.run("low", F.max_pool2d(high, 2)))
        deep = self.run("deep", F.max_pool2d(low, 2))
        low = self.run("merge", torch.cat([low, self.run("up", F.relu(deep))], 1))
        return self.run("out", torch.cat([high, self.run("top", F.relu(low))], 1))


class Branches(Net):
    """Two branches of one module, which meet in a concatenation."""

    shared, inner = (8, 9, 6, 12), (7, 4)

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8), a=conv(8, 7, 1), b=conv(7, 9), c=conv(8, 4, 1), d=conv(4, 6), join=conv(15, 12),
            head=nn.Linear(12, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.run("stem", x))
        first = self.run("b", F.relu(self.run("a", x)))
        second = self.run("d", F.relu(self.run("c", x)))
        x = F.relu(self.run("join", F.relu(torch.cat([first, second], 1))))
        return self.run("head", x.mean((2, 3)))


SHAPES: dict[str, Callable[[], Net]] = {
    "plain chain": Chain, "residual blocks": Residual, "residual, flat": FlatResidual, "dense concatenation": Dense,
    "encoder and decoder with skips": Skips, "two branches": Branches,
}  # fmt: skip


def images(samples: int = 2) -> Tensor:
    return torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def built(shape: str) -> Net:
    torch.manual_seed(0)
    return SHAPES[shape]().eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_kinds_follow_from_paths(shape: str) -> None:
    net = built(shape)
    groups = couple(trace_module(net, bind(net, images()), batch=True).graph).prunable
    found = {kind: sorted(group.size for group in groups if group.kind is kind) for kind in Kind}
    assert found[Kind.CHANNELS] == sorted(net.shared)
    assert found[Kind.WIDTH] == sorted(net.inner)
    assert sum(map(len, found.values())) == len(net.shared) + len(net.inner)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_channels_every_block_keeps_what_it_passes_on(shape: str) -> None:
    net = built(shape)
    if not net.inner:
        with pytest.raises(RequestError, match="nothing to remove"):
            fxprune.prune_module(net, images(), "magnitude", ratio=0.5, channels=False)
        return
    result = fxprune.prune_module(net, images(), "magnitude", ratio=0.5, channels=False)
    assert result.in_place
    assert sorted(change.before for change in result.groups) == sorted(net.inner)
    assert {change.kind for change in result.groups} == {"width"}
    normalised = shape == "residual blocks"
    masked = fxprune.prune_module(net, images(), "magnitude", ratio=0.0, channels=False).module
    with torch.no_grad():
        for (name, dim), kept in result.plan.slices.items():
            tensor = masked.get_parameter(name) if name in dict(masked.named_parameters()) else None
            if tensor is not None:
                gone = [row for row in range(tensor.shape[dim]) if row not in set(kept.tolist())]
                tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
        x = images(3)
        assert normalised or torch.allclose(result.module(x), masked(x), atol=1e-5)
    assert result.module(images(3)).shape == net(images(3)).shape
