"""``prune_module``: make any ``torch.nn.Module`` smaller, given example inputs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from ...backends.graph_module import compute, constants_of, moved, raise_graph
from ...backends.loading import load
from ...backends.pt2.save import SavableModule
from ...backends.pt2.training_mode import follow_mode
from ...ir.cost import macs
from ...ir.errors import FxpruneError, RequestError, class_and_first_line
from ...ir.graph import Graph
from ...ir.plan import Plan
from ...ir.repairs import Repairs
from ...ir.verifier import verify
from ...passes.base import Pass
from ...passes.couple.coupling import Coupling, couple
from ...passes.couple.ordered_units import mark_ordered
from ...passes.data import Observed
from ...passes.manager import Analysis, StepRecord, run_pipeline
from ...passes.model.forward import device_of
from ...passes.model.measure import parameter_count
from ...passes.pipeline import parse_pipeline, print_pipeline
from ...passes.recover.base import Recovery
from ...passes.registry import all_passes
from ...passes.shrink.uses import observing
from ...passes.state import Data, NoHost, State, Subject
from ...runtime.experts import configs_of
from ...runtime.model.fast_path import without_fast_path
from ...runtime.place.placement import PlacementRequest, place
from ...runtime.streaming.left_as_found import left_as_found
from ...runtime.tensors import own_copy, tensors_by_every_name
from ...tracer.export import Traced
from ...tracer.inputs.input_set import DataSet
from ...tracer.module import ExampleInputs, ForwardCall, bind, output_of, run, run_on, tensors_in, trace_module
from ..inputs.seen_inputs import check_call, check_training, named_inputs
from ..progress import Progress, silent
from ..pruning.asked_passes import check_data_trains, check_reads_no_text
from ..pruning.group_change import GroupChange
from ..request_checks import CALIBRATION, RECOVERY, check_module, is_path, list_batches
from .arguments_and_outputs import apart, arrangement, placeholders, same, vector
from .asked import digest_of, told_of
from .cannot_be_compared import check_weights, not_a_number, not_repeatable
from .collector import only_new_objects_collected
from .losses import LossFunction, losses_of, moved_inputs
from .result import Pruned

__all__ = ["Pruned", "load", "prune_module"]

DEFAULTS: Mapping[str, Any] = {"channels": True}
"""Options that are another thing for a module than for a language model, where neither the pipeline text nor the call
says anything: the widths that shortcuts carry go too."""


def prune_module(
    module: nn.Module,
    example_inputs: ExampleInputs,
    passes: str | Sequence[str],
    *,
    loss: LossFunction | None = None,
    calib: str | os.PathLike[str] | Iterable[Any] | None = None,
    data: str | os.PathLike[str] | Iterable[Any] | None = None,
    ratio: float | str | None = None,
    layers: tuple[int, int] | str | None = None,
    seed: int | str | None = None,
    within: str | None = None,
    multiple_of: int | str | None = None,
    runtime: str | None = None,
    target: str | None = None,
    tolerance: float | str | None = None,
    channels: bool | str | None = None,
    device: str | torch.device | None = None,
    progress: Progress = silent,
) -> Pruned:
    """Make a module smaller.

    The given module stays. A copy is pruned in evaluation mode and repaired in place. If its forward does not hold at
    the smaller widths, the rewritten graph is returned, with the same names. Either is compared before it is returned.

    Args:
        module: any module that ``torch.export`` can trace.
        example_inputs: one tensor, a sequence of positional arguments, or a mapping of keyword arguments. The first
            dimension of every tensor counts samples, if it is the same; two samples or more.
        passes: pipeline text, such as ``"taylor"``, or several.
        loss: for scores that need one: takes the module (with ``calib`` a batch too) and returns a scalar.
        calib, data: what scores are computed on, and what recovery trains on: batches for the loss, of whose mean the
            scores are. Without a loss, inputs: batches like ``example_inputs``, a ``.safetensors`` or ``.npz`` file of
            tensors by argument name, or ``package.module:function`` that yields batches.
        ratio, layers, within, seed, multiple_of, runtime, target, tolerance, channels: for every pass with such an
            option; ``channels``, the widths that blocks share, is true by default.
        device: where the copy, the example and ``calib`` are meanwhile; where the module is when None.
        progress: told what is going on.
    Raises: RequestError for a mistake in the request, before any work; FxpruneError where a pass failed.
    """
    check_module(module)
    shared = dict(ratio=ratio, layers=layers, within=within, seed=seed, multiple_of=multiple_of, runtime=runtime,
        target=target, tolerance=tolerance, channels=channels)  # fmt: skip
    pipeline = parse_pipeline(passes, all_passes(), shared, defaults=DEFAULTS)
    return run_passes(
        module, example_inputs, pipeline, loss=loss, calib=calib, data=data, device=device, progress=progress
    )  # fmt: skip


@only_new_objects_collected()
@without_fast_path()
def run_passes(
    module: nn.Module,
    example_inputs: ExampleInputs,
    pipeline: Sequence[Pass],
    *,
    loss: LossFunction | None,
    calib: Any,
    data: Any,
    device: str | torch.device | None,
    progress: Progress,
) -> Pruned:
    """Run passes on a copy of a module; arguments as in :func:`prune_module`."""
    where = _checked_place(module, device)
    check_data_trains(pipeline, data)
    losses, inputs = losses_of(loss, calib, where), _inputs(module, None if loss is not None else calib, data)
    _check_passes(pipeline, losses, inputs)
    call = bind(module, moved_inputs(example_inputs, where))
    made = _ModuleRun(module, call, progress, where).run(pipeline, losses, inputs)
    told = told_of(module, call, loss, {"calib": calib, "data": data})
    return replace(made, digest=digest_of(made.module), **told)


def _inputs(module: nn.Module, calib: Any, data: Any) -> dict[str, DataSet]:
    """The data sets of inputs that were given, by what they are for."""
    given = {CALIBRATION: ("calib", calib), RECOVERY: ("data", data)}
    return {
        part: named_inputs(os.fspath(value) if is_path(value) else list_batches(value, name), name, module)
        for part, (name, value) in given.items()
        if value is not None
    }


def _checked_place(module: nn.Module, device: str | torch.device | None) -> torch.device | None:
    check_module(module)
    check_weights(module)
    return None if device is None else place(PlacementRequest.parse(device=device), sums=True).device


def _check_passes(pipeline: Sequence[Pass], losses: Sequence[Any], inputs: Mapping[str, DataSet]) -> None:
    check_reads_no_text(pipeline)
    for step in pipeline:
        if isinstance(step, Recovery):
            if RECOVERY not in inputs:
                raise RequestError(f"{step.name} has no data to train on", "give data=, batches of inputs")
        elif hasattr(step, "samples") and not step.streams and not losses and CALIBRATION not in inputs:
            raise RequestError(
                f"{step.name} needs calibration data or a loss",
                "give calib=, batches of inputs; or loss=, a function that takes the module and returns a scalar",
            )
    check_training(pipeline, inputs)


@dataclass
class _Compared:
    """The outputs on the example of a rewritten graph, and of the module that was last compared with it."""

    graph: Graph
    module: nn.Module
    expected: list[torch.Tensor]
    found: list[torch.Tensor]


class _ModuleRun(NoHost):
    """A module on its way through a pipeline; it is the host of the passes, which may cut widths and no more."""

    def __init__(
        self, module: nn.Module, call: ForwardCall, progress: Progress, where: torch.device | None = None
    ) -> None:
        self.original, self.call, self.progress = module, call, progress
        self.model = own_copy(module).eval()
        self.home = device_of(module)
        if where is not None:
            self.model.to(where)
        self.fixed_batch = ""
        self.observed: Observed | None = None
        with left_as_found(self.model, values=True):
            output = self._first_output()
            self.dense = tensors_in(output)
            self.arrange = arrangement(output)
            self._check_repeatable()
        progress(f"tracing {type(module).__name__}")
        self.traced = self._trace()  # not of a module that holds what its forward stored in these runs
        self.rebuilt_because = ""
        self.worst = 0.0
        self._compared: _Compared | None = None

    def _first_output(self) -> Any:
        try:
            return output_of(self.model, self.call)
        except FxpruneError as error:  # nothing was changed yet: the module and its inputs are what the user gave
            raise RequestError(error.message, error.hint) from error

    def _check_repeatable(self) -> None:
        with observing(self.model) as observed:
            again = run_on(self.model, self.call)
        # A model with a configuration has several implementations of its layers, which read different integers.
        self.observed = None if configs_of(self.model) else observed
        if not self.dense:
            raise FxpruneError(
                f"{type(self.original).__name__} returns no tensor", "give a module whose forward returns tensors"
            )
        if any(tensor.isnan().any() for tensor in self.dense):
            raise not_a_number(self.original, self.call.tensors)
        if not all(map(torch.equal, self.dense, again)):
            raise not_repeatable(self.original, self.model)

    def _trace(self) -> Traced:
        """Trace for any number of samples where the module allows it, otherwise for that of the example."""
        batch = self.call.batch
        if batch is None:
            self.fixed_batch = "the first dimensions of the inputs differ"
        elif batch < 2:
            self.fixed_batch = "the example holds a single sample"
        else:
            try:
                traced = trace_module(self.model, self.call, batch=True)
                # What holds for another number of samples than that of the trace holds for that of the trace.
                more = self.call.resized(batch + 1)
                if self._holds(traced, more, run(self.model, more)):
                    return traced
                self.fixed_batch = "the module computes something else for other numbers of samples"
            except FxpruneError as error:
                self.fixed_batch = f"the module does not run with other numbers of samples: {error.message}"
        traced = trace_module(self.model, self.call, batch=False)
        worst = apart(self._computed(traced.graph, self.model, self.call, traced), self.dense)
        if not worst <= same(self.dense):
            raise FxpruneError(
                f"the outputs of the traced graph and of {type(self.original).__name__} differ by {worst:.3g}",
                "control flow that depends on values of tensors cannot be traced; remove it from forward",
            )
        return traced

    def _holds(self, traced: Traced, call: ForwardCall, expected: list[torch.Tensor]) -> bool:
        return apart(self._computed(traced.graph, self.model, call, traced), expected) <= same(expected)

    def _computed(self, graph: Graph, module: nn.Module, call: ForwardCall, traced: Traced) -> list[torch.Tensor]:
        """All outputs of a graph with the tensors of a module.

        Raises:
            FxpruneError: the graph does not run. A possible cause: a width became equal to the number of samples in
                the trace, and the graph cannot tell the two numbers apart.
        """
        # A rewritten graph has no tensors that nothing reads.
        tensors = tensors_by_every_name(self.model) | tensors_by_every_name(module)
        try:
            return compute(graph, tensors, traced.constants, call.tensors, batch=traced.graph.extents.get("b"))
        except Exception as error:
            raise FxpruneError(
                f"the graph of the {type(module).__name__} does not run on the example inputs: "
                + class_and_first_line(error),
                "give an example with a single sample, or another ratio",
            ) from error

    def _graph_module(
        self, graph: Graph, traced: Traced, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> fx.GraphModule:
        return raise_graph(
            graph,
            # A rewritten graph has no tensors that nothing reads.
            tensors_by_every_name(self.model) | dict(tensors or {}),
            traced.constants,
            batch=traced.graph.extents.get("b"),
            inputs=functools.partial(placeholders, self.call),
            outputs=self.arrange,
        )

    def run(
        self,
        pipeline: Sequence[Pass],
        losses: Sequence[Callable[[nn.Module], torch.Tensor]],
        inputs: Mapping[str, DataSet],
    ) -> Pruned:
        before = parameter_count(self.model)
        state = self._state(losses, inputs)
        groups: dict[str, Any] = {}

        def between(_step: StepRecord, state: State) -> None:
            coupling = state.subject.coupling
            for name, group in coupling.groups.items() if coupling is not None else ():
                groups.setdefault(name, group)

        def announce(text: str, number: int, count: int) -> None:
            self.progress(f"{text} ({number} of {count})")

        def coupled(graph: Graph) -> Coupling:
            tensors = tensors_by_every_name(state.subject.model)
            # Whoever wants a weight to stay as it is says so by requires_grad; buffers are never trained.
            fixed = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
            return mark_ordered(couple(graph), constants_of(graph, tensors, self.traced.constants), fixed)

        analyses = [Analysis("couple", "coupling", coupled)]
        steps = run_pipeline(pipeline, state, analyses=analyses, verify=verify, between=between, announce=announce)
        plan = state.ledger.plan or Plan()
        if not all(step.keeps_values for step in pipeline):
            self._compared = None  # of other weights
        worst = self._check(state)
        changes = [groups[name] for name in plan.keep]
        result = moved(state.subject.model.train(self.original.training), self.home)
        return Pruned(
            module=result,
            in_place=not self.rebuilt_because,
            rebuilt_because=self.rebuilt_because,
            fixed_batch=self.fixed_batch,
            pipeline=print_pipeline(pipeline),
            options=print_pipeline(pipeline, defaults=True),
            parameters=(before, parameter_count(result)),
            macs=(self._macs(self.traced.graph), self._macs(state.subject.graph)),
            groups=tuple(GroupChange(g.name, g.kind.value, g.layer, g.units, len(plan.keep[g.name])) for g in changes),
            plan=plan,
            worst_difference=worst,
            steps=steps,
            report=dict(state.ledger.report),
            product=self._product(result, plan, state.ledger.repairs),
        )

    def _state(self, losses: Sequence[Callable[[nn.Module], torch.Tensor]], inputs: Mapping[str, DataSet]) -> State:
        """The state before the first pass."""
        subject = Subject(self.traced.graph, self.model, example=self.call.bound, observed=self.observed)
        for one in inputs.values():
            check_call(subject.runner, one)
        data = Data(inputs.get(CALIBRATION), inputs.get(RECOVERY), losses)
        return State(subject, data, host=self)

    def _product(self, result: nn.Module, plan: Plan, repairs: Repairs) -> SavableModule:
        args, kwargs = (moved_inputs(part, self.home) for part in (self.call.args, dict(self.call.kwargs)))
        return SavableModule(result, args, kwargs, plan, repairs, not self.fixed_batch)

    def _check(self, state: State) -> float:
        """Compare the result with the rewritten graph: on the example, and with one more sample unless it is fixed."""
        worst = 0.0
        graph, model = state.subject.graph, state.subject.model
        for call in [self.call] if self.fixed_batch else [self.call, self.call.resized((self.call.batch or 1) + 1)]:
            expected, found = self._outputs(graph, model, call)
            worst = max(worst, apart(found, expected))
            if not worst <= same(expected):
                raise FxpruneError(
                    f"the outputs of the pruned module and of its graph differ by {worst:.3g}",
                    "this is a bug in fxprune; please report it with the module",
                )
        return worst

    def _outputs(
        self, graph: Graph, model: nn.Module, call: ForwardCall
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """All outputs of a rewritten graph and of its module; on the example, as the last cut compared them."""
        kept = self._compared
        if call is self.call and kept is not None and kept.graph is graph and kept.module is model:
            return kept.expected, kept.found
        return self._computed(graph, model, call, self.traced), run(model, call)

    def _macs(self, graph: Graph) -> int:
        traced = self.traced.graph.extents.get("b")
        return macs(graph) * (self.call.batch or 1) // traced if traced else macs(graph)

    def execute(self, graph: Graph, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """All outputs of a graph and all outputs of a module on the example, as two vectors."""
        if self._compared is None or self._compared.graph is not graph:
            self._compared = _Compared(graph, module, self._computed(graph, module, self.call, self.traced), [])
        self._compared.module, self._compared.found = module, run(module, self.call)
        return vector(self._compared.expected), vector(self._compared.found)

    def rebuild(self, graph: Graph, tensors: Mapping[str, torch.Tensor], reason: str) -> nn.Module:
        """A graph module, where the module itself does not run at the smaller widths."""
        self.rebuilt_because = reason
        return follow_mode(self._graph_module(graph, self.traced, tensors))
