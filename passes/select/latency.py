"""The running time of a model at other widths, from timings of its contractions on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as default_timer

from ...ir import FxpruneError
from ...ir.axes import Atom, atoms_of
from ...ir.cost import macs_of
from ...ir.graph import Arg, Graph, Op, Value
from ...ir.rules import contraction_of
from ...runtime.streaming.block_runner import BlockRunner
from ..couple.coupling import Coupling, couple
from ..model.forward import inference
from ..state import Subject
from .costs import Costs, Term, sized

WIDTHS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.125)
"""Widths, as shares of the present ones, at which an operator is timed; between them time is linear in MACs."""

TOKENS = 128
"""Tokens in the input that a language model is timed on: one sequence, in one forward pass."""

OPERATOR, RUN = 0.03, 0.5
"""Minimum seconds to spend on timing one operator, and the model; the fastest run counts."""

TimeCurve = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Multiply-accumulates and nanoseconds, both ascending."""


class Latency(Costs):
    """The time of one run in nanoseconds, as a function of how many units the groups keep.

    Contractions (linear maps, attention, convolutions) are timed one by one on random values; all else that a run
    takes, measured as the difference, is taken to stay as it is. Of a language model a run reads TOKENS tokens; any
    other module gets the inputs that it was traced with.

    Args:
        coupling: of the graph.
        names: the groups that may be cut.
        subject: with the model, which is run if its weights are in memory.
    """

    def __init__(self, coupling: Coupling, names: Iterable[str], subject: Subject) -> None:
        self._clock = Clock(subject.runner)
        self._shapes = _shapes(coupling)
        self._curves: dict[int, TimeCurve] = {}
        contracted = self._contractions(coupling)
        self.seconds = forward_seconds(subject)
        measured = 0 if self.seconds is None else round(self.seconds * 1e9)
        self._rest = max(0, measured - contracted)
        self._operators = len(coupling.graph.ops)
        super().__init__(coupling, names, "macs")

    def whole(self, graph: Graph) -> int:
        """The time of a graph as it is. For another graph than the coupling's, the time outside contractions is assumed
        to grow with the number of operators."""
        if graph is self._graph:
            return self._rest + self._contractions(self._coupling)
        return round(self._rest * len(graph.ops) / self._operators) + self._contractions(couple(graph))

    def shown(self, cost: int) -> str:
        """In milliseconds."""
        return f"{cost / 1e6:,.3g} ms"

    def _contractions(self, coupling: Coupling) -> int:
        shapes = _shapes(coupling)
        found = 0
        for op in coupling.graph.ops:
            if contraction_of(op) is not None:
                found += self._clock(sized(op, coupling.axes, shapes))
        return found

    def _of(self, term: Term, kept: Mapping[int, int]) -> int:
        op = term.op
        assert op is not None
        if id(op) not in self._curves:
            self._curves[id(op)] = self._curve(op)
        counted, took = self._curves[id(op)]
        macs = macs_of(sized(op, self._axes, {**self._shapes, **kept}))
        return round(float(np.interp(macs, counted, took)))

    def _curve(self, op: Op) -> TimeCurve:
        found: dict[int, int] = {}
        atoms = {a.id: a.size for v in (*op.operands, *op.made) for axis in self._axes[v] for a in atoms_of(axis)}
        for width in WIDTHS:
            kept = {atom: max(1, round(atoms[atom] * width)) for atom in self._cut & atoms.keys()}
            narrower = sized(op, self._axes, {**self._shapes, **kept})
            found.setdefault(macs_of(narrower), self._clock(narrower))
        counted = np.array(sorted(found), dtype=np.float64)
        # Timings vary, but a wider operator must never count as faster.
        took = np.maximum.accumulate([found[int(macs)] for macs in counted])
        return counted, took.astype(np.float64)


class Clock:
    """Times operators on random values, in nanoseconds; equal operators of equal shapes are timed once.

    Args:
        runner: its device and dtype are used.
    """

    def __init__(self, runner: BlockRunner) -> None:
        self._device = "cpu" if runner.device.type == "meta" else str(runner.device)
        self._dtype = runner.dtype
        self._known: dict[str, int] = {}

    def __call__(self, op: Op) -> int:
        """The time of an operator at the shapes of its operands.

        Raises:
            FxpruneError: when the operator does not run on random values.
        """
        key = f"{op.packet} {_written(op.args)} {sorted((k, _written(v)) for k, v in op.kwargs.items())}"
        if key not in self._known:
            self._known[key] = self._timed(op)
        return self._known[key]

    def _timed(self, op: Op) -> int:
        call = getattr(torch.ops.aten, op.packet.removeprefix("aten."))
        args, kwargs = [self._value(arg) for arg in op.args], {k: self._value(v) for k, v in op.kwargs.items()}
        try:
            return round(fastest(lambda: call(*args, **kwargs), self._device, OPERATOR) * 1e9)
        except (RuntimeError, TypeError, ValueError) as error:
            raise FxpruneError(
                f"{op.packet} cannot be timed by itself: {error}", "use macs instead of latency as the target"
            ) from error

    def _value(self, arg: Arg) -> Any:
        if isinstance(arg, tuple):
            return [self._value(item) for item in arg]
        if not isinstance(arg, Value):
            return arg
        if arg.dtype.is_float:
            return torch.randn(arg.shape, device=self._device).to(self._dtype)
        return torch.ones(arg.shape, device=self._device, dtype=torch.bool if arg.dtype.name == "b8" else torch.long)


def forward_seconds(subject: Subject) -> float | None:
    """Seconds of the fastest of several runs of the model; None when its weights are not in memory."""
    model = subject.model
    parameter = next(model.parameters())
    if parameter.is_meta:
        return None
    inputs = dict(subject.example)
    ids = inputs.get("input_ids")
    if _reads_tokens(subject.graph) and isinstance(ids, torch.Tensor):
        inputs["input_ids"] = ids.new_zeros(1, TOKENS, device=parameter.device)
    with inference(model):
        return fastest(lambda: model(**inputs), str(parameter.device), RUN)


def fastest(run: Callable[[], Any], device: str, seconds: float) -> float:
    """Seconds of the fastest of several calls, by :func:`clock_on`.

    Args:
        run: the function to call.
        device: the device it runs on.
        seconds: minimum time to spend.
    """
    with torch.no_grad():
        timer = Timer("run()", globals={"run": run}, timer=clock_on(device), num_threads=torch.get_num_threads())
        return float(min(timer.blocked_autorange(min_run_time=seconds).times))


def clock_on(device: str) -> Callable[[], float]:
    """A clock for code on a device, in seconds. With one thread it counts CPU time, which other jobs on the machine do
    not change; with several threads or an accelerator wall time."""
    return time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else default_timer


def _reads_tokens(graph: Graph) -> bool:
    """Whether its only input is token ids, ``[B, L]``."""
    return len(graph.inputs) == 1 and len(graph.inputs[0].shape) == 2 and not graph.inputs[0].dtype.is_float


def _shapes(coupling: Coupling) -> dict[int, int]:
    """Atom id -> extent, for the batch and sequence axes when a language model is timed."""
    if not _reads_tokens(coupling.graph):
        return {}
    axes = coupling.axes[coupling.graph.inputs[0]]
    extents = zip(axes, (1, TOKENS), strict=True)
    return {axis.id: extent for axis, extent in extents if isinstance(axis, Atom)}


def _written(arg: Arg | tuple[Arg, ...]) -> str:
    if isinstance(arg, Value):
        return f"{arg.dtype.name}{list(arg.shape)}"
    return f"({', '.join(map(_written, arg))})" if isinstance(arg, tuple) else repr(arg)
