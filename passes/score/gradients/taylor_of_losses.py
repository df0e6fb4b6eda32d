"""Taylor contributions from losses given by the caller, for modules that are not language models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ....ir.errors import FxpruneError, RequestError
from ....runtime.ranks import ALONE, Ranks
from ....runtime.streaming.block_runner import BlockRunner
from ....runtime.streaming.reverse import Loss
from ..units import Contributions, Wanted
from .taylor_terms import contributions_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

ModuleLoss = Callable[["Module"], "Tensor"]
"""Takes a module and returns its loss, a scalar, on data that the callable holds."""


def taylor_of_losses(
    runner: BlockRunner, losses: Sequence[ModuleLoss], wanted: Wanted, variant: str, ranks: Ranks = ALONE
) -> Contributions:
    """Contributions as in :func:`~.taylor_terms.taylor`, where each loss counts as one sample.

    Args:
        runner: its model is passed to every loss, in eval mode; afterwards modes, flags and gradients are restored.
        losses: at least one.
        wanted: what to score.
        variant: ``vector``, ``element1``, ``second`` or ``element2``.
        ranks: who shares the losses.

    Raises:
        RequestError: for an unknown variant, or a loss that is not a scalar.
        FxpruneError: for a loss or gradient that is not finite, or losses that depend on none of the parameters.
    """
    checked = [_checked(loss, number) for number, loss in enumerate(losses)]
    return contributions_of(runner, checked, wanted, variant, lambda number: f"loss {number or 0}", ranks=ranks)


def _checked(loss: ModuleLoss, number: int) -> Loss:
    def run(module: Module) -> Tensor:
        value = loss(module)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise RequestError(f"the loss is not a scalar tensor but {what}", "return the mean over the batch")
        if not bool(value.isfinite()):
            raise FxpruneError(f"loss {number} is {value.item()}", "check the loss and its data")
        if not value.requires_grad:
            raise FxpruneError(
                f"loss {number} depends on no parameter of the module",
                "the loss function must run the module that it gets, without torch.no_grad()",
            )
        return value.reshape(())

    return run
