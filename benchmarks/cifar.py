"""ResNets of He et al. on CIFAR-10 with half of their multiply-accumulates removed, beside Torch-Pruning.

python benchmarks/cifar.py ../shared/vision --depths 20 56 --epochs 2 --write docs/cifar.md

Needs Pillow, and torch-pruning for its rows: `pip install pillow` and `pip install --no-deps torch-pruning`.
"""

from __future__ import annotations

import argparse
import copy
import io
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.ir.cost import macs
from fxprune.ir.groups import Kind
from fxprune.passes.couple import couple
from fxprune.passes.measure import parameter_count
from fxprune.passes.select import Scope, chosen_groups, select
from fxprune.passes.shrink import make_plan, rewrite
from fxprune.tracer.export import trace_model

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEFT = 0.501
"""Share of the multiply-accumulates that may be left: half, and a tenth of a percent, since units are whole."""
CALIBRATION = 256
EXAMPLE = {"x": torch.zeros(2, 3, 32, 32)}


class Block(nn.Module):
    """Two convolutions and the shortcut of option A: every other position, and channels of zeros on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if inputs == outputs else (2, (outputs - inputs) // 2)
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


class ResNet(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2: ``6 n + 2`` layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(blocks)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class Images:
    """Normalised images ``[n, 3, 32, 32]`` and their labels ``[n]``."""

    pixels: Tensor
    labels: Tensor

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """In order, or shuffled, flipped and shifted by up to four pixels when a generator is given."""
        count = len(self.labels)
        order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for rows in order.split(size):
            pixels = self.pixels[rows]
            yield (pixels if generator is None else _augmented(pixels, generator)), self.labels[rows]


def _augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    flips = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(flips, pixels.flip(3), pixels)
    padded = F.pad(pixels, (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, len(pixels)), generator=generator)
    rows = (down[:, None] + torch.arange(32))[:, None, :, None]
    columns = (right[:, None] + torch.arange(32))[:, None, None, :]
    samples, channels = torch.arange(len(pixels))[:, None, None, None], torch.arange(3)[None, :, None, None]
    return padded[samples, channels, rows, columns]


def read_images(path: Path, limit: int | None) -> Images:
    """Decode a file of JPEG images: ``jpeg`` holds all their bytes, ``offsets`` where each begins and ends."""
    from PIL import Image

    held = np.load(path)
    data, offsets, labels = held["jpeg"].tobytes(), held["offsets"], held["labels"][:limit]
    pixels = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]])).convert("RGB"))
            for i in range(len(labels))
        ]
    )
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return Images(((scaled - mean) / deviation).contiguous(), torch.from_numpy(labels.astype(np.int64)))


def accuracy(model: nn.Module, images: Images) -> float:
    """Share of the images whose label has the largest logit."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(250))
    return right / len(images.labels)


def tune(model: nn.Module, images: Images, epochs: int, rate: float = 0.02) -> None:
    """SGD with momentum, the rate going down to zero on a cosine; the same for every model."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = epochs * -(-len(images.labels) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(epochs):
        for pixels, labels in images.batches(128, generator):
            optimiser.zero_grad()
            F.cross_entropy(model(pixels), labels).backward()
            optimiser.step()
            schedule.step()


def cost(model: nn.Module) -> int:
    """Multiply-accumulates for one image."""
    return macs(trace_model(copy.deepcopy(model).eval(), EXAMPLE).graph) // len(EXAMPLE["x"])


@dataclass(frozen=True)
class Task:
    """What every method is given.

    Attributes:
        model: the network; a method may spoil it.
        pixels, labels: what scores are computed on.
        budget: multiply-accumulates of one image that may be left.
    """

    model: ResNet
    pixels: Tensor
    labels: Tensor
    budget: float

    def loss(self, module: nn.Module) -> Tensor:
        return F.cross_entropy(module(self.pixels), self.labels)


@dataclass(frozen=True)
class Smaller:
    """A pruned network, and how it came about."""

    module: nn.Module
    how: str


@dataclass(frozen=True)
class Widths:
    """What a ratio leaves.

    Attributes:
        ratio: of the inner widths.
        kept: of the first dimension of every tensor that is cut there.
    """

    ratio: float
    kept: dict[str, int]


def widths(model: nn.Module, budget: float, shortcuts: float = 0) -> Widths:
    """The smallest ratio of the inner widths, in 64ths, that meets the budget; the graph is counted, nothing runs.

    Args:
        model: the network.
        budget: multiply-accumulates of one image that may be left.
        shortcuts: share of the widths that the shortcuts carry that goes beside.
    """
    coupling = couple(trace_model(model, EXAMPLE).graph)
    groups, _ = chosen_groups(coupling.groups.values(), Scope(channels=shortcuts > 0))
    scores = {group.name: np.zeros(group.units) for group in groups}
    shared, inner = ([g for g in groups if (g.kind is Kind.CHANNELS) is wanted] for wanted in (True, False))
    for ratio in (part / 64 for part in range(1, 64)):
        plan = make_plan(coupling, {**select(shared, scores, shortcuts), **select(inner, scores, ratio)})
        if macs(rewrite(coupling, plan)) <= budget * len(EXAMPLE["x"]):
            return Widths(ratio, {name: len(kept) for (name, dim), kept in plan.slices.items() if dim == 0})
    raise RuntimeError(f"no ratio leaves {budget:,.0f} multiply-accumulates")


def by_fxprune(task: Task, shortcuts: float = 0) -> Smaller:
    """First-order Taylor scores, the same ratio everywhere."""
    ratio = widths(task.model, task.budget, shortcuts).ratio
    passes = [f"taylor{{ratio={shortcuts},ffn=false,channels=true}}"] if shortcuts else []
    passes.append(f"taylor{{ratio={ratio},channels=false}}")
    result = fxprune.prune_module(task.model, task.pixels[:8], passes, loss=task.loss)
    form = "repaired in place" if result.in_place else "rewritten graph"
    return Smaller(result.module, f"{_said(ratio, shortcuts)}; {len(result.groups)} groups, {form}")


def by_torch_pruning(task: Task, shortcuts: float = 0) -> Smaller:
    """The peer's first-order Taylor scores on the same images, with exactly the widths of fxprune's row."""
    found = widths(task.model, task.budget, shortcuts)
    # It keeps int(width * (1 - ratio)); the half keeps a rounding of the product from taking one more.
    ratios = {
        module: 1 - (found.kept[f"{name}.weight"] + 0.5) / module.out_channels
        for name, module in task.model.named_modules()
        if isinstance(module, nn.Conv2d) and f"{name}.weight" in found.kept
    }
    options = {"pruning_ratio": found.ratio, "pruning_ratio_dict": ratios}
    return Smaller(_torch_pruned(task, inner=not shortcuts, **options), _said(found.ratio, shortcuts))


def by_torch_pruning_ranked(task: Task) -> Smaller:
    """The peer ranks the units of all layers together; the smallest ratio that meets the budget, to a thousandth."""
    low, high = 0.0, 0.9
    while high - low > 0.001:
        middle = (low + high) / 2
        small = _torch_pruned(replace(task, model=copy.deepcopy(task.model)), pruning_ratio=middle, global_pruning=True)
        low, high = (low, middle) if cost(small) <= task.budget else (middle, high)
    return Smaller(_torch_pruned(task, pruning_ratio=high, global_pruning=True), f"ratio {high:.3f}")


def _torch_pruned(task: Task, *, inner: bool = True, **options: Any) -> nn.Module:
    import torch_pruning as tp

    model = task.model.eval()
    left: list[nn.Module] = [model.linear]
    if inner:
        left += [model.conv1, *(module.conv2 for module in model.modules() if isinstance(module, Block))]
    importance = tp.importance.GroupTaylorImportance()
    pruner = tp.pruner.BasePruner(model, task.pixels[:2], importance=importance, ignored_layers=left, **options)
    task.loss(model).backward()
    pruner.step()
    model.zero_grad()
    return model


def _said(ratio: float, shortcuts: float) -> str:
    return f"ratio {ratio:.3f}" + (f", {shortcuts:g} of the shortcuts" if shortcuts else "")


METHODS: dict[str, Callable[[Task], Smaller]] = {
    "dense, fine-tuned": lambda task: Smaller(task.model, "nothing removed"),
    "fxprune, inner widths": by_fxprune,
    "Torch-Pruning, inner widths": by_torch_pruning,
    "Torch-Pruning, inner widths, ranked over all layers": by_torch_pruning_ranked,
    "fxprune, all widths": partial(by_fxprune, shortcuts=0.25),
    "Torch-Pruning, all widths": partial(by_torch_pruning, shortcuts=0.25),
}


def rows(depth: int, folder: Path, train: Images, test: Images, epochs: int) -> Iterator[str]:
    """The table's lines for one network."""
    model = ResNet(depth).eval()
    model.load_state_dict(load_file(folder / f"resnet{depth}.safetensors"), strict=True)
    dense = cost(model)
    yield _row(f"ResNet-{depth} | dense", model, dense, f"{accuracy(model, test):.2%} | |")
    chosen = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    for name, method in METHODS.items():
        task = Task(copy.deepcopy(model), train.pixels[chosen], train.labels[chosen], LEFT * dense)
        try:
            small = method(task)
        except ImportError:
            yield f"| ResNet-{depth} | {name} | | | | not installed | | |"
            continue
        except Exception as error:  # that a peer fails on this network is a result
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            yield f"| ResNet-{depth} | {name} | | | | fails | | {type(error).__name__}: {reason} |"
            continue
        before = accuracy(small.module, test)
        started = time.perf_counter()
        tune(small.module, train, epochs)
        how = f"{small.how}; tuned in {time.perf_counter() - started:.0f} s"
        found = f"{before:.2%} | {accuracy(small.module, test):.2%} | {how}"
        yield _row(f"ResNet-{depth} | {name}", small.module, dense, found)


def _row(name: str, model: nn.Module, dense: int, found: str) -> str:
    left = cost(model)
    return f"| {name} | {left / 1e6:.2f} M | {1 - left / dense:.1%} | {parameter_count(model):,} | {found} |"


ABOUT = """
ResNets of He et al. (arXiv 1512.03385, section 4.2, option A) with the trained weights of akamaster's
`pytorch_resnet_cifar10`, on {test:,} test images of CIFAR-10. The images are JPEG copies, so that every accuracy is
lower than on the originals; its standard error is about half a percentage point.

Every pruned row has first-order Taylor scores from the same {calibration} training images, half of the
multiply-accumulates removed (to a tenth of a percent at least; ratios go in 64ths), and {epochs} epochs of the same
fine-tuning, one seed, on {train:,} training images. The dense network was fine-tuned too, since that alone changes the
accuracy on JPEG copies. *Inner widths* leaves the widths alone that the shortcuts carry; *all widths* takes a quarter
of those, and of the inner widths what the budget asks for. *Ranked over all layers* is the peer's `global_pruning`.
MACs are for one image, counted by fxprune for every row.

| model | method | MACs | removed | parameters | accuracy, pruned | fine-tuned | |
|---|---|---|---|---|---|---|---|"""


def head(options: argparse.Namespace, train: int, test: int) -> list[str]:
    """What stands above the table."""
    arguments = " ".join(argument for argument in sys.argv[1:] if argument != str(options.vision))
    try:
        peer = f"torch-pruning {version('torch-pruning')}"
    except PackageNotFoundError:
        peer = "no torch-pruning"
    return [
        "# CIFAR-10: half of the multiply-accumulates removed",
        "",
        f"`python benchmarks/cifar.py ../shared/vision {arguments}`, {date.today()}, {platform.machine()} CPU, "
        f"{options.threads} thread(s), torch {torch.__version__}, {peer}.",
        *ABOUT.format(train=train, test=test, epochs=options.epochs, calibration=CALIBRATION).splitlines(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vision", nargs="?", type=Path, default=Path("../shared/vision"))
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 56])
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning on the training images")
    parser.add_argument("--images", type=int, help="use only so many of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train, test = (read_images(options.vision / f"cifar10-{part}.npz", options.images) for part in ("train", "test"))
    lines = head(options, len(train.labels), len(test.labels))
    print("\n".join(lines), flush=True)
    for depth in options.depths:
        for line in rows(depth, options.vision, train, test, options.epochs):
            print(line, flush=True)
            lines.append(line)
            if options.write is not None:
                options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
