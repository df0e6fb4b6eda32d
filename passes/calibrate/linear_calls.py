"""Records the calls of a model's linear maps.

Linear maps are recognised by the calls that use their weights, not by module types. So ``nn.Linear``, transformers'
``Conv1D``, convolutions, the loop over fused expert weights, and a plain ``x @ self.weight`` are all recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ...ir import FxpruneError
from ...ir.rules import Contraction, rule_table
from .batches import LinearCall


@dataclass(frozen=True)
class _WeightPart:
    """A weight, or a tensor derived from it before a call: one expert's part, or the transpose."""

    tensor: Tensor
    name: str
    expert: int | None = None
    flipped: bool = False


@dataclass(frozen=True)
class _RecordedOutput:
    """The output of a call, the recorded call, its rows without padding, and the time of the call."""

    tensor: Tensor
    call: LinearCall
    rows: slice | Tensor
    time: int


class LinearCallRecorder(TorchFunctionMode):
    """Inside, linear calls on the given weights are recorded in ``calls``.

    Args:
        weights: weights by name.
        mask: returns bool ``[B, L]``, False for padding, which is left out; or None without padding.
        shapes_only: record calls without their inputs and outputs.
        receive: takes each call; then ``calls`` stays empty.

    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        mask: Callable[[], Tensor | None] = lambda: None,
        *,
        shapes_only: bool = False,
        receive: Callable[[LinearCall], None] | None = None,
    ) -> None:
        super().__init__()
        self._shapes_only = shapes_only
        self.calls: list[LinearCall] = []
        self._receive = receive or self.calls.append
        self._mask = mask
        self._follows = not shapes_only and receive is None
        # Outputs that may be added later: kept alive, so that their id() is not reused.
        self._outputs: dict[int, _RecordedOutput] = {}
        # Creation time of each tensor, to tell tensors made from outputs from those that existed before.
        self._made: Any = WeakIdKeyDictionary()
        self._clock = 0
        self._weights = {id(weight): _WeightPart(weight, name) for name, weight in weights.items()}
        self._parts = dict(self._weights)

    def __exit__(self, *error: Any) -> None:
        """Forget what was derived from the weights, which would keep their memory."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._parts = dict(self._weights)

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
        elif (said := RECORDED.get(func)) is not None:
            self._keep(_read(said, args, named), out)
        elif self._outputs:
            self._follow(func, args, out)
        if self._follows:
            self._clock += 1
            for made in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(made, Tensor):
                    self._made.setdefault(made, self._clock)
        return out

    def _follow(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Follow outputs through reshapes and dropout; record what they are added to.

        That tensor must exist before the output: an output plus a function of itself is not the residual stream.
        """
        known = [(at, found) for at, arg in enumerate(args[:2]) if (found := self._outputs.get(id(arg))) is not None]
        if func in _ADDITIONS and len(args) == 2:
            for at, found in known:
                other = args[1 - at]
                before = isinstance(other, Tensor) and self._made.get(other, 0) < found.time
                if found.call.beside is None and before and other.shape == args[at].shape:
                    found.call.beside = other.flatten(0, -2)[found.rows].clone()
        elif func in _PASSES_ON and known and isinstance(out, Tensor):
            found = known[0][1]
            if out.shape[-1] == found.call.y.shape[1] and out.numel() == args[0].numel():
                self._outputs[id(out)] = _RecordedOutput(out, found.call, found.rows, found.time)

    def _keep(self, call: _MapArguments | None, out: Tensor) -> None:
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
                self._receive(LinearCall(part.name, expert, dim, x, y, None, _samples(x[:, None]), call.given, -1, out))
            return
        rows = (call.x.flatten(0, -2), (out.movedim(1, -1) if call.conv else out).flatten(0, -2), _samples(call.x))
        kept = slice(0) if self._shapes_only else self._unpadded(len(rows[0]), call.conv, part, call.x.device)
        x, y, sample = (values[kept] for values in rows)
        made = LinearCall(part.name, part.expert, dim, x, y, call.bias, sample, call.given, 1 if call.conv else -1, out)
        self._receive(made)
        if self._follows and not call.conv and part.expert is None:
            self._outputs[id(out)] = _RecordedOutput(out, made, kept, self._clock + 1)

    def _unpadded(self, rows: int, conv: bool, part: _WeightPart, device: torch.device) -> slice | Tensor:
        """The rows of a call that are not padding."""
        mask = self._mask()
        if mask is None or conv or bool(mask.all()):
            return slice(None)
        if mask.numel() != rows:
            raise FxpruneError(
                f"{part.name} reads {rows} vectors of a batch of {mask.numel()} tokens: padding is unknown",
                "calibrate on windows of equal length, without padding",
            )
        return mask.flatten().to(device)


def _samples(x: Tensor) -> Tensor:
    """The sample of every row of inputs ``[B, ..., k]``; all zero without a batch dimension."""
    if x.dim() < 3:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return torch.arange(len(x), device=x.device).repeat_interleave(x[0, ..., 0].numel())


@dataclass(frozen=True)
class _MapArguments:
    """Arguments of a possible linear call: inputs ``[..., k]``; ``rows``: whether the weight is ``[..., n, k]``."""

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


def _read(said: Contraction, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _MapArguments | None:
    """A call as the linear map that its rule says it is; None where it is none after all."""
    call = dict(zip(said.arguments, args, strict=False)) | dict(kwargs)
    if any(call.get(name, value) != value for name, value in said.plain.items()):
        return None
    x, weight, bias = (call.get(name) for name in (said.input, said.weight, said.bias))
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor):
        return None
    if said.windows:
        batched = x.dim() == weight.dim()
        return _MapArguments(_patches(x, weight, call), weight, bias, conv=True, raw=x) if batched else None
    fits = x.dim() > 1 if weight.dim() == 2 else x.dim() == weight.dim() == 3
    return _MapArguments(x, weight, bias, rows=said.summed == -1) if fits else None


def _patches(x: Tensor, weight: Tensor, call: Mapping[str, Any]) -> Tensor:
    """The windows that a convolution multiplies with its weight: ``[B, *positions, channels * kernel]``."""
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


def _spellings(packet: str) -> list[Any]:
    """Torch's own functions for an operator: as a function, as a method, as Python's operator sign, and as the operator
    itself, which graph modules call."""
    name = packet.removeprefix("aten.")
    places = (F, name), (torch, name), (torch.Tensor, name), (torch.Tensor, f"__{name}__")
    return [*(getattr(home, spelled) for home, spelled in places if hasattr(home, spelled)), *_overloads(name)]


def _overloads(name: str) -> list[Any]:
    operator = getattr(torch.ops.aten, name, None)
    return [] if operator is None else [getattr(operator, overload) for overload in operator.overloads()]


RECORDED: dict[Any, Contraction] = {
    function: rule.contracts
    for packet, rule in rule_table().items()
    if rule.contracts is not None and not rule.contracts.unrecorded
    for function in _spellings(packet)
}
"""The calls that are linear maps of one argument, and what their rules say of them."""

_ADDITIONS = frozenset({
    torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.ops.aten.add.Tensor,
})  # fmt: skip
_PASSES_ON = frozenset({
    F.dropout, torch.dropout, torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.Tensor.contiguous,
    *(operator for name in ("view", "reshape", "_unsafe_view") for operator in _overloads(name)),
})  # fmt: skip
"""Functions that an output may pass through before an addition."""


def _selected(part: _WeightPart, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _WeightPart | None:
    del kwargs
    index = args[0]
    single = isinstance(index, int) or (
        isinstance(index, Tensor) and index.dim() == 0 and not index.is_floating_point()
    )
    single = single and not isinstance(index, bool)
    whole = part.expert is None and part.tensor.dim() == 3
    return _WeightPart(out, part.name, int(index), part.flipped) if single and whole else None


def _turned(part: _WeightPart, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _WeightPart | None:
    """The transpose, by a function that swaps two dimensions: the last two, where none are named."""
    dims = sorted(d % out.dim() for d in (*args, *kwargs.values()))
    last_two = dims in ([], [out.dim() - 2, out.dim() - 1]) and (dims or out.dim() == 2)
    return _WeightPart(out, part.name, part.expert, not part.flipped) if last_two else None


def _last_two(part: _WeightPart, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _WeightPart:
    del args, kwargs
    return _WeightPart(out, part.name, part.expert, not part.flipped)


def _permuted(part: _WeightPart, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _WeightPart | None:
    """What ``permute`` gives, where the last two dimensions change places or none do."""
    given = args or tuple(kwargs.values())
    named = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list, torch.Size)) else given
    order, rank = [d % out.dim() for d in named], out.dim()
    if order == list(range(rank)):
        return _same(part, out, (), {})
    turned = [*range(rank - 2), rank - 1, rank - 2]
    return _WeightPart(out, part.name, part.expert, not part.flipped) if order == turned else None


def _same(part: _WeightPart, out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _WeightPart:
    del args, kwargs
    return _WeightPart(out, part.name, part.expert, part.flipped)


_VIEWS: dict[Any, Callable[[_WeightPart, Tensor, tuple[Any, ...], Mapping[str, Any]], _WeightPart | None]] = {
    torch.Tensor.__getitem__: _selected,
    **dict.fromkeys((torch.Tensor.t, torch.t, torch.Tensor.T.__get__), _turned),  # type: ignore[attr-defined]
    **dict.fromkeys((torch.Tensor.transpose, torch.transpose, torch.Tensor.swapaxes, torch.swapaxes), _turned),
    **dict.fromkeys((torch.Tensor.swapdims, torch.swapdims), _turned),
    **dict.fromkeys((torch.Tensor.permute, torch.permute), _permuted),
    torch.Tensor.mT.__get__: _last_two,  # type: ignore[attr-defined]
    **dict.fromkeys((torch.Tensor.to, torch.Tensor.float, torch.Tensor.double, torch.Tensor.type_as), _same),
    **dict.fromkeys((torch.Tensor.contiguous, torch.Tensor.clone, torch.clone), _same),
}
"""Functions that may be applied to a weight before its linear call."""
