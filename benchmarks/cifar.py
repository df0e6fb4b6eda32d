"""ResNets of He et al. on CIFAR-10 with half of their multiply-accumulates removed, compared with Torch-Pruning.

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
from fxprune.passes.couple.coupling import couple
from fxprune.passes.model.measure import parameter_count
from fxprune.passes.select.scope import Scope, chosen_groups
from fxprune.passes.select.select import select
from fxprune.passes.shrink.graph import make_plan, rewrite
from fxprune.tracer.export import trace_model

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEFT = 0.501
"""Allowed share of the multiply-accumulates: half, and a tenth of a percent, since units are removed as a whole."""
CALIBRATION = 256
CONDITIONS = 3
"""The index of the line of the page from which on the text describes the conditions of the rows."""
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
        """Batches in order; with a generator shuffled, flipped and shifted by up to four pixels."""
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
    """Decode a file of JPEG images: ``jpeg`` has the bytes of all, ``offsets`` the start and the end of each."""
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


@dataclass(frozen=True)
class Sets:
    """The folder with the weights, and the images."""

    folder: Path
    train: Images
    test: Images


def accuracy(model: nn.Module, images: Images) -> float:
    """Accuracy: share of the images whose label has the largest logit."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(250))
    return right / len(images.labels)


def tune(model: nn.Module, images: Images, epochs: int, rate: float = 0.02) -> None:
    """Fine-tune with SGD with momentum and a cosine learning rate schedule, in the same way for every model."""
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
    """The input of every method.

    Attributes:
        model: the network; a method may change it.
        pixels, labels: the images on which scores are computed.
        budget: allowed multiply-accumulates for one image.
    """

    model: ResNet
    pixels: Tensor
    labels: Tensor
    budget: float

    def loss(self, module: nn.Module) -> Tensor:
        return F.cross_entropy(module(self.pixels), self.labels)


@dataclass(frozen=True)
class Smaller:
    """A pruned network, and how it was made."""

    module: nn.Module
    how: str


@dataclass(frozen=True)
class Widths:
    """The widths that a ratio gives.

    Attributes:
        ratio: the removed share of the inner widths.
        kept: the new extent of the first dimension of every tensor that is pruned there.
    """

    ratio: float
    kept: dict[str, int]


def widths(model: nn.Module, budget: float) -> Widths:
    """The smallest ratio of the inner widths, in 64ths, that meets the budget; computed from the graph."""
    coupling = couple(trace_model(model, EXAMPLE).graph)
    groups, _ = chosen_groups(coupling.groups.values(), Scope())
    scores = {group.name: np.zeros(group.units) for group in groups}
    for ratio in (part / 64 for part in range(1, 64)):
        plan = make_plan(coupling, select(groups, scores, ratio))
        if macs(rewrite(coupling, plan)) <= budget * len(EXAMPLE["x"]):
            return Widths(ratio, {name: len(kept) for (name, dim), kept in plan.slices.items() if dim == 0})
    raise RuntimeError(f"no ratio leaves {budget:,.0f} multiply-accumulates")


def by_fxprune(task: Task) -> Smaller:
    """fxprune: first-order Taylor scores, the same ratio for every inner width."""
    ratio = widths(task.model, task.budget).ratio
    return _fxpruned(task, f"taylor{{ratio={ratio},channels=false}}")


def by_fxprune_ranked(task: Task, *, channels: bool) -> Smaller:
    """fxprune: first-order Taylor scores, with the budget distributed over all layers by score and cost."""
    return _fxpruned(task, f"taylor{{target=macs:0.5,by=global,channels={str(channels).lower()}}}")


def _fxpruned(task: Task, passes: str) -> Smaller:
    result = fxprune.prune_module(task.model, task.pixels[:8], passes, loss=task.loss)
    form = "module of the original class" if result.in_place else "rewritten graph"
    return Smaller(result.module, f"`{passes}`, {len(result.groups)} groups, {form}")


def by_torch_pruning(task: Task) -> Smaller:
    """Torch-Pruning: its first-order Taylor scores on the same images, with the same widths as the row of fxprune."""
    found = widths(task.model, task.budget)
    # It keeps int(width * (1 - ratio)); the half keeps a rounding of the product from taking one more.
    ratios = {
        module: 1 - (found.kept[f"{name}.weight"] + 0.5) / module.out_channels
        for name, module in task.model.named_modules()
        if isinstance(module, nn.Conv2d) and f"{name}.weight" in found.kept
    }
    small = _torch_pruned(task, pruning_ratio=found.ratio, pruning_ratio_dict=ratios)
    return Smaller(small, f"ratio {found.ratio:.3f}")


def by_torch_pruning_ranked(task: Task, *, inner: bool) -> Smaller:
    """Torch-Pruning: units of all layers are ranked together; the smallest ratio that meets the budget, to 0.001."""
    options: dict[str, Any] = {"inner": inner, "global_pruning": True}
    low, high = 0.0, 0.9
    while high - low > 0.001:
        middle = (low + high) / 2
        small = _torch_pruned(replace(task, model=copy.deepcopy(task.model)), pruning_ratio=middle, **options)
        low, high = (low, middle) if cost(small) <= task.budget else (middle, high)
    return Smaller(_torch_pruned(task, pruning_ratio=high, **options), f"ratio {high:.3f}")


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


METHODS: dict[str, Callable[[Task], Smaller]] = {
    "dense": lambda task: Smaller(task.model, "nothing removed"),
    "fxprune, inner widths": by_fxprune,
    "Torch-Pruning, inner widths": by_torch_pruning,
    "fxprune, inner widths, ranked over all layers": partial(by_fxprune_ranked, channels=False),
    "Torch-Pruning, inner widths, ranked over all layers": partial(by_torch_pruning_ranked, inner=True),
    "fxprune, all widths, ranked over all layers": partial(by_fxprune_ranked, channels=True),
    "Torch-Pruning, all widths, ranked over all layers": partial(by_torch_pruning_ranked, inner=False),
}


def rows(depth: int, sets: Sets, epochs: int, known: list[str]) -> Iterator[str]:
    """The lines of the table for one network; lines of an earlier page are not measured again."""
    model = ResNet(depth).eval()
    model.load_state_dict(load_file(sets.folder / f"resnet{depth}.safetensors"), strict=True)
    dense = cost(model)
    chosen = torch.randperm(len(sets.train.labels), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    batch = sets.train.pixels[chosen], sets.train.labels[chosen]
    for name, method in METHODS.items():
        start = f"| ResNet-{depth} | {name} |"
        line = next((line for line in known if line.startswith(start)), None)
        yield line or f"{start} {_measured(method, Task(copy.deepcopy(model), *batch, LEFT * dense), sets, epochs)} |"


def _measured(method: Callable[[Task], Smaller], task: Task, sets: Sets, epochs: int) -> str:
    dense = cost(task.model)
    try:
        small = method(task)
    except ModuleNotFoundError as error:
        if error.name != "torch_pruning":
            raise
        return "| | | not installed | |"
    except Exception as error:  # that a peer fails on this network is a result
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return f"| | | fails | | {type(error).__name__}: {reason}"
    before, started = accuracy(small.module, sets.test), time.perf_counter()
    tune(small.module, sets.train, epochs)
    seconds, after = time.perf_counter() - started, accuracy(small.module, sets.test)
    left = cost(small.module)
    figures = f"{left / 1e6:.2f} M | {1 - left / dense:.1%} | {parameter_count(small.module):,}"
    return f"{figures} | {before:.2%} | {after:.2%} | {small.how}; tuned in {seconds:.0f} s"


ABOUT = """
ResNets of He et al. (arXiv 1512.03385, section 4.2, option A) with the trained weights of akamaster's
`pytorch_resnet_cifar10`, on {test:,} test images of CIFAR-10. The images are JPEG copies, so every accuracy is
lower than on the original images; its standard error is about half a percentage point.

All pruned rows use first-order Taylor scores from the same {calibration} training images, remove half of the
multiply-accumulates (within a tenth of a percentage point), and have {epochs} epochs of the same fine-tuning with
one seed on {train:,} training images. Differences of less than a percentage point mean nothing. The dense network was
fine-tuned too, since this alone changes the accuracy on JPEG copies. *Inner widths*: the widths of the shortcuts are
not pruned. Unless stated otherwise, every width is reduced by the same share, and both programs keep the same number of
channels everywhere; *ranked over all layers* is `by=global` in fxprune and `global_pruning` in Torch-Pruning. MACs are
for one image, counted by fxprune for every row. Rows of an earlier page are kept, so the rows may be of several runs.
The seconds of fine-tuning were measured with other work on the machine, and cannot be compared.

| model | method | MACs | removed | parameters | accuracy, pruned | fine-tuned | |
|---|---|---|---|---|---|---|---|"""


def head(options: argparse.Namespace, train: int, test: int) -> list[str]:
    """The text above the table."""
    arguments = " ".join(argument for argument in sys.argv[1:] if argument != str(options.vision))
    try:
        peer = f"torch-pruning {version('torch-pruning')}"
    except PackageNotFoundError:
        peer = "no torch-pruning"
    return [
        "# CIFAR-10: half of the multiply-accumulates removed",
        "",
        f"`python benchmarks/cifar.py ../shared/vision {arguments}`, {date.today()}, {platform.machine()} CPU, "
        f"{options.threads} {'thread' if options.threads == 1 else 'threads'}, torch {torch.__version__}, {peer}.",
        *ABOUT.format(train=train, test=test, epochs=options.epochs, calibration=CALIBRATION).splitlines(),
    ]


def kept(page: Path | None, lines: list[str]) -> list[str]:
    """The lines of a page that was measured under the same conditions."""
    found = page.read_text(encoding="utf-8").splitlines() if page is not None and page.is_file() else []
    return found if set(lines[CONDITIONS:]) <= set(found) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vision", nargs="?", type=Path, default=Path("../shared/vision"))
    parser.add_argument("--depths", nargs="+", type=int, default=[20, 56])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of fine-tuning on the training images")
    parser.add_argument("--images", type=int, help="use only this many images of each set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, help="the page to write; its rows are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = (read_images(options.vision / f"cifar10-{part}.npz", options.images) for part in ("train", "test"))
    sets = Sets(options.vision, *images)
    lines = head(options, len(sets.train.labels), len(sets.test.labels))
    known = kept(options.write, lines)
    print("\n".join(lines), flush=True)
    for depth in options.depths:
        for line in rows(depth, sets, options.epochs, known):
            print(line, flush=True)
            lines.append(line)
            if options.write is not None:
                options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
