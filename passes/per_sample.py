"""Contributions made of the squared gradients of single samples, without a copy of the gradients.

``second`` sums ``(W * g_j)**2``, which is never negative: each sample is run by itself and its gradients are reduced
as they come. ``element2`` takes an absolute value *after* the sum over samples, so a parameter has to see all its
samples before it can be reduced. The batch is therefore run as one, the calls that read a parameter are remembered, and
when the backward pass has brought the last of their output gradients, the parameter's own gradients are computed from
them sample by sample (``calls.py`` holds the arithmetic of a call).

That needs every output gradient to be cut into samples. Nothing is taken on trust:

- the batch is run backward twice, first with sample ``j``'s loss scaled by ``c_j``. A piece of an output gradient
  belongs to sample ``j`` alone exactly if it was scaled by ``c_j``;
- a call on the piece of its input must give the piece of its output;
- a parameter that was also read in another way receives an ordinary gradient, which a hook sees.

Parameters that fail (a position table looked up once for all samples) are run sample by sample afterwards, so many at a
time as take the memory of one gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..runtime.tolerances import LOSS_ROUNDINGS, roundings
from .calls import Call, NotSplittableError, fingerprint, is_activation, sample_gradient, tensors_of
from .contributions import Contributions, as_contributions, slabs_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from .backward import Scoring

LARGEST_EXPONENT = 8
"""Losses are scaled by 2**-8 to 2**8: 17 factors, which no floating-point type of a trained model minds."""


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
    """Runs of parameters that together are no larger than the largest wanted one."""
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
    """``element2`` of a few parameters from separate backward passes of the samples."""
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
    """Add one sample's share, of the gradient times ``scale``; held in the weight's type, but at least float32."""
    weight = weight.detach()
    if saliency is None:
        saliency = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    for slab in slabs_of(weight):
        change = (weight[slab].double() * gradient[slab]).mul_(scale)
        saliency[slab] += change.sub_(change.square().mul_(0.5)).div_(count)
    return saliency


class _Recorder(TorchFunctionMode):
    """One forward pass whose calls on wanted parameters are remembered, and the two backward passes over it.

    Attributes:
        recorded: parameter name -> how many of its calls are watched.
        uses: parameter name -> the calls that a gradient came back to, with the argument that is the parameter or was
            computed from it.
        missing: parameter name -> how many of them the second backward pass has yet to reach.
        failed: parameters whose samples could not be told apart.
    """

    def __init__(self, scoring: Scoring) -> None:
        super().__init__()
        self.scoring = scoring
        self.samples = len(scoring.tokens)
        self.factors = _factors(self.samples)
        self.names = {id(parameter): name for name, parameter in scoring.parameters.items()}
        self.derived: dict[int, tuple[Tensor, str]] = {}
        self.uses: dict[str, list[tuple[Call, Tensor]]] = {}
        self.recorded: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.is_scaled = True
        self.contributions: Contributions = {}

    def run(self) -> Contributions:
        """The contributions of all parameters that neither failed nor are unused."""
        scoring = self.scoring
        names = list(scoring.parameters)
        # A parameter read in a way that the mode does not catch receives a gradient.
        leaves = {name: [parameter] for name, parameter in scoring.parameters.items()}
        with scoring.gradients(leaves, lambda name, _gradient: self.failed.add(name)):
            with self:
                output = scoring.forward(slice(None))
            loss, can_scale = output.loss, output.loss.requires_grad and self._scale_samples(output)
            del output  # and with it the logits
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
        """Scale the loss of each sample by its factor in the first backward pass, if the loss is their plain mean."""
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
            # In place where the memory is its own: logits are often the largest activation.
            return gradient.mul_(factors) if gradient.is_contiguous() else gradient * factors

        logits.register_hook(scale)
        return True

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let a call through, remembering it if it reads a wanted parameter together with activations."""
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        operands = tuple({id(t): t for t in tensors if self._name(t) is not None}.values())
        if not operands or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if all(isinstance(t, torch.nn.Parameter) or self._name(t) is not None for t in tensors):
            return self._derive(func, args, kwargs, operands)
        return self._record(func, args, kwargs, operands)

    def _name(self, tensor: Tensor) -> str | None:
        """The wanted parameter that a tensor is, or was computed from."""
        if id(tensor) in self.names:
            return self.names[id(tensor)]
        return self.derived[id(tensor)][1] if id(tensor) in self.derived else None

    def _derive(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], operands: tuple[Tensor, ...]
    ) -> Any:
        """A transposed or shifted weight stands for the weight; autograd knows the way back."""
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
        """Make the call without gradients of its parameters, and watch for the gradient of its output."""
        detached = {id(operand): operand.detach() for operand in operands}

        def argument(value: Any) -> Any:
            return detached.get(id(value), value) if isinstance(value, torch.Tensor) else value

        activations = [t for t in tensors_of(args, kwargs) if id(t) not in detached]
        versions = [(t.detach(), t._version) for t in activations]
        output = func(*map(argument, args), **{k: argument(v) for k, v in kwargs.items()})
        overwritten = any(t._version != version for t, version in versions)
        if isinstance(output, torch.Tensor) and not overwritten:
            if not output.is_floating_point() or any(_shares(output, t) for t in activations):
                return output  # the parameter only gave its shape or type
            if self._is_cut(output, activations) and not any(_shares(output, t) for t in detached.values()):

                def kept(value: Any) -> Any:
                    return value.detach() if isinstance(value, torch.Tensor) and id(value) not in detached else value

                call = Call(
                    function=func,
                    args=tuple(map(kept, args)),
                    kwargs={k: kept(v) for k, v in kwargs.items()},
                    operands=operands,
                    samples=self.samples,
                    rows=output.shape[0],
                    versions=versions,
                    output_print=fingerprint(output),
                )
                return self._watch(call, output)
        self.failed.update(name for operand in operands if (name := self._name(operand)))
        return output

    def _is_cut(self, output: Tensor, activations: list[Tensor]) -> bool:
        rows = output.shape[0] if output.dim() else 0
        return rows > 0 and rows % self.samples == 0 and any(is_activation(t, rows) for t in activations)

    def _watch(self, call: Call, output: Tensor) -> Tensor:
        if output._is_view():
            # Of a temporary, as a linear layer with a bias returns. Autograd reroutes the gradient of a view that is
            # overwritten later, past the node that is watched.
            output = torch.ops.aten._unsafe_view(output, output.shape)
        if not output.requires_grad:  # no activation does (token embeddings): join the graph by adding zero
            output.add_(output.new_zeros((), requires_grad=True))
        for operand in call.operands:
            self.recorded[self._name(operand) or ""] += 1
        node, position = output.grad_fn, output.output_nr
        assert node is not None
        # On the node, not on the tensor: hooks of the tensor run before, and the output may be the logits.
        node.register_prehook(lambda gradients: self._arrived(call, gradients[position]))
        return output

    def _arrived(self, call: Call, gradient: Tensor | None) -> None:
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
        """All output gradients of a parameter are there: compute its gradients sample by sample."""
        parameter: Parameter = self.scoring.parameters[name]
        saliency: Tensor | None = None
        try:
            for sample in range(self.samples):
                gradient: Tensor | None = None
                for call, operand in self.uses[name]:
                    gradient = sample_gradient(call, operand, parameter, sample, gradient)
                if gradient is not None:
                    # The batch loss is the mean over samples: a sample's own gradient is that many times larger.
                    saliency = _add_mixed(saliency, parameter, gradient, scale=self.samples, count=self.samples)
        except NotSplittableError:
            self.failed.add(name)
            return
        saliency = torch.zeros_like(parameter) if saliency is None else saliency
        self.contributions.update(_reduce_mixed(self.scoring, name, saliency))


def _shares(tensor: Tensor, other: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _factors(samples: int) -> Tensor:
    """``[samples]`` powers of two, all different for up to 17 samples and random beyond."""
    choices = torch.arange(-LARGEST_EXPONENT, LARGEST_EXPONENT + 1)
    if samples > len(choices):
        chosen = torch.randint(len(choices), (samples,), generator=torch.Generator().manual_seed(0))
    else:
        start = (len(choices) - samples) // 2
        chosen = torch.arange(start, start + samples)
    return 2.0 ** choices[chosen].double()
