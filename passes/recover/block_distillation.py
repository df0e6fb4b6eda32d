"""Blockwise local distillation: train every block by itself to match the output of the dense model's block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...ir.errors import FxpruneError, RequestError
from ..calibrate.batches import Feed
from ..calibrate.blockwise_run import BlockwiseRun
from ..model.blocks import find_blocks
from .training import Example, pad


@dataclass(frozen=True)
class BlockBatch:
    """One training batch of a block.

    Attributes:
        args, kwargs: the inputs of the pruned model's block; all blocks before it are already trained.
        target: the output of the dense model's block, ``[B, L, d]``.
        mask: bool ``[B, L]``, False for padding.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor
    mask: Tensor


def distil_blocks(
    student: nn.Module, teacher: nn.Module, examples: Sequence[Example], *, steps: int, lr: float, batch: int, seed: int
) -> list[tuple[float, float]]:
    """Train the blocks of ``student`` in place, in execution order.

    The loss is the squared error of a block's output, divided by the mean square of the target. The target comes from a
    full run of the dense model, so that a block also learns to correct the errors of the blocks before it (block-wise
    local distillation as in Puzzle, arXiv 2411.19146, section 3, in sequence).

    Args:
        student: the pruned model, in eval mode.
        teacher: the dense model.
        examples: the input of both models.
        steps: AdamW steps for every block.
        lr: learning rate at the first step; it falls linearly to 0.
        batch: examples per step.
        seed: random seed for the choice of examples.

    Returns:
        The loss at the first and the last step, for every block.

    Raises:
        RequestError: when blocks cannot be compared, because layers or residual channels were removed.
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
    runs = BlockwiseRun.of(teacher, feeds), BlockwiseRun.of(student, feeds)
    losses = []
    for number, block in enumerate(blocks):
        path = f"{dense.path}.{number}"
        lessons = [_lesson(runs, at, number, path, mask) for at, mask in enumerate(masks)]
        losses.append(_train(block, number, lessons, steps, lr))
        for run in runs:
            run.advance(number + 1)
    return losses


def _feed(batch: dict[str, Tensor], device: torch.device) -> Feed:
    given = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    return lambda model: model(**given, use_cache=False)


def _lesson(runs: tuple[BlockwiseRun, BlockwiseRun], at: int, number: int, path: str, mask: Tensor) -> BlockBatch:
    dense, pruned = runs
    outputs: list[Any] = []
    calls: list[tuple[Any, Any]] = []
    handle = dense.model.get_submodule(path).register_forward_hook(lambda _m, _a, out: outputs.append(out))
    try:
        dense.calls(at, {}, number)
    finally:
        handle.remove()
    pruned.calls(at, {}, number, (path, lambda _m, args, kwargs: calls.append((args, kwargs))))
    return BlockBatch(*calls[-1], _hidden(outputs[-1]), mask)


def _incomparable(left: str) -> RequestError:
    return RequestError(
        f"cannot train block by block: {left} are left",
        "leave the option blocks out; the training on the predictions still works",
    )


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _train(block: nn.Module, number: int, lessons: Sequence[BlockBatch], steps: int, lr: float) -> tuple[float, float]:
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
                f"block {number}: the loss is {losses[-1]} at step {step + 1}", "lower lr; check the weights"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return losses[0], losses[-1]
