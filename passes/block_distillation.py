"""Blockwise local distillation: every block alone learns to give what the dense model's block gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.errors import FxpruneError, RequestError
from .blocks import find_blocks
from .statistics import Feed
from .streams import Stream
from .training import Example, pad


@dataclass(frozen=True)
class Lesson:
    """One batch of a block.

    Attributes:
        args, kwargs: what the pruned model's block is called with, everything before it already trained.
        target: what the dense model's block gives, ``[B, L, d]``.
        mask: which tokens are no padding, bool ``[B, L]``.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor
    mask: Tensor


def distil_blocks(
    student: nn.Module, teacher: nn.Module, examples: Sequence[Example], *, steps: int, lr: float, batch: int, seed: int
) -> list[tuple[float, float]]:
    """Train the blocks of ``student`` in place, one after the other in the order in which they run.

    The loss is the squared error of a block's output, relative to the mean square of the dense one's: that of the dense
    stream, so that a block also learns to make up for what the blocks before it got wrong (block-wise local
    distillation as in Puzzle, arXiv 2411.19146, section 3, in sequence).

    Args:
        student: pruned, in eval mode.
        teacher: the dense model.
        examples: what both read.
        steps: of AdamW for every block.
        lr: at the first step, falling linearly to 0.
        batch: examples in a step.
        seed: of which examples are taken.

    Returns:
        The loss at the first and the last step, for every block.

    Raises:
        RequestError: for models whose blocks cannot be compared, since layers or residual channels are gone.
        FxpruneError: for a loss that is not finite.
    """
    dense = find_blocks(teacher)
    blocks = list(student.get_submodule(dense.path).children())
    if len(blocks) != len(dense.modules):
        raise _incomparable(f"{len(blocks)} of {len(dense.modules)} layers")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[: steps * batch]
    batches = [pad([examples[i] for i in part.tolist()]) for part in order.split(batch)]
    device = next(student.parameters()).device
    feeds = [_feed(each, device) for each in batches]
    masks = [each["attention_mask"].bool().to(device) for each in batches]
    streams = Stream.of(teacher, feeds), Stream.of(student, feeds)
    losses = []
    for number, block in enumerate(blocks):
        path = f"{dense.path}.{number}"
        lessons = [_lesson(streams, at, number, path, mask) for at, mask in enumerate(masks)]
        losses.append(_train(block, number, lessons, steps, lr))
        for stream in streams:
            stream.advance(number + 1)
    return losses


def _feed(batch: dict[str, Tensor], device: torch.device) -> Feed:
    given = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    return lambda model: model(**given, use_cache=False)


def _lesson(streams: tuple[Stream, Stream], at: int, number: int, path: str, mask: Tensor) -> Lesson:
    dense, pruned = streams
    outputs: list[Any] = []
    calls: list[tuple[Any, Any]] = []
    handle = dense.model.get_submodule(path).register_forward_hook(lambda _m, _a, out: outputs.append(out))
    try:
        dense.calls(at, {}, number)
    finally:
        handle.remove()
    pruned.calls(at, {}, number, (path, lambda _m, args, kwargs: calls.append((args, kwargs))))
    return Lesson(*calls[-1], _hidden(outputs[-1]), mask)


def _incomparable(left: str) -> RequestError:
    return RequestError(
        f"block by block nothing can be compared: {left} are left",
        "leave blocks out; predictions are compared all the same",
    )


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _train(block: nn.Module, number: int, lessons: Sequence[Lesson], steps: int, lr: float) -> tuple[float, float]:
    parameters = [parameter.requires_grad_(True) for parameter in block.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        lesson = lessons[step % len(lessons)]
        got = _hidden(block(*lesson.args, **lesson.kwargs))
        if got.shape != lesson.target.shape:
            raise _incomparable(f"{got.shape[-1]} of {lesson.target.shape[-1]} residual channels")
        wanted = lesson.target[lesson.mask]
        loss = (got[lesson.mask] - wanted).square().mean() / wanted.square().mean()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FxpruneError(
                f"block {number}: the loss is {losses[-1]} at step {step + 1}", "lower lr; check weights"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return losses[0], losses[-1]
