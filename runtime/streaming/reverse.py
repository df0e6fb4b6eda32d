"""Reverse streaming: exact gradients with the weights and the graph of one block in memory.

The forward runs without a graph inside blocks and keeps each block's inputs. Then, from the last block to the first, a
block runs again with a graph, and its gradients are computed from those of its outputs. What the model computes between
blocks (residual additions, masks, tables) keeps its graph; a piece of it is walked when everything that reads it is
done. In float32 the gradients are those of a whole backward pass, to the last bit wherever a tensor is read by no more
than two blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..place.memory import is_out_of_memory
from ..reporting import counted
from ..tolerances import BLOCK_TOLERANCE, relative_difference
from .blocks import BlockList
from .gradient_receiver import GradientReceiver
from .graph_walks import reaches, walk_graph
from .offloaded_states import OffloadedStates
from .side_effects import PassesOnMoreError, SideEffects
from .turns import Coroutine, Turn

Loss = Callable[[nn.Module], Tensor]
"""Runs a model on one batch and returns a scalar with a graph."""

OUTSIDE = -1
"""The stage, after all blocks, at which what no block precedes is walked."""


@dataclass(eq=False)
class BlockCall:
    """One call of a block in the forward of a batch.

    Attributes:
        number: of the call in this forward.
        path: the block.
        forward: the block's own forward.
        inputs: flat arguments; tensors without their graph, or themselves when they are outputs of earlier calls.
        spec: their structure.
        before: position in ``inputs`` -> the tensor with its graph, for those that need a gradient.
        outputs: the floating-point outputs that need a gradient, as leaves of the graph that comes after.
        places: their positions among the flat outputs.
    """

    number: int
    path: str
    forward: Callable[..., Any]
    inputs: list[Any]
    spec: pytree.TreeSpec
    before: dict[int, Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def arguments(self, leaves: Mapping[int, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for another run: copies of tensors, because some blocks write to them."""
        values = (leaves.get(at, value) for at, value in enumerate(self.inputs))
        flat = [value.clone() if isinstance(value, Tensor) else value for value in values]
        found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(flat, self.spec)
        return found


class Tape:
    """The forward of one batch, and its way back.

    Args:
        batch: number of the batch.
        wanted: the parameters whose gradients are wanted, by name.
        holders: name of a wanted parameter -> the blocks that hold it; None stands for outside.
        receiver: takes the gradients.
        states: moves hidden states away that are not needed for a while.
    """

    def __init__(
        self,
        batch: int,
        wanted: Mapping[str, nn.Parameter],
        holders: Mapping[str, frozenset[str | None]],
        receiver: GradientReceiver,
        states: OffloadedStates,
    ) -> None:
        self.batch, self.receiver, self._states = batch, receiver, states
        self.calls: list[BlockCall] = []
        self._inside: dict[str, dict[str, nn.Parameter]] = {}
        self._shared: dict[str, nn.Parameter] = {}
        for name, parameter in wanted.items():
            path = next(iter(holders[name]))
            if path is None or len(holders[name]) > 1:
                self._shared[name] = parameter
            else:
                self._inside.setdefault(path, {})[name] = parameter
        # When the gradients of what is not of one block are complete: at the end, unless they are of pieces only.
        self._due = dict.fromkeys((name for name in self._shared if holders[name] != {None}), OUTSIDE)
        self._left: Counter[str] = Counter()
        self._held: dict[str, Tensor] = {}
        self._watched: list[Tensor] = []
        self._at_watched: dict[int, Tensor] = {}
        # Tensors with a graph that blocks read: by the stage at which they are walked, with their gradients so far.
        self._pieces: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
        self._stages: dict[int, int] = {}
        # The calls whose outputs the pieces of a stage were computed from.
        self._reached: dict[int, set[int]] = {}

    def forward(self, coroutine: Coroutine, turn: Turn) -> tuple[int, int]:
        """Run a block without a graph, and give the turn its output, whose tensors are leaves; returns the numbers of
        the batch and of the call."""
        self.watch()
        arrival = coroutine.arrival
        assert arrival is not None
        flat, spec = pytree.tree_flatten((arrival.args, arrival.kwargs))
        before = {at: v for at, v in enumerate(flat) if isinstance(v, Tensor) and v.requires_grad}
        own = {id(leaf) for call in self.calls for leaf in call.outputs}
        plain = [v.detach() if isinstance(v, Tensor) and id(v) not in own else v for v in flat]
        call = BlockCall(len(self.calls), turn.path, turn.forward, plain, spec, before)
        self.calls.append(call)
        self._left[turn.path] += 1
        with torch.no_grad():
            args, kwargs = call.arguments({})
            effects = SideEffects(turn.block, (args, kwargs))
            output = turn.forward(*args, **kwargs)
        if effects.found:
            raise PassesOnMoreError(turn.path, "writes to what it is given")
        graded = bool(before) or any(parameter.requires_grad for parameter in turn.block.parameters())
        found, tree = pytree.tree_flatten(output)
        for at, value in enumerate(found):
            if graded and isinstance(value, Tensor) and value.is_floating_point():
                found[at] = value.detach().requires_grad_(True)
                call.outputs.append(found[at])
                call.places.append(at)
        turn.outputs[self.batch] = pytree.tree_unflatten(found, tree)
        if call.number > 1:
            self._move_away(call.number - 2)
        return self.batch, call.number

    def _move_away(self, number: int) -> None:
        """Move the outputs of a call away, when only calls on the way back still read them."""
        for leaf in self.calls[number].outputs:
            held = (v for c in self.calls[number:] for v in (*c.inputs, *c.before.values(), *c.outputs))
            self._states.move(leaf, sum(value is leaf for value in held))

    @property
    def kept(self) -> int:
        """Bytes of the hidden states that are kept for the way back."""
        tensors = (leaf for call in self.calls for leaf in (*call.inputs, *call.outputs) if isinstance(leaf, Tensor))
        return sum(storage.nbytes() for storage in {t.data_ptr(): t.untyped_storage() for t in tensors}.values())

    def watch(self) -> None:
        """Keep the gradients of the activations between blocks that the receiver has seen."""
        self._watched += [tensor for tensor in self.receiver.activations() if tensor.requires_grad]

    def start(self, loss: Tensor) -> None:
        """Walk from the loss to the outputs of the last blocks."""
        leaves = {id(leaf): call.number for call in self.calls for leaf in call.outputs}
        reached: dict[str, list[int]] = {}
        names = {id(parameter): name for name, parameter in self._shared.items()}
        for call in self.calls:
            for tensor in call.before.values():
                if id(tensor) not in self._stages:
                    numbers, found = reaches(tensor, leaves, names)
                    self._stages[id(tensor)] = stage = max(numbers, default=OUTSIDE)
                    self._reached.setdefault(stage, set()).update(numbers)
                    for name in found:
                        reached.setdefault(name, []).append(stage)
        last = len(self.calls)
        numbers, found = reaches(loss, leaves, names)
        for name in found:
            reached.setdefault(name, []).append(last)
        self._due = {name: min(stages) for name, stages in reached.items()} | self._due
        if loss.requires_grad:
            self._bring(numbers)
            self._backward([loss], None, last)
        self._deliver_shared(last)

    def waits_for(self, name: str) -> bool:
        """Whether a gradient of this parameter, which no block holds alone, will still come, after :meth:`start`."""
        return self._due.get(name, len(self.calls)) != len(self.calls)

    def back(self, call: BlockCall) -> None:
        """Walk what is between this block and the next ones, and the block itself."""
        self._bring({call.number, *self._reached.get(call.number, ())})
        self._states.bring(value for value in call.inputs if isinstance(value, Tensor))
        self._walk(call.number)
        gradients = [(at, leaf.grad) for at, leaf in zip(call.places, call.outputs, strict=True)]
        self._left[call.path] -= 1
        if any(gradient is not None for _, gradient in gradients):
            self._through(call, [(at, g) for at, g in gradients if g is not None])
        if not self._left[call.path]:
            for name in [name for name in self._held if name in self._inside.get(call.path, {})]:
                self.receiver.parameter(self.batch, name, self._inside[call.path][name], self._held.pop(name))

    def _bring(self, numbers: Iterable[int]) -> None:
        """Bring back the outputs of calls."""
        for number in numbers:
            self._states.bring(self.calls[number].outputs)

    def end(self) -> None:
        """Walk what is before all blocks."""
        self._walk(OUTSIDE)
        if self._watched:
            gradients = [self._at_watched.get(id(tensor)) for tensor in self._watched]
            self.receiver.activation_gradients(self.batch, self._watched, gradients)
            self._watched, self._at_watched = [], {}
        self._pieces.clear()

    def _through(self, call: BlockCall, gradients: Sequence[tuple[int, Tensor]]) -> None:
        """Run a block again with a graph, and hand on the gradients of its parameters, activations and inputs."""
        leaves = {at: call.inputs[at].detach().requires_grad_(True) for at in call.before}
        inside = self._inside.get(call.path, {})
        with torch.enable_grad(), self._collecting(call.path, inside):
            with self.receiver.around(self.batch):
                output = _again(call, leaves)
            flat = pytree.tree_leaves(output)
            self._compare(call, flat)
            ends = [(flat[at], gradient) for at, gradient in gradients if flat[at].requires_grad]
            seen = [tensor for tensor in self.receiver.activations() if tensor.requires_grad]
            at_seen = walk_graph(
                [end for end, _ in ends], [gradient for _, gradient in ends],
                list(leaves.values()), [*inside.values(), *self._shared.values()], seen,
            )  # fmt: skip
        if seen:
            self.receiver.activation_gradients(self.batch, seen, at_seen)
        self._set_aside()
        for at, tensor in call.before.items():
            if (gradient := leaves[at].grad) is not None:
                self._add(tensor, gradient)
        call.inputs, call.before, call.outputs = [], {}, []

    @staticmethod
    def _compare(call: BlockCall, flat: Sequence[Any]) -> None:
        """Check that a block that runs again gives what it gave: nothing else that it reads has changed."""
        for at, leaf in zip(call.places, call.outputs, strict=True):
            if relative_difference(flat[at].detach(), leaf.detach()) > BLOCK_TOLERANCE:
                raise PassesOnMoreError(call.path, "gives another output when it runs again")

    def _add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add to the gradient of a tensor that blocks read."""
        pieces = self._pieces.setdefault(self._stages[id(tensor)], {})
        known = pieces.get(id(tensor))
        pieces[id(tensor)] = (tensor, gradient if known is None else known[1] + gradient)

    def _walk(self, stage: int) -> None:
        pieces = list(self._pieces.pop(stage, {}).values())
        if pieces:
            tensors, gradients = zip(*pieces, strict=True)
            self._backward(tensors, gradients, stage)
        self._deliver_shared(stage)

    def _backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor] | None, stage: int) -> None:
        """Walk the graph between blocks; the gradients of nothing else are computed."""
        leaves = [leaf for call in self.calls for leaf in call.outputs]
        shared = list(self._shared.values())
        found = walk_graph(tensors, gradients, leaves, shared, self._watched, retain=stage != OUTSIDE)
        for tensor, gradient in zip(self._watched, found, strict=True):
            if gradient is not None:
                known = self._at_watched.get(id(tensor))
                self._at_watched[id(tensor)] = gradient if known is None else known + gradient

    def _deliver_shared(self, stage: int) -> None:
        self._set_aside()
        for name in [name for name, due in self._due.items() if due == stage and name in self._held]:
            self.receiver.parameter(self.batch, name, self._shared[name], self._held.pop(name))

    def _set_aside(self) -> None:
        """Hold the gradients of this batch so far of parameters that no block holds alone: others walk in between."""
        for name, parameter in self._shared.items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                self._held[name] = gradient if name not in self._held else self._held[name].add_(gradient)

    @contextmanager
    def _collecting(self, path: str, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, the gradients of these parameters go to the receiver, or are held until the block's first call."""

        def hook_of(name: str) -> Callable[[Tensor], None]:
            def hook(leaf: Tensor) -> None:
                gradient, leaf.grad = leaf.grad, None
                assert gradient is not None
                if name in self._held:
                    gradient = self._held.pop(name).add_(gradient)
                if self._left[path]:
                    self._held[name] = gradient
                else:
                    self.receiver.parameter(self.batch, name, leaf, gradient)

            return hook

        handles = [p.register_post_accumulate_grad_hook(hook_of(name)) for name, p in parameters.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _again(call: BlockCall, leaves: Mapping[int, Tensor]) -> Any:
    args, kwargs = call.arguments(leaves)
    try:
        return call.forward(*args, **kwargs)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PassesOnMoreError(call.path, f"does not run again: {error}") from error


def walk_back(
    tapes: Sequence[Tape],
    blocks: BlockList,
    loaded: Callable[[str], AbstractContextManager[Any]],
    order: Sequence[tuple[str, Sequence[tuple[int, int]]]],
    names: Mapping[str, Sequence[str]],
) -> None:
    """From the last block to the first, for all batches.

    Args:
        tapes: the batches; each has been started.
        blocks: the blocks of the model.
        loaded: path of a block -> a context in which its weights are in memory.
        order: the turns of the forward: block, and (batch, number of its call) of everything that waited.
        names: path of a block -> the wanted parameters in it.
    """
    turns_left = Counter(path for path, _ in order)
    for path, calls in counted(order[::-1], "blocks backward"):
        turns_left[path] -= 1
        with loaded(path):
            for batch, number in calls:
                tape = tapes[batch]
                tape.back(tape.calls[number])
            if not turns_left[path] and path in blocks.modules:
                tapes[0].receiver.finished(names.get(path, ()))
    for tape in tapes:
        tape.end()
