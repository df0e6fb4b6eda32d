"""What takes gradients as reverse streaming computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


class GradientReceiver:
    """Takes gradients as they are computed; the base does nothing with them.

    One batch after the other goes through a block before the next block has its turn. Where no gradients of parameters
    are wanted, batches may go all the way one after the other: all that is numbered by batch begins at 0 each time.
    """

    def around(self, batch: int) -> AbstractContextManager[Any]:
        """A context for code that runs with a graph: a block that runs again, and what is between blocks."""
        del batch
        return nullcontext()

    def activations(self) -> Sequence[Tensor]:
        """The tensors with a graph, seen since the last call, whose gradients are wanted."""
        return ()

    def activation_gradients(self, batch: int, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of these tensors; None where the loss does not depend on one."""

    def parameter(self, batch: int, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Take the gradient of a parameter, which is freed afterwards; the parameter's values are in memory."""

    def finished(self, names: Iterable[str]) -> None:
        """Called when no further gradient of these parameters will come from any batch."""

    def restart(self) -> None:
        """Forget everything: a block turned out to pass on more than its outputs, and all begins again."""
