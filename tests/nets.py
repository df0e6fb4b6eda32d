"""Small convolutional networks, one per structure that prunes differently. Widths are distinct where they may be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=size // 2, **options), nn.BatchNorm2d(outputs))


class Plain(nn.Module):
    """Convolutions, pooling, and a flatten into a linear layer that sees every position of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_norm(3, 10), nn.ReLU(), nn.MaxPool2d(2), conv_norm(10, 14), nn.PReLU(14), nn.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(nn.Linear(14 * 4 * 4, 18), nn.ReLU(), nn.Dropout(), nn.Linear(18, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class HardCoded(Plain):
    """Its forward states a width as a number, so that only the rewritten graph can be smaller."""

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).view(-1, 224))


class Grouped(nn.Module):
    """Grouped convolutions and group normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3), nn.GroupNorm(3, 24)
        self.grouped, self.head = nn.Conv2d(24, 36, 3, groups=6), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.grouped(F.silu(self.norm(self.stem(x))))).mean((2, 3)))


class Depthwise(nn.Module):
    """Inverted residuals with depthwise convolutions and squeeze-excitation (MobileNetV2 and V3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, stride=2)
        self.blocks = nn.ModuleList(InvertedResidual(12, 20 + 4 * i, 6 + i) for i in range(2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, width: int, inner: int, squeezed: int) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_norm(width, inner, 1), conv_norm(inner, inner, groups=inner)
        self.squeeze, self.excite = nn.Conv2d(inner, squeezed, 1), nn.Conv2d(squeezed, inner, 1)
        self.project = conv_norm(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.project(x * gate)


class Decoder(nn.Module):
    """Transposed convolutions, plain and grouped, instance normalisation, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, 12, 4, stride=2, padding=1)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.decode = nn.ConvTranspose2d(12, 18, 4, stride=2, padding=1)
        self.grouped = nn.ConvTranspose2d(18, 24, 3, padding=1, groups=6)
        self.shuffle, self.out = nn.PixelShuffle(2), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.encode(x)), 0.1)
        return self.out(self.shuffle(F.relu(self.grouped(F.relu(self.decode(x))))))


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it (DenseNet), with a transition between two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(conv_norm(8 + 5 * i, 5) for i in range(3))
        self.transition, self.norm = nn.Conv2d(23, 11, 1), nn.BatchNorm2d(23)
        self.last, self.head = conv_norm(11, 7), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        x = F.avg_pool2d(self.transition(F.relu(self.norm(x))), 2)
        x = torch.cat([x, F.relu(self.last(x))], 1)
        return self.head(x.mean((-2, -1)))


class UNet(nn.Module):
    """Skips that are concatenated with what comes back up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(3, 6), conv_norm(6, 10), conv_norm(10, 16)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 10, 2, stride=2), nn.Conv2d(10, 6, 1)])
        self.merge = nn.ModuleList([conv_norm(20, 10), conv_norm(12, 6)])
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down[0](x))
        second = F.relu(self.down[1](F.max_pool2d(first, 2)))
        x = self.up[0](F.relu(self.down[2](F.max_pool2d(second, 2))))
        x = F.relu(self.merge[0](torch.cat([second, x], 1)))
        x = self.up[1](F.interpolate(x, scale_factor=2, mode="bilinear"))
        return self.out(F.relu(self.merge[1](torch.cat([first, x], 1))))


class Inception(nn.Module):
    """Branches of several kernel sizes, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 9)
        self.branches = nn.ModuleList(
            [
                conv_norm(9, 6, 1),
                nn.Sequential(conv_norm(9, 7, 1), nn.ReLU(), conv_norm(7, 8)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(9, 4, 1)),
            ]
        )
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(branch(x)) for branch in self.branches], 1)
        return self.head(x.amax((2, 3)))


class Shuffle(nn.Module):
    """Half of the channels go through a block, then the halves are interleaved (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_norm(8, 8, 1), nn.ReLU(), conv_norm(8, 8, groups=8), conv_norm(8, 8, 1), nn.ReLU())
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            kept, changed = x.chunk(2, 1)
            x = torch.cat([kept, block(changed)], 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.mean((2, 3)))


class GroupedShuffle(nn.Module):
    """Grouped pointwise convolutions with a shuffle between them (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_norm(3, 12), conv_norm(12, 24, 1, groups=2)
        self.shuffle, self.second = nn.ChannelShuffle(2), conv_norm(24, 12, 1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.second(self.shuffle(F.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """He et al. (arXiv 1512.03385), section 4.2, with the shortcut of option A."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.added = outputs // inputs, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return F.relu(x + y)


class Residual(nn.Module):
    """A CIFAR ResNet whose shortcut pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16), BasicBlock(16, 16))
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).view(x.shape[0], -1))


class ChannelsLast(nn.Module):
    """Layer normalisation over channels between convolutions (ConvNeXt), with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 30), nn.Linear(30, 12)
        self.scale, self.head = nn.Parameter(torch.full((12,), 0.5)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Volume(nn.Module):
    """Three spatial dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ELU(), nn.MaxPool3d(2),
            nn.Conv3d(8, 12, 3, padding="same"), nn.Softplus(), nn.AdaptiveAvgPool3d((1, 2, 2)), nn.Flatten(),
            nn.Linear(48, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))


class Sequence(nn.Module):
    """One spatial dimension: dilated, gated temporal convolutions (WaveNet) over rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 10, 1)
        self.layers = nn.ModuleList(nn.Conv1d(10, 24, 3, padding=2**i, dilation=2**i) for i in range(2))
        self.mix = nn.ModuleList(nn.Conv1d(12, 10, 1) for _ in range(2))
        self.norm, self.head = nn.BatchNorm1d(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2))
        for layer, mix in zip(self.layers, self.mix, strict=True):
            filtered, gate = layer(x).chunk(2, dim=1)
            x = x + mix(torch.tanh(filtered) * torch.sigmoid(gate))
        return self.head(F.adaptive_max_pool1d(F.glu(torch.cat([self.norm(x)] * 2, 1), 1), 1).squeeze(-1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "hard-coded width": HardCoded,
    "grouped": Grouped,
    "depthwise": Depthwise,
    "transposed": Decoder,
    "dense": Dense,
    "unet": UNet,
    "inception": Inception,
    "shuffle": Shuffle,
    "grouped shuffle": GroupedShuffle,
    "padded shortcut": Residual,
    "channels last": ChannelsLast,
    "volume": Volume,
    "sequence": Sequence,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A net in evaluation mode, every tensor random, running statistics included."""
    torch.manual_seed(seed)
    net = NETS[name]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3)
        for key, buffer in net.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return net


def images(batch: int = 2) -> Tensor:
    """``[batch, 3, 16, 16]`` float32."""
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def quadratic(net: nn.Module, batch: Tensor) -> Tensor:
    """A loss that needs no label."""
    return net(batch).square().mean()
