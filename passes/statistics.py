"""What goes into the linear maps of a model and what comes out of them, call by call, and its moments.

Maps are recognised by the calls that read their weights, not by the modules that hold them: ``nn.Linear``,
transformers' ``Conv1D``, convolutions, the loop over fused expert weights and a bare ``x @ self.weight`` are all seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..ir import FxpruneError, RequestError

if TYPE_CHECKING:
    from .base import State

Feed = Callable[[nn.Module], Any]
"""Runs a module on one batch of calibration data."""


@dataclass(frozen=True)
class Seen:
    """One call of a linear map.

    Attributes:
        tensor: name of the weight.
        expert: index in the weight's first dimension, where it holds a map for each; None where it is one map.
        dim: the weight's dimension that takes the inputs in.
        x: inputs ``[T, k]``; of a convolution one row for each place where it was applied, ``k`` channels times
            kernel positions.
        y: outputs ``[T, n]``, bias included.
        bias: the parameter that was added, None where the call adds none.
        sample: which sample of the batch each row belongs to, int64 ``[T]``; all zero where the call does not say.
        given: the tensor that the call was given, before anything was made of it, so that a gradient can be asked for.
        channels: the dimension of ``given`` that the columns come from.
    """

    tensor: str
    expert: int | None
    dim: int
    x: Tensor
    y: Tensor
    bias: Tensor | None
    sample: Tensor
    given: Tensor
    channels: int


def calibration_feeds(state: State, who: str, *, samples: int, length: int, seed: int | None, batch: int) -> list[Feed]:
    """The calibration data of a state as batches that a model is run on: windows of text, or the losses of a module.

    Args:
        state: with text or losses.
        who: subject and verb of the error when there is neither.
        samples, length, seed: which windows.
        batch: windows in one forward pass.

    Raises:
        RequestError: without calibration text or losses, or with too little text.
    """
    if state.losses:
        return list(state.losses)
    if state.calibration is None:
        raise RequestError(
            f"{who} calibration text",
            "give --calib FILE, text the model should keep modelling; for a module in Python, give its loss",
        )
    return [_feed(window) for window in state.calibration.windows(length, samples, seed).split(batch)]


def _feed(window: Tensor) -> Feed:
    def run(model: nn.Module) -> Any:
        return model(input_ids=window.to(next(model.parameters()).device), use_cache=False)

    return run


def matrix(weight: Tensor, seen: Seen) -> Tensor:
    """The part of a weight that a call used, as a view ``[n, k]``; what is written to it is written to the weight."""
    part = weight if seen.expert is None else weight[seen.expert]
    dim = seen.dim if seen.expert is None else seen.dim - 1
    if part.dim() > 2:
        return part.flatten(1)
    return part if dim == 1 else part.T


@dataclass(frozen=True)
class _Part:
    """A weight, or what was made of it before a call: one expert's, transposed."""

    tensor: Tensor
    name: str
    expert: int | None = None
    flipped: bool = False


class Watch(TorchFunctionMode):
    """Inside, calls that read one of some weights are kept in ``seen``.

    Args:
        weights: by name.
        mask: gives bool ``[B, L]``, False for padding, which is left out; None when there is none.
        shapes_only: keep calls without their inputs and outputs.
        receive: takes each call, which is then not kept in ``seen``.

    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        mask: Callable[[], Tensor | None] = lambda: None,
        *,
        shapes_only: bool = False,
        receive: Callable[[Seen], None] | None = None,
    ) -> None:
        super().__init__()
        self._shapes_only = shapes_only
        self.seen: list[Seen] = []
        self._receive = receive or self.seen.append
        self._mask = mask
        self._parts = {id(weight): _Part(weight, name) for name, weight in weights.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        named = dict(kwargs or {})
        out = func(*args, **named)
        view = _VIEWS.get(func)
        if view is not None and isinstance(out, Tensor) and (part := self._parts.get(id(args[0]))) is not None:
            found = view(part, out, args[1:], named)
            if found is not None and out is not part.tensor:
                self._parts[id(out)] = found
        elif (reader := _READERS.get(func)) is not None:
            self._keep(reader(_bound(func, args, named)), out)
        return out

    def _keep(self, call: _Read | None, out: Tensor) -> None:
        part = None if call is None else self._parts.get(id(call.weight))
        if call is None or part is None:
            return
        dims = call.weight.dim()
        across = dims - 1 if call.rows else dims - 2
        if dims > 2 and call.conv:
            across = 1
        elif part.flipped:
            across = 2 * dims - 3 - across
        dim = across if part.expert is None else across + 1
        if dims == 3 and not call.conv:
            for expert, (x, y) in enumerate(zip(call.x, out, strict=True)):
                self._receive(Seen(part.name, expert, dim, x, y, None, _samples(x[:, None]), call.given, -1))
            return
        rows = (call.x.flatten(0, -2), (out.movedim(1, -1) if call.conv else out).flatten(0, -2), _samples(call.x))
        kept = slice(0) if self._shapes_only else self._unpadded(len(rows[0]), call.conv, part, call.x.device)
        x, y, sample = (values[kept] for values in rows)
        channels = 1 if call.conv else -1
        self._receive(Seen(part.name, part.expert, dim, x, y, call.bias, sample, call.given, channels))

    def _unpadded(self, rows: int, conv: bool, part: _Part, device: torch.device) -> slice | Tensor:
        """Which rows of a call are no padding."""
        mask = self._mask()
        if mask is None or conv or bool(mask.all()):
            return slice(None)
        if mask.numel() != rows:
            raise FxpruneError(
                f"{part.name} reads {rows} vectors of a batch of {mask.numel()} tokens: which are padding is unknown",
                "calibrate on windows of equal length, without padding",
            )
        return mask.flatten().to(device)


def _samples(x: Tensor) -> Tensor:
    """For every row of inputs ``[B, ..., k]`` its sample; one sample where there is no such dimension."""
    if x.dim() < 3:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return torch.arange(len(x), device=x.device).repeat_interleave(x[0, ..., 0].numel())


@dataclass(frozen=True)
class _Read:
    """Arguments of a call that may be a linear map: inputs ``[..., k]``, and whether the weight is ``[..., n, k]``."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    rows: bool = True
    conv: bool = False
    raw: Tensor | None = None

    @property
    def given(self) -> Tensor:
        """The inputs as they were passed."""
        return self.x if self.raw is None else self.raw


def _bound(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(_NAMES[func], args, strict=False)) | dict(kwargs)


def _linear(call: Mapping[str, Any]) -> _Read:
    return _Read(call["input"], call["weight"], call.get("bias"))


def _addmm(call: Mapping[str, Any]) -> _Read | None:
    if call.get("alpha", 1) != 1 or call.get("beta", 1) != 1:
        return None
    return _Read(call["mat1"], call["mat2"], call["input"], rows=False)


def _matmul(call: Mapping[str, Any]) -> _Read | None:
    x, weight = call["input"], call["other"]
    fits = isinstance(weight, Tensor) and weight.dim() in (2, 3) and x.dim() > 1
    return _Read(x, weight, rows=False) if fits and (weight.dim() == 2 or x.dim() == 3) else None


def _convolution(call: Mapping[str, Any]) -> _Read | None:
    if call.get("groups", 1) != 1:
        return None
    x, weight = call["input"], call["weight"]
    ahead = 2 if x.dim() == weight.dim() else 1
    if ahead == 1:
        return None
    return _Read(_patches(x, weight, call), weight, call.get("bias"), conv=True, raw=x)


def _patches(x: Tensor, weight: Tensor, call: Mapping[str, Any]) -> Tensor:
    """What a convolution multiplies with its weight: ``[B, *places, channels * kernel]``."""
    sizes = weight.shape[2:]
    each = {name: _per_axis(call.get(name, default), len(sizes)) for name, default in _CONV_DEFAULTS.items()}
    spans = [d * (size - 1) for d, size in zip(each["dilation"], sizes, strict=True)]
    margins: list[int] = []
    for span, padding in zip(reversed(spans), reversed(each["padding"]), strict=True):
        low = {"valid": 0, "same": span // 2}.get(padding, padding)
        margins += [low, span - low if padding == "same" else low]
    x = F.pad(x, margins)
    for axis, (span, stride, dilation) in enumerate(zip(spans, each["stride"], each["dilation"], strict=True), start=2):
        x = x.unfold(axis, span + 1, stride)[..., ::dilation]
    return x.movedim(1, 1 + len(sizes)).flatten(1 + len(sizes))


def _per_axis(value: Any, axes: int) -> list[Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * axes if len(values) == 1 else values


_CONV_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NAMES: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    torch.addmm: ("input", "mat1", "mat2"),
    torch.Tensor.addmm: ("input", "mat1", "mat2"),
    **{f: ("input", "other") for f in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)},
    **{f: ("input", "other") for f in (torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm)},
    **{f: _CONV_NAMES for f in (F.conv1d, F.conv2d, F.conv3d)},
}
_READERS: dict[Any, Callable[[Mapping[str, Any]], _Read | None]] = {
    f: _linear if f is F.linear else _convolution if names is _CONV_NAMES else _addmm if len(names) == 3 else _matmul
    for f, names in _NAMES.items()
}
"""The calls that are linear maps of their first argument."""


def _selected(part: _Part, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Part | None:
    del kwargs
    index = args[0]
    single = isinstance(index, int) or (
        isinstance(index, Tensor) and index.dim() == 0 and not index.is_floating_point()
    )
    single = single and not isinstance(index, bool)
    whole = part.expert is None and part.tensor.dim() == 3
    return _Part(out, part.name, int(index), part.flipped) if single and whole else None


def _turned(part: _Part, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Part | None:
    dims = sorted(d % out.dim() for d in (*args, *kwargs.values()))
    last_two = dims in ([], [out.dim() - 2, out.dim() - 1]) and (dims or out.dim() == 2)
    return _Part(out, part.name, part.expert, not part.flipped) if last_two else None


def _same(part: _Part, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Part:
    del args, kwargs
    return _Part(out, part.name, part.expert, part.flipped)


_VIEWS: dict[Any, Callable[[_Part, Tensor, tuple[Any, ...], Mapping[str, Any]], _Part | None]] = {
    torch.Tensor.__getitem__: _selected,
    **{f: _turned for f in (torch.Tensor.t, torch.t, torch.Tensor.T.__get__, torch.Tensor.mT.__get__)},  # type: ignore[attr-defined]
    **{f: _turned for f in (torch.Tensor.transpose, torch.transpose)},
    **{f: _same for f in (torch.Tensor.to, torch.Tensor.float, torch.Tensor.contiguous)},
}
"""What may be done to a weight on its way to the call that reads it."""


@contextmanager
def padding_mask(model: nn.Module) -> Iterator[Callable[[], Tensor | None]]:
    """Inside, asks for the padding mask that the model was last called with: bool ``[B, L]``, or None."""
    found: list[Tensor | None] = [None]

    def hook(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        found[0] = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield lambda: found[0]
    finally:
        handle.remove()


@contextmanager
def experts_one_by_one(*models: nn.Module) -> Iterator[None]:
    """Inside, transformers' mixtures of experts loop over their experts, so that each one's calls can be told apart."""
    before = []
    for model in models:
        change: Any = getattr(model, "set_experts_implementation", None)
        if change is not None and getattr(model, "_can_set_experts_implementation", lambda: False)():
            before.append((change, model.config._experts_implementation))  # type: ignore[union-attr]
            change("eager")
    try:
        yield
    finally:
        for change, implementation in before:
            change(implementation)


@dataclass
class Spread:
    """Means and variances of the inputs of a map, column by column, merged batch by batch (Chan, Golub, LeVeque 1979).

    Attributes:
        count: tokens seen.
        mean: ``[k]`` float64.
        squares: sum of squared deviations from the mean, ``[k]`` float64.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """Add tokens ``[T, k]``."""
        if not len(x):
            return
        x = x.double()
        mean = x.mean(0)
        squares = (x - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self.squares = len(x), mean, squares
            return
        total = self.count + len(x)
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * len(x) / total)
        self.mean = self.mean + shift * (len(x) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Of each column, ``[k]``."""
        return self.squares / self.count

    @property
    def second(self) -> Tensor:
        """Mean square of each column, ``[k]``."""
        return self.variance + self.mean.square()


__all__ = ["Feed", "Seen", "Spread", "Watch", "calibration_feeds", "experts_one_by_one", "matrix", "padding_mask"]
