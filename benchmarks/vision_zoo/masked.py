"""What a pruned network has to compute, made from the original alone: removed units are zero wherever they stand, and
what takes a mean over units takes it over those that are left.

No analysis of fxprune is used but the plan. Which units a norm still has is seen in what it is given: a position that
is zero everywhere in the masked network, and was not in the original, was removed. A norm that has a scale tells it by
that alone: a bias that mixes positions (MLP-Mixer) makes removed channels something else than zero before they are
normed, and a ReLU before a norm (the head of MetaFormer) makes zeros of channels that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fxprune.ir.plan import Plan
from fxprune.runtime.tensors import own_copy, tensors_by_name


def zeroed(dense: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a module with every removed unit set to zero."""
    copied = own_copy(dense)
    tensors = tensors_by_name(copied)
    with torch.no_grad():
        for (name, dim), kept in plan.slices.items():
            gone = np.setdiff1d(np.arange(tensors[name].shape[dim]), kept)
            tensors[name].index_fill_(dim, torch.from_numpy(gone), 0)
    return copied


class KeptUnits(TorchFunctionMode):
    """Norms, means and softmax of a masked network, over the units that are left.

    Args:
        dense: which positions were zero at every call in the original, from a run of it; None to find these.
    """

    def __init__(self, dense: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.dense, self.seen = dense, list[Tensor]()
        self.crossed = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        change = _OVER_UNITS.get(name)
        found = change(self, func, args, kwargs) if change is not None and isinstance(args[0], Tensor) else None
        return func(*args, **kwargs) if found is None else found

    def gone(self, zero: Tensor) -> Tensor | None:
        """Which positions were removed, of those that are zero now; None in the original, and when none was."""
        self.seen.append(zero)
        if self.dense is None:
            return None
        removed = zero & ~self.dense[len(self.seen) - 1]
        if not removed.any():
            return None
        self.crossed += 1
        return removed


def reference(dense: nn.Module, masked: nn.Module, call: Callable[[nn.Module], Any]) -> tuple[Any, int]:
    """The output of the masked network, and how many norms, means or softmax took fewer units than in the original."""
    with torch.no_grad(), KeptUnits() as before:
        call(dense)
    with torch.no_grad(), KeptUnits(before.seen) as after:
        output = call(masked)
    return output, after.crossed


def _zero_along(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Which positions of some dimensions are zero, whatever the others: ``x`` with extent 1 in the others."""
    others = [dim for dim in range(x.dim()) if dim not in {d % x.dim() for d in dims}]
    return (x == 0).all(others, keepdim=True) if others else x == 0  # type: ignore[call-overload, no-any-return]


def _zero_in_norm(x: Tensor, dims: Sequence[int], weight: Tensor | None) -> Tensor:
    """Which positions of a norm are zero: by its scale, or in what it is given where it has none."""
    return _zero_along(x, dims) if weight is None else weight == 0


def _standardised(x: Tensor, kept: Tensor, dims: Sequence[int], eps: float, centred: bool = True) -> Tensor:
    count = kept.expand_as(x).sum(dims, keepdim=True)
    mean = (x * kept).sum(dims, keepdim=True) / count if centred else 0.0
    variance = ((x - mean).square() * kept).sum(dims, keepdim=True) / count
    return (x - mean) * (variance + eps).rsqrt() * kept


def _scaled(x: Tensor, kept: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else (x + bias) * kept


def _layer_norm(mode: KeptUnits, _: Any, args: Any, kwargs: Any) -> Tensor | None:
    def of(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor | None:
        dims = list(range(-len(shape), 0))
        gone = mode.gone(_zero_in_norm(x, dims, weight))
        return None if gone is None else _scaled(_standardised(x, ~gone, dims, eps), ~gone, weight, bias)

    return of(*args, **{{"input": "x", "normalized_shape": "shape"}.get(k, k): v for k, v in kwargs.items()})


def _rms_norm(mode: KeptUnits, _: Any, args: Any, kwargs: Any) -> Tensor | None:
    def of(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor | None:
        dims = list(range(-len(shape), 0))
        gone = mode.gone(_zero_in_norm(x, dims, weight))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return None if gone is None else _scaled(_standardised(x, ~gone, dims, eps, centred=False), ~gone, weight, None)

    return of(*args, **{{"input": "x", "normalized_shape": "shape"}.get(k, k): v for k, v in kwargs.items()})


def _group_norm(mode: KeptUnits, _: Any, args: Any, kwargs: Any) -> Tensor | None:
    def of(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor | None:
        shape = (1, x.shape[1], *[1] * (x.dim() - 2))
        gone = mode.gone(_zero_in_norm(x, [1], None if weight is None else weight.reshape(shape)))
        if gone is None:
            return None
        split = [one.reshape(one.shape[0], groups, -1, *one.shape[2:]) for one in (x, ~gone)]
        kept = split[1] if bool(split[1].any(2).all()) else split[1] | ~split[1].any(2, keepdim=True)
        y = _standardised(split[0], kept, list(range(2, split[0].dim())), eps).reshape(x.shape)
        weight, bias = (one if one is None else one.reshape(shape) for one in (weight, bias))
        return _scaled(y, ~gone, weight, bias)

    return of(*args, **{{"input": "x", "num_groups": "groups"}.get(k, k): v for k, v in kwargs.items()})


def _batch_norm(mode: KeptUnits, _: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Of weights that are standardised: a batch of one, whose channels are the rows of a matrix."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {"eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
    x = given["input"]
    gone = mode.gone(x == 0) if given.get("training") else None
    if gone is None:
        return None
    dims = [dim for dim in range(x.dim()) if dim != 1]
    kept = ~gone | gone.all(dims, keepdim=True)  # type: ignore[call-overload]  # rows that are gone stay zero
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale, shift = (None if one is None else one.reshape(shape) for one in (given.get("weight"), given.get("bias")))
    return _scaled(_standardised(x, kept, dims, given["eps"]), kept, scale, shift)


def _reduced(mode: KeptUnits, func: Any, args: Any, kwargs: Any) -> Any:
    """A mean, a variance or both over some dimensions; a mean over all."""
    x, *rest = args
    dim = rest[0] if rest and not isinstance(rest[0], bool) else kwargs.get("dim")
    if dim is None:
        gone = mode.gone(x == 0) if func.__name__ == "mean" else None
        return None if gone is None else x.sum() / (~gone).sum()
    dims = [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]
    gone = mode.gone(_zero_along(x, dims))
    if gone is None:
        return None
    rows = x.movedim(dims, list(range(-len(dims), 0))).flatten(-len(dims))
    left = (~gone).movedim(dims, list(range(-len(dims), 0))).flatten()
    kept = func(rows[..., left], **{**kwargs, "dim": -1, "keepdim": False})
    if kwargs.get("keepdim") or (len(rest) > 1 and rest[1] is True):
        shape = [1 if d in dims else n for d, n in enumerate(x.shape)]
        kept = kept.reshape(shape) if isinstance(kept, Tensor) else tuple(one.reshape(shape) for one in kept)
    return kept


def _softmax(mode: KeptUnits, _: Any, args: Any, kwargs: Any) -> Tensor | None:
    x = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    gone = mode.gone(_zero_along(x, [dim]))
    return None if gone is None else x.masked_fill(gone, float("-inf")).softmax(dim)


_OVER_UNITS: dict[str, Callable[[KeptUnits, Any, Any, Any], Any]] = {
    F.layer_norm.__name__: _layer_norm, F.rms_norm.__name__: _rms_norm, F.group_norm.__name__: _group_norm,
    F.batch_norm.__name__: _batch_norm, "mean": _reduced, "var": _reduced, "std": _reduced, "var_mean": _reduced,
    "std_mean": _reduced, "softmax": _softmax,
}  # fmt: skip
