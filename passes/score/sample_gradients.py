"""Recorded calls that read a parameter, so that its gradient can be computed for one sample of the batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ...runtime.tolerances import REORDERED_ROUNDINGS, half_the_digits, roundings

if TYPE_CHECKING:
    from torch import Tensor


class NotSplittableError(Exception):
    """The call may mix samples of the batch, so that per-sample gradients cannot be computed."""


@dataclass(eq=False)
class RecordedCall:
    """One recorded call.

    Attributes:
        function: what was called.
        args: its positional arguments; activations are detached, operands are the tensors themselves.
        kwargs: its keyword arguments, in the same form.
        operands: the arguments that are parameters to be scored, or computed from one.
        samples: number of samples in the batch.
        rows: extent of dimension 0 of the output, a multiple of ``samples``.
        versions: versions of the activations, to detect that one was overwritten later.
        output_print: fingerprint of the output.
        scaled_print: fingerprint of the output's gradient when the loss of each sample is scaled by its own factor.
        gradient: the output's gradient.
        waiting: number of operands that are not processed yet.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[Tensor, ...]
    samples: int
    rows: int
    versions: list[tuple[Tensor, int]]
    output_print: Tensor
    scaled_print: Tensor | None = None
    gradient: Tensor | None = None
    waiting: int = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = len(self.operands)

    def piece(self, tensor: Tensor, sample: int) -> Tensor:
        """The rows of one sample."""
        count = self.rows // self.samples
        return tensor.narrow(0, sample * count, count)

    def belongs_to_samples(self, factors: Tensor) -> bool:
        """Whether every sample's part of the output gradient depends on the loss of that sample only.

        Args:
            factors: ``[samples]``, the powers of two that scaled the losses for ``scaled_print``.
        """
        if self.scaled_print is None or self.gradient is None:
            return False
        plain = fingerprint(self.gradient).reshape(self.samples, -1)
        expected = plain * factors.to(plain)[:, None]
        error = (self.scaled_print.reshape(self.samples, -1) - expected).abs().amax(dim=1)
        tolerance = min(roundings(REORDERED_ROUNDINGS, self.gradient.dtype), 2**-6)
        return bool((error <= tolerance * expected.abs().amax(dim=1)).all())

    def done_with_one(self) -> None:
        """Free the activations when every operand has been processed."""
        self.waiting -= 1
        if self.waiting <= 0:
            self.args, self.kwargs, self.versions, self.gradient = (), {}, [], None


def sample_gradient(
    call: RecordedCall, operand: Tensor, root: Tensor, sample: int, total: Tensor | None
) -> Tensor | None:
    """Add the gradient of one sample through one call to ``total``.

    Args:
        call: its ``gradient`` is set.
        operand: the argument of the call.
        root: the parameter that ``operand`` is, or was computed from.
        sample: index in the batch.
        total: of ``root``'s shape, overwritten; None for zero.

    Returns:
        The sum; None for zero.

    Raises:
        NotSplittableError: when the call on one sample's input does not give that sample's output.
    """
    if any(tensor._version != version for tensor, version in call.versions):
        raise NotSplittableError
    if operand is root:
        direct = DIRECT.get(call.function)
        if direct is not None and direct.applies(call, operand):
            return direct.add(call, operand, sample, total)
        part = _replayed(call, operand, sample)
    else:
        part = _replayed(call, operand, sample)
        if part is not None:
            (part,) = torch.autograd.grad(operand, root, part, retain_graph=True)
    if part is None or total is None:
        return total if part is None else part
    return total.add_(part)


def _replayed(call: RecordedCall, operand: Tensor, sample: int) -> Tensor | None:
    """The gradient of any call: repeat it for one sample, with only ``operand`` requiring a gradient."""
    assert call.gradient is not None
    alias = operand.detach().requires_grad_()

    def argument(value: Any) -> Any:
        if value is operand:
            return alias
        if not isinstance(value, torch.Tensor):
            return value
        is_batched = not any(value is other for other in call.operands) and is_activation(value, call.rows)
        return (call.piece(value, sample) if is_batched else value).detach()

    with torch.enable_grad():
        try:
            output = call.function(*map(argument, call.args), **{k: argument(v) for k, v in call.kwargs.items()})
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # shapes that fit the whole batch only
            raise NotSplittableError from error
    _check_output(call, output, sample)
    if not output.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(output, alias, call.piece(call.gradient, sample), allow_unused=True)
    return gradient


def _check_output(call: RecordedCall, output: Any, sample: int) -> None:
    expected = call.piece(call.output_print, sample)
    found = fingerprint(output)
    tolerance = half_the_digits(output.dtype) * float(expected.abs().amax())
    if found.shape != expected.shape or not bool(((found - expected).abs() <= tolerance).all()):
        raise NotSplittableError


def fingerprint(tensor: Tensor) -> Tensor:
    """One float64 number for every vector along the last dimension: its dot product with a fixed random vector.

    Equal numbers mean equal vectors, with very high probability; a scaled vector has the scaled number.
    """
    tensor = tensor.detach()
    if tensor.dim() < 2:
        return tensor.double()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(tensor.shape[-1], generator=generator, dtype=torch.float32)
    return (tensor @ direction.to(tensor)).double()


def is_activation(tensor: Tensor, rows: int) -> bool:
    """Whether an argument has the batch in dimension 0, for a call whose output has ``rows`` rows."""
    return not isinstance(tensor, torch.nn.Parameter) and tensor.dim() > 0 and tensor.shape[0] == rows


def tensors_of(args: Iterable[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that are tensors; tensors inside lists are ignored."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


class _Linear:
    """``F.linear``: needs no second forward, and adds up several calls in place."""

    @staticmethod
    def applies(call: RecordedCall, weight: Tensor) -> bool:
        return len(call.args) > 1 and weight is call.args[1] and weight is not call.args[0]

    @staticmethod
    def add(call: RecordedCall, weight: Tensor, sample: int, total: Tensor | None) -> Tensor:
        assert call.gradient is not None
        inputs = call.piece(call.args[0], sample).reshape(-1, weight.shape[1])
        outputs = call.piece(call.gradient, sample).reshape(-1, weight.shape[0])
        return outputs.T @ inputs if total is None else total.addmm_(outputs.T, inputs)


class _Embedding:
    """``F.embedding``: adds rows in place, so that a table shared with the output layer needs no second copy."""

    OPTIONS = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")

    @classmethod
    def options(cls, call: RecordedCall) -> dict[str, Any]:
        return dict(zip(cls.OPTIONS, call.args[2:], strict=False)) | call.kwargs

    @classmethod
    def applies(cls, call: RecordedCall, weight: Tensor) -> bool:
        options = cls.options(call)
        unusual = any(options.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse"))
        return len(call.args) > 1 and weight is call.args[1] and not unusual

    @classmethod
    def add(cls, call: RecordedCall, weight: Tensor, sample: int, total: Tensor | None) -> Tensor:
        assert call.gradient is not None
        tokens = call.piece(call.args[0], sample).reshape(-1)
        outputs = call.piece(call.gradient, sample).reshape(-1, weight.shape[1])
        padding = cls.options(call).get("padding_idx")
        if padding is not None:
            counted = tokens != padding % weight.shape[0]
            tokens, outputs = tokens[counted], outputs[counted]
        total = torch.zeros_like(weight) if total is None else total
        return total.index_add_(0, tokens, outputs)


DIRECT: dict[Callable[..., Any], type[_Linear] | type[_Embedding]] = {F.linear: _Linear, F.embedding: _Embedding}
"""Calls with an explicit gradient formula. All other calls are repeated."""
