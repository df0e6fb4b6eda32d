"""Contributions from the squared gradients of single samples, without a copy of the gradients.

``second`` sums ``(W * g_j)**2``, which is never negative. So each sample runs alone, and its gradients are reduced one
by one. ``element2`` takes the absolute value *after* the sum over samples, so a parameter needs the gradients of all
samples before it can be reduced. So the batch runs as one, and the calls that read a parameter are recorded. When the
backward pass has computed the last of their output gradients, the gradients of the parameter are computed from them,
sample by sample (``calls.py`` has the formulas of a call).

This requires that every output gradient can be split into samples. Three checks make sure of it:

- The backward pass runs twice, first with the loss of sample ``j`` scaled by ``c_j``. A part of an output gradient
  belongs to sample ``j`` alone if and only if it is scaled by ``c_j``.
- A call on one sample's part of its input must give that sample's part of its output.
- A parameter that was also used in another way receives an ordinary gradient, which a hook detects.

Parameters that fail a check (a position table, looked up once for all samples) run sample by sample afterwards, as many
at a time as fit in the memory of one gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...runtime.tolerances import LOSS_ROUNDINGS, roundings
from .position_scores import as_contributions, slabs_of
from .sample_gradients import NotSplittableError, RecordedCall, fingerprint, is_activation, sample_gradient, tensors_of
from .units import Contributions

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from .backward import Scoring

LARGEST_EXPONENT = 8
"""Losses are scaled by 2**-8 to 2**8: 17 factors, within the range of every dtype used in training."""


def squared(scoring: Scoring) -> Contributions:
    """``second``: the mean over samples of the sum of ``(W * g_j)**2``."""
    count = len(scoring.tokens)
    contributions: Contributions = {}
    for sample in range(count):
        samples = slice(sample, sample + 1)

        def receive(name: str, gradient: Tensor, samples: slice = samples) -> None:
            weight = scoring.parameters[name].detach()
            sums = scoring.reduce(
                name, lambda slab: (weight[slab].double() * gradient[slab]).square_().div_(count), samples
            )
            for key, vector in as_contributions(name, sums).items():
                contributions[key] = contributions[key] + vector if key in contributions else vector

        scoring.backward(samples, list(scoring.parameters), receive)
    return contributions


def mixed(scoring: Scoring) -> Contributions:
    """``element2``: the sum of ``|mean of (W * g_j - 1/2 * (W * g_j)**2)|``."""
    count = len(scoring.tokens)
    names = list(scoring.parameters)
    contributions: Contributions = {}
    if count > 1:
        recorder = _Recorder(scoring)
        contributions = recorder.run()
        names = sorted(recorder.failed, key=names.index)
    for window in _windows(scoring, names):
        contributions.update(_one_by_one(scoring, window))
    return contributions


def _windows(scoring: Scoring, names: Sequence[str]) -> list[list[str]]:
    """Consecutive parameters that together are no larger than the largest parameter to score."""
    limit = max(parameter.numel() for parameter in scoring.parameters.values())
    windows: list[list[str]] = []
    filled = limit
    for name in names:
        size = scoring.parameters[name].numel()
        if filled + size > limit:
            windows.append([])
            filled = 0
        windows[-1].append(name)
        filled += size
    return windows


def _one_by_one(scoring: Scoring, names: list[str]) -> Contributions:
    """``element2`` of a few parameters, with one backward pass per sample."""
    count = len(scoring.tokens)
    saliencies: dict[str, Tensor] = {}

    def receive(name: str, gradient: Tensor) -> None:
        weight = scoring.parameters[name]
        saliencies[name] = _add_mixed(saliencies.get(name), weight, gradient, scale=1, count=count)

    for sample in range(count):
        scoring.backward(slice(sample, sample + 1), names, receive)
    return {key: vector for name, total in saliencies.items() for key, vector in _reduce_mixed(scoring, name, total)}


def _reduce_mixed(scoring: Scoring, name: str, saliency: Tensor) -> list[tuple[tuple[str, int], Any]]:
    sums = scoring.reduce(name, lambda slab: saliency[slab].double().abs(), slice(None))
    return list(as_contributions(name, sums).items())


def _add_mixed(saliency: Tensor | None, weight: Tensor, gradient: Tensor, *, scale: int, count: int) -> Tensor:
    """Add one sample's share; the gradient is multiplied by ``scale``. In the weight's dtype, but at least float32."""
    weight = weight.detach()
    if saliency is None:
        saliency = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for slab in slabs_of(weight):
        change = (weight[slab].double() * gradient[slab]).mul_(scale)
        saliency[slab] += change.sub_(change.square().mul_(0.5)).div_(count)
    return saliency


class _Recorder(TorchFunctionMode):
    """Records one forward pass's calls on the parameters to score, and runs the two backward passes.

    Attributes:
        recorded: parameter name -> number of its recorded calls.
        uses: parameter name -> the calls that received a gradient, with the argument that is the parameter or was
            computed from it.
        missing: parameter name -> number of these calls that the second backward pass has not reached yet.
        failed: parameters whose samples could not be separated.
    """

    def __init__(self, scoring: Scoring) -> None:
        super().__init__()
        self.scoring = scoring
        self.samples = len(scoring.tokens)
        self.factors = _factors(self.samples)
        self.names = {id(parameter): name for name, parameter in scoring.parameters.items()}
        self.derived: dict[int, tuple[Tensor, str]] = {}
        self.uses: dict[str, list[tuple[RecordedCall, Tensor]]] = {}
        self.recorded: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.is_scaled = True
        self.contributions: Contributions = {}

    def run(self) -> Contributions:
        """The contributions of all parameters that are used and did not fail."""
        scoring = self.scoring
        names = list(scoring.parameters)
        # A parameter used in a way that this mode does not record receives an ordinary gradient.
        leaves = {name: [parameter] for name, parameter in scoring.parameters.items()}
        with scoring.gradients(leaves, lambda name, _gradient: self.failed.add(name)):
            with self:
                output = scoring.forward(slice(None))
            loss, can_scale = output.loss, output.loss.requires_grad and self._scale_samples(output)
            del output  # also frees the logits
            if not can_scale:
                self.failed.update(names)
                return {}
            loss.backward(retain_graph=True)
            self.is_scaled = False
            self.missing = Counter({name: len(uses) for name, uses in self.uses.items()})
            self.failed.update(name for name in self.recorded if self.recorded[name] != self.missing[name])
            scoring.reached.update(self.missing)
            loss.backward()
        return {key: vector for key, vector in self.contributions.items() if key[0] not in self.failed}

    def _scale_samples(self, output: Any) -> bool:
        """Scale each sample's loss by its factor in the first backward pass; False if the loss is not their mean."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or not logits.requires_grad:
            return False
        tokens = self.scoring.tokens.to(logits.device)
        if logits.shape[:2] != tokens.shape:
            return False
        with torch.no_grad():
            losses = [
                F.cross_entropy(scores[:-1].to(output.loss.dtype), labels[1:])
                for scores, labels in zip(logits, tokens, strict=True)
            ]
            difference = (torch.stack(losses).double().mean() - output.loss.double()).abs()
        if not bool(difference <= roundings(LOSS_ROUNDINGS, output.loss.dtype) * output.loss.abs().double()):
            return False

        def scale(gradient: Tensor) -> Tensor | None:
            if not self.is_scaled:
                return None
            factors = self.factors.to(gradient)[:, None, None]
            # In place when the gradient owns its memory: logits are often the largest activation.
            return gradient.mul_(factors) if gradient.is_contiguous() else gradient * factors

        logits.register_hook(scale)
        return True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call; record it if it combines a parameter to score with activations."""
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        operands = tuple({id(t): t for t in tensors if self._name(t) is not None}.values())
        if not operands or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if all(isinstance(t, torch.nn.Parameter) or self._name(t) is not None for t in tensors):
            return self._derive(func, args, kwargs, operands)
        return self._record(func, args, kwargs, operands)

    def _name(self, tensor: Tensor) -> str | None:
        """The name of the parameter that a tensor is, or was computed from."""
        if id(tensor) in self.names:
            return self.names[id(tensor)]
        return self.derived[id(tensor)][1] if id(tensor) in self.derived else None

    def _derive(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], operands: tuple[Tensor, ...]
    ) -> Any:
        """Treat a transposed or shifted weight as the weight; autograd maps its gradient back."""
        output = func(*args, **kwargs)
        names = {self._name(operand) for operand in operands}
        if isinstance(output, torch.Tensor) and output.requires_grad and len(names) == 1:
            name = names.pop()
            if name is not None and id(output) not in self.names:
                self.derived[id(output)] = (output, name)
        return output

    def _record(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], operands: tuple[Tensor, ...]
    ) -> Any:
        """Run the call without gradients of its parameters, and record the gradient of its output."""
        detached = {id(operand): operand.detach() for operand in operands}

        def argument(value: Any) -> Any:
            return detached.get(id(value), value) if isinstance(value, torch.Tensor) else value

        activations = [t for t in tensors_of(args, kwargs) if id(t) not in detached]
        versions = [(t.detach(), t._version) for t in activations]
        output = func(*map(argument, args), **{k: argument(v) for k, v in kwargs.items()})
        overwritten = any(t._version != version for t, version in versions)
        if isinstance(output, torch.Tensor) and not overwritten:
            if not output.is_floating_point() or any(_shares(output, t) for t in activations):
                return output  # only the parameter's shape or dtype was used
            if self._is_cut(output, activations) and not any(_shares(output, t) for t in detached.values()):

                def kept(value: Any) -> Any:
                    return value.detach() if isinstance(value, torch.Tensor) and id(value) not in detached else value

                call = RecordedCall(
                    function=func,
                    args=tuple(map(kept, args)),
                    kwargs={k: kept(v) for k, v in kwargs.items()},
                    operands=operands,
                    samples=self.samples,
                    rows=output.shape[0],
                    versions=versions,
                    output_print=fingerprint(output),
                )
                return self._expect_gradient(call, output)
        self.failed.update(name for operand in operands if (name := self._name(operand)))
        return output

    def _is_cut(self, output: Tensor, activations: list[Tensor]) -> bool:
        rows = output.shape[0] if output.dim() else 0
        return rows > 0 and rows % self.samples == 0 and any(is_activation(t, rows) for t in activations)

    def _expect_gradient(self, call: RecordedCall, output: Tensor) -> Tensor:
        if output._is_view():
            # A linear layer with a bias returns a view of a temporary. If a view is overwritten later, autograd routes
            # its gradient around the node with the hook.
            output = torch.ops.aten._unsafe_view(output, output.shape)
        if not output.requires_grad:  # token embeddings: no input has a gradient, so adding zero creates a node
            output.add_(output.new_zeros((), requires_grad=True))
        for operand in call.operands:
            self.recorded[self._name(operand) or ""] += 1
        node, position = output.grad_fn, output.output_nr
        assert node is not None
        # Hook the node, not the tensor: tensor hooks run earlier, and the output may be the logits with a scale hook.
        node.register_prehook(lambda gradients: self._arrived(call, gradients[position]))
        return output

    def _arrived(self, call: RecordedCall, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        names = [name for operand in call.operands if (name := self._name(operand))]
        if self.is_scaled:
            call.scaled_print = fingerprint(gradient)
            for name, operand in zip(names, call.operands, strict=True):
                self.uses.setdefault(name, []).append((call, operand))
            return
        call.gradient = gradient
        if not call.belongs_to_samples(self.factors):
            self.failed.update(names)
        for name in names:
            self.missing[name] -= 1
            if not self.missing[name] and name not in self.failed:
                self._score(name)
            if not self.missing[name]:
                for used, _ in self.uses.pop(name):
                    used.done_with_one()

    def _score(self, name: str) -> None:
        """Compute the gradients of a parameter sample by sample; all its output gradients are known."""
        parameter: Parameter = self.scoring.parameters[name]
        saliency: Tensor | None = None
        try:
            for sample in range(self.samples):
                gradient: Tensor | None = None
                for call, operand in self.uses[name]:
                    gradient = sample_gradient(call, operand, parameter, sample, gradient)
                if gradient is not None:
                    # The batch loss is a mean over samples: the gradient of one sample's loss is that much larger.
                    saliency = _add_mixed(saliency, parameter, gradient, scale=self.samples, count=self.samples)
        except NotSplittableError:
            self.failed.add(name)
            return
        saliency = torch.zeros_like(parameter) if saliency is None else saliency
        self.contributions.update(_reduce_mixed(self.scoring, name, saliency))


def _shares(tensor: Tensor, other: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _factors(samples: int) -> Tensor:
    """``[samples]`` powers of two: all different for up to 17 samples, random for more."""
    choices = torch.arange(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1)
    if samples > len(choices):
        chosen = torch.randint(len(choices), (samples,), generator=torch.Generator().manual_seed(0))
    else:
        start = (len(choices) - samples) // 2
        chosen = torch.arange(start, start + samples)
    return 2.0 ** choices[chosen].double()
