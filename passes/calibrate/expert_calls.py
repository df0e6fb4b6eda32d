"""Records what the experts of a mixture give for the tokens that a router sent them, and how each is weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import LinearCall
from .linear_calls import LinearCallRecorder


@dataclass(frozen=True)
class ExpertCall:
    """What one expert gave.

    Attributes:
        tensor: name of the last weight of the experts, a stack with one linear map per expert.
        expert: index in it.
        outputs: ``[T, n]`` of the tokens that were sent to it, with a bias and without the router's weight.
        gates: the router's weight of every token, ``[T]``; None where the outputs are not multiplied by one.
    """

    tensor: str
    expert: int
    outputs: Tensor
    gates: Tensor | None


class ExpertCallRecorder(LinearCallRecorder):
    """Inside, the calls of experts go to ``receive``.

    The outputs of an expert's last linear map are followed through casts and the addition of a bias, up to where they
    are multiplied by one number for each token: that is the router's weight. No module names are used.

    Args:
        weights: the last weight of the experts of every mixture, by name.
        mask: as in :class:`~.linear_calls.LinearCallRecorder`.
        receive: takes each call. Experts that are all run on all tokens are left out.

    """

    def __init__(
        self, weights: Mapping[str, Tensor], mask: Callable[[], Tensor | None], *, receive: Callable[[ExpertCall], None]
    ) -> None:
        super().__init__(weights, mask, receive=self._begun)
        self._take = receive
        # Outputs that are not weighted yet: kept alive, so that their id() is not reused.
        self._open: dict[int, tuple[Tensor, LinearCall]] = {}

    def __exit__(self, *error: Any) -> None:
        """Forget what was open."""
        super().__exit__(*error)
        self._open.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        if self._open:
            for at, arg in enumerate(args[:4]):
                if (known := self._open.get(id(arg))) is not None and isinstance(out, Tensor):
                    # What is no tensor is a fact of one, such as its dtype.
                    self._follow_on(func, args, at, out, known[1])
        return out

    def _begun(self, call: LinearCall) -> None:
        if call.expert is not None and call.gave.dim() == 2:
            self._open[id(call.gave)] = call.gave, call

    def _follow_on(self, func: Any, args: tuple[Any, ...], at: int, out: Tensor, call: LinearCall) -> None:
        given = args[at]
        other = args[1 - at] if at < 2 and len(args) == 2 else None
        if func in _CHANGES_OF_TYPE or (func in _BIAS_ADDITIONS and isinstance(other, Tensor) and other.dim() < 2):
            del self._open[id(given)]
            self._open[id(out)] = out, call  # which may be the same tensor
        else:
            weighs = func in _PRODUCTS and isinstance(other, Tensor) and other.shape == (len(given), 1)
            del self._open[id(given)]
            assert call.expert is not None
            self._take(
                ExpertCall(call.tensor, call.expert, given, other[:, 0] if weighs and other is not None else None)
            )


_CHANGES_OF_TYPE = frozenset({torch.Tensor.to, torch.Tensor.float, torch.Tensor.type_as, torch.Tensor.contiguous})
_BIAS_ADDITIONS = frozenset({torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__})
_PRODUCTS = frozenset({torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__})
