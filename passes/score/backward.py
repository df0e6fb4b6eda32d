"""Backward passes for scores: the gradients of wanted parameters, one at a time, in a model that is then as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import FxpruneError
from .position_scores import Slab, as_contributions, position_sums, require_finite
from .units import Contributions, Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

NOT_FINITE = "compute the scores in float32, and check the calibration text"


@dataclass
class Scoring:
    """One computation of contributions, and its backward passes.

    Attributes:
        model: in eval mode; parameters require gradients during a backward pass only.
        tokens: ``[N, L]``.
        wanted: what to score.
        parameters: the parameters to score, by name.
        reached: names of those that received a gradient.
    """

    model: Module
    tokens: Tensor
    wanted: Wanted
    parameters: dict[str, Parameter]
    reached: set[str] = field(default_factory=set)

    def forward(self, samples: slice) -> Any:
        """The model's output for some samples; checks that its loss is finite.

        Raises:
            FxpruneError: for a loss that is missing or not finite.
        """
        batch = self.tokens[samples].to(next(iter(self.parameters.values())).device)
        output = self.model(input_ids=batch, labels=batch, use_cache=False)
        loss = getattr(output, "loss", None)
        if loss is None:
            raise FxpruneError(
                f"{type(self.model).__name__} returned no loss for labels", "give a causal language model"
            )
        if not bool(loss.isfinite()):
            raise FxpruneError(f"the loss on {self.name_of(samples)} is {loss.item()}", NOT_FINITE)
        return output

    def backward(self, samples: slice, names: list[str], receive: Callable[[str, Tensor], None]) -> None:
        """Compute the gradients of the mean loss over ``samples``; pass each to ``receive`` with its parameter name.

        A gradient is freed when ``receive`` returns, so that only one is in memory; two for a parameter that several
        modules share. ``receive`` is not called for a parameter that the loss does not depend on.
        """
        held: dict[str, Tensor] = {}
        with _untied(self.model, {name: self.parameters[name] for name in names}) as leaves:
            awaited = {name: len(shared) for name, shared in leaves.items()}

            def collect(name: str, gradient: Tensor) -> None:
                if name in held:
                    gradient = held.pop(name).add_(gradient)
                awaited[name] -= 1
                if awaited[name]:
                    held[name] = gradient
                else:
                    receive(name, gradient)

            with self.gradients(leaves, collect):
                loss = self.forward(samples).loss
                if loss.requires_grad:
                    loss.backward()
        while held:  # one of the modules was not called
            receive(*held.popitem())

    @contextmanager
    def gradients(
        self, leaves: Mapping[str, Sequence[Parameter]], receive: Callable[[str, Tensor], None]
    ) -> Iterator[None]:
        """Inside, these tensors require gradients; a backward pass gives each gradient to ``receive`` and frees it."""

        def hook_of(name: str) -> Callable[[Tensor], None]:
            def hook(leaf: Tensor) -> None:
                self.reached.add(name)
                receive(name, _taken(leaf))  # keep no reference here, so that the receiver can free it

            return hook

        handles = []
        try:
            for name, shared in leaves.items():
                for leaf in shared:
                    leaf.requires_grad_(True)
                    handle = leaf.register_post_accumulate_grad_hook(hook_of(name))
                    handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()
            for shared in leaves.values():
                for leaf in shared:
                    leaf.requires_grad_(False)
                    leaf.grad = None

    def reduce(self, name: str, saliency: Callable[[Slab], Tensor], samples: slice) -> dict[int, Tensor]:
        """Sum a saliency of one parameter over all dimensions but one, for each dimension to score.

        Raises:
            FxpruneError: for a saliency that is not finite, with parameter and samples.
        """
        sums = position_sums(self.parameters[name], self.wanted[name], saliency)
        require_finite(sums, f"the gradient of {name!r} on {self.name_of(samples)} is not finite", NOT_FINITE)
        return sums

    def name_of(self, samples: slice) -> str:
        """The name of these samples in messages."""
        first, end, _ = samples.indices(len(self.tokens))
        if end - first == len(self.tokens):
            return f"the calibration batch of {end}"
        return f"calibration sample {first} of {len(self.tokens)}"

    def unreached_are_zero(self, contributions: Contributions) -> Contributions:
        """Add zeros for the parameters that the loss does not depend on."""
        for name, parameter in self.parameters.items():
            if name not in self.reached:
                sums = {dim: torch.zeros(parameter.shape[dim], dtype=torch.float64) for dim in self.wanted[name]}
                contributions.update(as_contributions(name, sums))
        return contributions


def _taken(leaf: Tensor) -> Tensor:
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    return gradient


@contextmanager
def _untied(model: Module, parameters: Mapping[str, Parameter]) -> Iterator[dict[str, list[Parameter]]]:
    """Inside, every module that shares a parameter has its own tensor over the same memory.

    For a shared parameter, autograd would add the gradients in a third copy; with separate tensors this module adds
    them in place.

    Yields:
        parameter name -> its separate tensors.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    leaves: dict[str, list[Parameter]] = {name: [] for name in parameters}
    replaced: list[tuple[Module, str, Parameter]] = []
    try:
        for module in model.modules():
            for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                name = names.get(id(parameter))
                if name is None:
                    continue
                leaf = parameter
                if leaves[name]:
                    leaf = torch.nn.Parameter(parameter.detach(), requires_grad=False)
                    replaced.append((module, attribute, parameter))
                    setattr(module, attribute, leaf)
                leaves[name].append(leaf)
        yield leaves
    finally:
        for module, attribute, parameter in replaced:
            setattr(module, attribute, parameter)


@contextmanager
def as_it_was(model: Module) -> Iterator[None]:
    """Eval mode inside; afterwards every mode, flag and gradient is restored."""
    modes = [(module, module.training) for module in model.modules()]
    states = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in states:
            parameter.grad = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag, gradient in states:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
