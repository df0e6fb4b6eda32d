"""compensate: refit the consumers of what was removed, so that their outputs stay those of the dense model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..ir import FxpruneError, Plan, RequestError
from .base import Pass, State, option
from .least_squares import Moments, refit
from .measure import inference

METHODS = ("lstsq", "bias")


@dataclass(frozen=True)
class Consumer:
    """A linear map whose inputs were cut.

    Attributes:
        path: of the module that holds it.
        tensor: name of its weight.
        inputs: the weight's dimension that takes the inputs in (1 for ``nn.Linear``, 0 for transformers' ``Conv1D``).
    """

    path: str
    tensor: str
    inputs: int


@dataclass(frozen=True, kw_only=True)
class Compensate(Pass):
    """Refit every linear map whose inputs lost units, one after the other in the order in which the model runs them.

    Each is fitted with everything before it already pruned and refitted; the outputs it is fitted to are the dense
    model's (sequential least squares as in OSSCAR, SlimGPT and Tyr-the-Pruner, arXiv 2503.09657). ``bias`` adds to the
    bias what the removed inputs gave on average (FLAP, arXiv 2312.11983).
    """

    name: ClassVar[str] = "compensate"
    kind: ClassVar[str] = "recover"
    needs_original: ClassVar[bool] = True

    method: str = option("lstsq", "lstsq: refit the kept weights; bias: correct the mean", METHODS)
    damping: float = option(0.01, "pull towards the weights as they are, relative to the mean second moment")
    samples: int = option(64, "calibration windows")
    length: int = option(128, "tokens in a calibration window")
    seed: int | None = option(None, "draw the windows at random; the first ones in order when none")
    batch: int = option(8, "windows in one forward pass")

    def check(self) -> None:
        """Refuse values that make no sense."""
        if not 0 <= self.damping < float("inf"):
            raise RequestError(f"compensate: damping {self.damping} is negative", "use 0.01, or 0 for none")
        for name, low in (("samples", 1), ("length", 1), ("batch", 1)):
            if getattr(self, name) < low:
                raise RequestError(f"compensate: {name} {getattr(self, name)} is below {low}", f"use {low} or more")

    def run(self, state: State) -> None:
        """Refit in place.

        Raises:
            RequestError: without a pruning pass before it, calibration text, or a bias to correct.
            FxpruneError: for statistics that are not finite, or singular without damping.
        """
        if state.original is None or state.plan is None:
            raise RequestError(
                "compensate has nothing to make up for", "write it after a pruning pass: taylor,compensate"
            )
        if state.calibration is None:
            raise RequestError("compensate needs calibration text", "give --calib FILE")
        found, left = consumers(state)
        tokens = state.calibration.windows(self.length, self.samples, self.seed)
        notes = []
        for consumer in found:
            size = state.model.get_parameter(consumer.tensor).shape[consumer.inputs]
            if tokens.numel() < size:
                notes.append(f"{consumer.tensor}: {tokens.numel()} tokens for {size} unknowns; damping holds the rest")
            if self.method == "lstsq":
                self._refit(state, consumer, tokens)
            else:
                self._shift(state, consumer, tokens)
        state.report[self.name] = {
            "method": self.method, "tokens": tokens.numel(), "refitted": [c.tensor for c in found],
            "left": left, "notes": notes,
        }  # fmt: skip

    def _refit(self, state: State, consumer: Consumer, tokens: torch.Tensor) -> None:
        assert state.original is not None
        assert state.plan is not None
        module = state.model.get_submodule(consumer.path)
        weight = _matrix(module, consumer)
        rows = kept_rows(state.plan, consumer)
        bias = getattr(module, "bias", None)
        extra = 0 if bias is None else 1
        moments = Moments.empty(weight.shape[1] + extra, weight.shape[0], weight.device)
        for window in tokens.split(self.batch):
            x, _ = observe(state.model, consumer.path, window)
            _, y = observe(state.original, consumer.path, window)
            y = y if rows is None else y.index_select(1, rows)
            moments.add(torch.cat([x, x.new_ones(len(x), 1)], 1) if extra else x, y)
        whole = torch.cat([weight, bias.detach()[:, None]], 1) if bias is not None else weight
        try:
            fitted = refit(moments, whole, self.damping)
        except FxpruneError as error:
            raise FxpruneError(f"{consumer.tensor}: {error.message}", error.hint) from error
        _put(module, consumer, fitted[:, : weight.shape[1]], fitted[:, -1] if extra else None)

    def _shift(self, state: State, consumer: Consumer, tokens: torch.Tensor) -> None:
        assert state.original is not None
        assert state.plan is not None
        module = state.model.get_submodule(consumer.path)
        if getattr(module, "bias", None) is None:
            raise RequestError(
                f"compensate: {consumer.path} has no bias to correct", "use method=lstsq, which needs none"
            )
        rows = kept_rows(state.plan, consumer)
        total: torch.Tensor | float = 0.0
        count = 0
        for window in tokens.split(self.batch):
            _, got = observe(state.model, consumer.path, window)
            _, y = observe(state.original, consumer.path, window)
            y = y if rows is None else y.index_select(1, rows)
            total, count = total + (y - got).double().sum(0), count + len(y)
        assert isinstance(total, torch.Tensor)
        bias = module.get_parameter("bias")
        bias.data += (total / count).to(bias.dtype)


def consumers(state: State) -> tuple[list[Consumer], list[str]]:
    """The linear maps that take in what was cut, in execution order, and the tensors that cannot be refitted."""
    assert state.plan is not None
    order: dict[str, int] = {}
    names = {parameter.value: parameter.name for parameter in state.graph.parameters}
    for number, value in enumerate(value for op in state.graph.ops for value in op.operands if value in names):
        order.setdefault(names[value], number)
    found, left = [], []
    for tensor, dim in sorted(dict.fromkeys(state.consumers), key=lambda place: order[place[0]]):
        path, _, leaf = tensor.rpartition(".")
        module = state.model.get_submodule(path)
        expected = 1 if isinstance(module, nn.Linear) else 0 if isinstance(module, Conv1D) else None
        if leaf == "weight" and dim == expected and (tensor, dim) in state.plan.slices:
            found.append(Consumer(path, tensor, dim))
        else:
            left.append(tensor)
    return found, sorted(set(left))


def kept_rows(plan: Plan, consumer: Consumer) -> torch.Tensor | None:
    """The outputs of the dense map that the pruned one still has; None when it has them all."""
    kept = plan.slices.get((consumer.tensor, 1 - consumer.inputs))
    return None if kept is None else torch.from_numpy(kept)


class _Reached(Exception):
    """The module that was waited for has run."""


@contextmanager
def _watching(module: nn.Module, seen: list[torch.Tensor]) -> Iterator[None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        seen.extend((args[0].flatten(0, -2), output.flatten(0, -2)))
        raise _Reached

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def observe(model: nn.Module, path: str, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``[T, k]`` and outputs ``[T, n]`` of one linear map on some windows; the forward stops there."""
    seen: list[torch.Tensor] = []
    with inference(model), _watching(model.get_submodule(path), seen):
        try:
            model(input_ids=tokens, use_cache=False)
        except _Reached:
            return seen[0], seen[1]
    raise FxpruneError(f"{path} does not run in the model's forward", "leave compensate out")


def _matrix(module: Any, consumer: Consumer) -> torch.Tensor:
    """The weight as ``[outputs, inputs]``."""
    weight: torch.Tensor = module.weight.detach()
    return weight if consumer.inputs == 1 else weight.T


def _put(module: Any, consumer: Consumer, matrix: torch.Tensor, bias: torch.Tensor | None) -> None:
    with torch.no_grad():
        module.weight.copy_(matrix if consumer.inputs == 1 else matrix.T)
        if bias is not None:
            module.bias.copy_(bias)
