"""Taylor contributions from losses given by the caller, for modules that are not language models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ...ir.errors import FxpruneError, RequestError
from .backward import as_it_was
from .position_scores import Slab, as_contributions, position_sums, require_finite, wanted_parameters
from .taylor_terms import TAYLOR_TERMS
from .units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

ModuleLoss = Callable[["Module"], "Tensor"]
"""Takes a module and returns its loss, a scalar, on data that the callable holds."""


def taylor_of_losses(model: Module, losses: Sequence[ModuleLoss], wanted: Wanted, variant: str) -> Contributions:
    """Contributions as in :func:`~.gradients.taylor`, where each loss counts as one sample.

    ``W`` is a weight, ``g`` its gradient of the mean of all losses, ``G2`` the mean of the squared gradients of each
    loss. The gradients of all parameters to score are in memory at once, and their squares if the variant needs them.

    Args:
        model: passed to every loss, in eval mode; afterwards modes, flags and gradients are restored.
        losses: at least one.
        wanted: what to score.
        variant: ``vector``, ``element1``, ``second`` or ``element2``.

    Raises:
        RequestError: for an unknown variant, or a loss that is not a scalar.
        FxpruneError: for a loss or gradient that is not finite, or losses that depend on none of the parameters.
    """
    if variant not in TAYLOR_TERMS:
        raise RequestError(f"unknown Taylor variant {variant!r}", f"use one of {', '.join(TAYLOR_TERMS)}")
    parameters = wanted_parameters(model, wanted)
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    with as_it_was(model), torch.enable_grad():
        model.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for number, loss in enumerate(losses):
            found = torch.autograd.grad(_value(loss, model, number), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    _add(first, name, gradient / len(losses))
                    if variant in ("second", "element2"):
                        _add(second, name, gradient.square() / len(losses))
    if not first:
        raise FxpruneError(
            f"the loss depends on none of the {len(parameters)} parameters to score",
            "the loss function must run the module that it gets, without torch.no_grad()",
        )
    contributions: Contributions = {}
    for name, parameter in parameters.items():
        weight = parameter.detach()
        zero = torch.zeros(()).to(weight).expand(weight.shape)
        saliency = _saliency(weight, first.get(name, zero), second.get(name, zero), variant)
        sums = position_sums(weight, wanted[name], saliency)
        require_finite(sums, f"the gradient of {name!r} is not finite", "check the loss and its data")
        contributions.update(as_contributions(name, {dim: total.abs() for dim, total in sums.items()}))
    return contributions


def _value(loss: ModuleLoss, model: Module, number: int) -> Tensor:
    value = loss(model)
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


def _add(table: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    table[name] = table[name].add_(tensor) if name in table else tensor


def _saliency(weight: Tensor, first: Tensor, second: Tensor, variant: str) -> Callable[[Slab], Tensor]:
    def saliency(slab: Slab) -> Tensor:
        w, g, squared = weight[slab].double(), first[slab].double(), second[slab].double()
        if variant == "second":
            return w * squared * w
        if variant == "element2":
            return (w * g - 0.5 * w * squared * w).abs()
        return w * g if variant == "vector" else (w * g).abs()

    return saliency
