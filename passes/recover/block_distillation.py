"""Blockwise local distillation: train every block by itself to match the output of the dense model's block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import FxpruneError, RequestError
from ...runtime.model.training_rows import Example
from ...runtime.reporting import counting
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.side_effects import PassesOnMoreError
from ...runtime.streaming.turns import Turn, side_by_side
from ..model.answers import mask_of
from ..model.blocks import find_blocks
from ..model.inputs import called_with
from .training import Lessons, pad


@dataclass(frozen=True)
class Lesson:
    """One training batch of a block.

    Attributes:
        batch: its number.
        target: the output of the dense model's block, ``[B, L, d]``.
        mask: bool ``[B, L]``, False for padding.
    """

    batch: int
    target: Tensor
    mask: Tensor


def distil_blocks(
    student: BlockRunner,
    teacher: BlockRunner,
    lessons: Lessons | Sequence[Example],
    *,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Train the blocks of ``student`` in place, in execution order; one block of each model has its turn at a time.

    The loss is the squared error of a block's output, divided by the mean square of the target. The target comes from a
    full run of the dense model, so that a block also learns to correct the errors of the blocks before it (block-wise
    local distillation as in Puzzle, arXiv 2411.19146, section 3, in sequence).

    Args:
        student: runs the pruned model.
        teacher: runs the dense model.
        lessons: the input of both models; examples of text may stand alone.
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
    if not isinstance(lessons, Lessons):
        lessons = Lessons(lessons, pad)
    paths = _comparable(student, teacher, all_lists=not lessons.text)
    order = torch.randperm(len(lessons.examples), generator=torch.Generator().manual_seed(seed))[: steps * batch]
    batches = _batches(lessons, order, batch)
    feeds = [called_with(each) for each in batches]
    losses: dict[str, tuple[float, float]] = {}
    both = side_by_side(teacher.turns(feeds), student.turns(feeds))
    with closing(both) as turns, counting("blocks", len(student.blocks.modules)) as advance:
        for dense, pruned in turns:
            if pruned.path.rpartition(".")[0] not in paths or pruned.path in losses:
                continue
            targets = [_target(dense, at) for at in range(len(batches))]
            lessons_here = [Lesson(at, target, _mask(batches[at], target)) for at, target in enumerate(targets)]
            student.changing(pruned.block.parameters())
            losses[pruned.path] = _train(pruned, len(losses), lessons_here, steps, lr)
            advance(loss=losses[pruned.path][1])
    return list(losses.values())


def _batches(lessons: Lessons, order: Tensor, size: int) -> list[dict[str, Any]]:
    parts = order.split(size if lessons.divided else 1)
    batches = [dict(lessons.join([lessons.examples[i] for i in part.tolist()])) for part in parts]
    if lessons.text:  # an encoder-decoder model makes the inputs of its decoder from labels
        for batch in batches:
            del batch["labels"]
    return batches


def _comparable(student: BlockRunner, teacher: BlockRunner, *, all_lists: bool) -> list[str]:
    """Paths of the lists of blocks that both models have: the largest, or all, such as encoder and decoder."""
    largest = find_blocks(teacher.model).path
    every = dict.fromkeys(path.rpartition(".")[0] for path in teacher.blocks.modules)
    paths = list(every) if all_lists and every else [largest]
    for path in paths:
        count, before = (len(list(run.model.get_submodule(path).children())) for run in (student, teacher))
        if count != before:
            raise _incomparable(f"{count} of {before} layers are left")
        for why in (student.whole.get(path), teacher.whole.get(path)):
            if why is not None:
                raise _incomparable(why)
    return paths


def _mask(batch: Mapping[str, Any], target: Tensor) -> Tensor:
    """Bool ``[B, L]``: which outputs ``[B, L, d]`` of a block are no padding."""
    mask = mask_of(target, batch)
    whole = torch.ones(target.shape[:-1], dtype=torch.bool, device=target.device)
    return whole if mask is None else mask.to(target.device)


def _target(turn: Turn, batch: int) -> Tensor:
    """The output of a block of the dense model, which does not run again."""
    with torch.no_grad():
        try:
            turn.outputs[batch] = turn.run(batch) if batch else turn.checked(batch)
        except PassesOnMoreError as error:
            raise _incomparable(str(error)) from error
    return _hidden(turn.outputs[batch])


def _incomparable(why: str) -> RequestError:
    return RequestError(
        f"cannot train block by block: {why}",
        "leave the option blocks out; the training on the predictions still works",
    )


def _hidden(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _train(turn: Turn, number: int, lessons: Sequence[Lesson], steps: int, lr: float) -> tuple[float, float]:
    parameters = [parameter.requires_grad_(True) for parameter in turn.block.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step in range(steps):
        lesson = lessons[step % len(lessons)]
        with torch.enable_grad():
            got = _hidden(turn.run(lesson.batch))
        if got.shape != lesson.target.shape:
            raise _incomparable(f"{got.shape[-1]} of {lesson.target.shape[-1]} residual channels are left")
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
