"""``prune_module``: make any ``torch.nn.Module`` smaller, given example inputs."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..backends.exported import Product, SavedModule, load, save_module
from ..backends.graph_module import raise_graph
from ..backends.training_mode import follow_mode
from ..backends.verify import relative_difference
from ..ir.cost import macs
from ..ir.errors import FxpruneError, RequestError
from ..ir.graph import Graph
from ..ir.plan import Plan
from ..ir.verifier import verify
from ..passes.base import Pass, State
from ..passes.manager import Step, run_pipeline
from ..passes.measure import parameter_count
from ..passes.pipeline import parse_pipeline, print_pipeline
from ..passes.registry import ANALYSES, PASSES
from ..tracer.export import Traced
from ..tracer.module import Call, Inputs, bind, run, trace_module
from .progress import Progress, silent
from .pruning import GroupChange

__all__ = ["Pruned", "load", "prune_module"]

SAME = {torch.float64: 1e-10, torch.float32: 1e-4}
"""The largest allowed difference of two programs for the same function, relative to the scale of the output: about a
thousand rounding errors of the data type. For less precise types it is 5%."""

Loss = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Pruned:
    """A smaller module.

    Attributes:
        module: the result, in training or evaluation mode as the original was.
        in_place: True: a module of the original class, with smaller tensors. False: a ``torch.fx.GraphModule``.
        rebuilt_because: why the original forward does not work at the smaller widths; empty when it does.
        fixed_batch: why the result accepts only as many samples as the example holds; empty when it accepts any number.
        pipeline: the passes that ran, with all options, as text.
        parameters: number of parameters before and after.
        macs: multiply-accumulates of one run on the example inputs, before and after.
        groups: the groups from which units were removed.
        plan: what was removed.
        worst_difference: largest difference between the outputs of the module and of the rewritten graph, relative to
            their scale.
        steps: passes and analyses with their times.
        report: what each pass reported, by pass name.
        product: what :meth:`save` writes.
    """

    module: nn.Module
    in_place: bool
    rebuilt_because: str
    fixed_batch: str
    pipeline: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    groups: tuple[GroupChange, ...]
    plan: Plan
    worst_difference: float
    steps: tuple[Step, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    product: Product | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As JSON data, without times."""
        return {
            "pipeline": self.pipeline,
            "form": "module" if self.in_place else "graph",
            "rebuilt_because": self.rebuilt_because,
            "fixed_batch": self.fixed_batch,
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "macs": {"before": self.macs[0], "after": self.macs[1]},
            "groups": [vars(change) for change in self.groups],
            "worst_difference": self.worst_difference,
            "passes": dict(self.report),
        }

    def save(self, out: str | Path, *, force: bool = False) -> SavedModule:
        """Write ``model.safetensors``, ``model.pt2``, ``plan.safetensors`` and ``fxprune.json``, and check them in a
        fresh process. The current weights are written, so the module may have been trained since it was pruned.

        Raises:
            RequestError: ``out`` cannot be written.
            FxpruneError: the module cannot be exported, or the written files do not compute the same outputs.
        """
        assert self.product is not None
        return save_module(self.product, Path(out), report=self.to_json(), force=force)


def prune_module(
    module: nn.Module,
    example_inputs: Inputs,
    passes: str | Sequence[str],
    *,
    loss: Loss | None = None,
    data: Iterable[Any] | None = None,
    ratio: float | str | None = None,
    layers: tuple[int, int] | str | None = None,
    seed: int | str | None = None,
    multiple_of: int | str | None = None,
    target: str | None = None,
    channels: bool | str | None = True,
    progress: Progress = silent,
) -> Pruned:
    """Make a module smaller.

    The given module is not changed. A copy of it is pruned in evaluation mode: its tensors are sliced, and integer
    attributes that its forward reads, such as a number of heads, are adapted. If its forward does not work at the
    smaller widths, for example because one is written in its code, the rewritten graph is returned as a
    ``torch.fx.GraphModule`` with tensors of the same names. In both cases the outputs of the result are compared with
    those of the rewritten graph.

    Args:
        module: any module that ``torch.export`` can trace.
        example_inputs: one tensor, a sequence of the positional arguments of forward, or a mapping of its keyword
            arguments. The first dimension of every tensor should count samples, and be 2 or more.
        passes: pipeline text, such as ``"taylor{variant=element1}"``; several texts run one after the other.
        loss: for scores that need one: a function that takes the module and returns a scalar. With ``data`` it takes
            the module and a batch.
        data: batches for ``loss``; scores are computed from the mean loss of all batches.
        ratio, layers, seed, multiple_of, target: a value for every pass that has an option of that name.
        channels: whether to also prune widths that several blocks share; None leaves this to the pipeline text.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: the request is wrong. This is checked before any work.
        FxpruneError: the module cannot be traced, or a pass failed.
    """
    shared = {"ratio": ratio, "layers": layers, "seed": seed, "multiple_of": multiple_of, "target": target}
    losses = _losses(loss, data)
    _check_passes(parse_pipeline(passes, PASSES, shared), losses)
    pipeline = parse_pipeline(passes, PASSES, shared | _channels(passes, channels))
    call = bind(module, example_inputs)
    work = _Work(module, call, progress)
    return work.run(pipeline, losses)


def _channels(passes: str | Sequence[str], channels: bool | str | None) -> dict[str, Any]:
    text = passes if isinstance(passes, str) else ",".join(passes)
    return {} if channels is None or "channels=" in text.replace(" ", "") else {"channels": channels}


def _losses(loss: Loss | None, data: Iterable[Any] | None) -> list[Callable[[nn.Module], torch.Tensor]]:
    if loss is None:
        if data is not None:
            raise RequestError("data= has no effect without loss=", "give loss=, a function of the module and a batch")
        return []
    if data is None:
        return [loss]
    batches = list(data)
    if not batches:
        raise RequestError("data= is empty", "give at least one batch")

    def on(module: nn.Module, batch: Any) -> torch.Tensor:
        return loss(module, batch)

    return [functools.partial(on, batch=batch) for batch in batches]


def _check_passes(pipeline: Sequence[Pass], losses: Sequence[Any]) -> None:
    for step in pipeline:
        if step.kind != "score":
            raise RequestError(
                f"pass {step.name!r} needs a causal language model", "use random, magnitude or taylor for other modules"
            )
        if step.takes_loss and not losses:
            raise RequestError(
                f"{step.name} scores need a loss", "give loss=, a function that takes the module and returns a scalar"
            )


class _Work:
    """A module on its way through a pipeline."""

    def __init__(self, module: nn.Module, call: Call, progress: Progress) -> None:
        self.original, self.call, self.progress = module, call, progress
        self.model = copy.deepcopy(module).eval()
        self.dense = run(self.model, call)
        self._check_repeatable()
        progress(f"tracing {type(module).__name__}")
        self.fixed_batch = ""
        self.arrange = _arrangement(self.model, call)
        self.traced = self._trace()
        self.rebuilt_because = ""
        self.worst = 0.0

    def _check_repeatable(self) -> None:
        again = run(self.model, self.call)
        if not self.dense:
            raise FxpruneError(
                f"{type(self.original).__name__} returns no tensor", "give a module whose forward returns tensors"
            )
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(self.dense, again, strict=True)):
            raise FxpruneError(
                f"{type(self.original).__name__} returns different outputs for the same inputs",
                "switch off randomness in forward; in evaluation mode equal inputs must give equal outputs",
            )

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
                if self._holds_at(traced, batch) and self._holds_at(traced, batch + 1):
                    return traced
                self.fixed_batch = "the module computes something else for other numbers of samples"
            except FxpruneError as error:
                self.fixed_batch = f"the module does not run with other numbers of samples: {error.message}"
        traced = trace_module(self.model, self.call, batch=False)
        worst = _worst(self._graph_module(traced.graph, traced), self.call, self.dense)
        if not worst <= _same(self.dense):
            raise FxpruneError(
                f"the outputs of the traced graph and of {type(self.original).__name__} differ by {worst:.3g}",
                "control flow that depends on values of tensors cannot be traced; remove it from forward",
            )
        return traced

    def _holds_at(self, traced: Traced, batch: int) -> bool:
        call = self.call.resized(batch)
        expected = run(self.model, call)
        return _worst(self._graph_module(traced.graph, traced), call, expected) <= _same(expected)

    def _graph_module(
        self, graph: Graph, traced: Traced, tensors: Mapping[str, torch.Tensor] | None = None
    ) -> fx.GraphModule:
        return raise_graph(
            graph,
            {**_tensors(self.model), **(tensors or {})},  # tensors that nothing reads are missing in ``tensors``
            traced.constants,
            batch=traced.graph.extents.get("b"),
            inputs=functools.partial(_placeholders, self.call),
            outputs=self.arrange,
        )

    def run(self, pipeline: Sequence[Pass], losses: Sequence[Callable[[nn.Module], torch.Tensor]]) -> Pruned:
        before = parameter_count(self.model)
        state = State(
            graph=self.traced.graph, model=self.model, example=self.call.bound, losses=losses,
            execute=self._execute, rebuild=self._rebuild,
        )  # fmt: skip
        groups: dict[str, Any] = {}

        def between(_step: Step, state: State) -> None:
            for name, group in state.coupling.groups.items() if state.coupling is not None else ():
                groups.setdefault(name, group)

        def announce(text: str, number: int, count: int) -> None:
            self.progress(f"{text} ({number} of {count})")

        steps = run_pipeline(pipeline, state, analyses=ANALYSES, verify=verify, between=between, announce=announce)
        plan = state.plan or Plan()
        worst = self._check(state)
        changes = [groups[name] for name in plan.keep]
        result = state.model.train(self.original.training)
        text = print_pipeline(pipeline, defaults=True)
        return Pruned(
            module=result,
            in_place=not self.rebuilt_because,
            rebuilt_because=self.rebuilt_because,
            fixed_batch=self.fixed_batch,
            pipeline=text,
            parameters=(before, parameter_count(result)),
            macs=(self._macs(self.traced.graph), self._macs(state.graph)),
            groups=tuple(GroupChange(g.name, g.kind.value, g.layer, g.units, len(plan.keep[g.name])) for g in changes),
            plan=plan,
            worst_difference=worst,
            steps=steps,
            report=dict(state.report),
            product=Product(result, self.call.args, self.call.kwargs, plan, state.repairs, not self.fixed_batch),
        )

    def _check(self, state: State) -> float:
        """Compare the result with the rewritten graph: on the example, and with one more sample unless it is fixed."""
        worst = 0.0
        for call in [self.call] if self.fixed_batch else [self.call, self.call.resized((self.call.batch or 1) + 1)]:
            expected = self._run_graph(state.graph, state.model, call)
            worst = max(worst, _worst(state.model, call, expected))
            if not worst <= _same(expected):
                raise FxpruneError(
                    f"the outputs of the pruned module and of its graph differ by {worst:.3g}",
                    "this is a bug in fxprune; please report it with the module",
                )
        return worst

    def _macs(self, graph: Graph) -> int:
        traced = self.traced.graph.extents.get("b")
        return macs(graph) * (self.call.batch or 1) // traced if traced else macs(graph)

    def _execute(self, graph: Graph, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """All outputs of a graph and all outputs of a module on the example, as two vectors."""
        expected = self._run_graph(graph, module, self.call)
        return _vector(expected), _vector(run(module, self.call))

    def _run_graph(self, graph: Graph, module: nn.Module, call: Call) -> list[torch.Tensor]:
        """All outputs of a rewritten graph with the tensors of a module.

        Raises:
            FxpruneError: the graph does not run. A possible cause: a width became equal to the number of samples in
                the trace, and the graph cannot tell the two numbers apart.
        """
        smaller = self._graph_module(graph, self.traced, _tensors(module))
        try:
            return run(smaller, call)
        except FxpruneError as error:
            raise FxpruneError(
                f"the graph of the pruned {error.message}", "give an example with a single sample, or another ratio"
            ) from error

    def _rebuild(self, graph: Graph, tensors: Mapping[str, torch.Tensor], reason: str) -> nn.Module:
        self.rebuilt_because = reason
        return follow_mode(self._graph_module(graph, self.traced, tensors))


def _placeholders(call: Call, graph: fx.Graph) -> list[fx.Node]:
    """Make the arguments of the module, and return the tensors in them. Other values are fixed as in the example."""
    found: list[fx.Node] = []

    def walk(node: fx.Node, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(node)
        elif isinstance(value, Mapping | list | tuple):
            for key in value if isinstance(value, Mapping) else range(len(value)):
                walk(graph.call_function(operator.getitem, (node, key)), value[key])

    for name, value in call.bound.items():
        has_tensor = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
        walk(graph.placeholder(name) if has_tensor else graph.placeholder(name, default_value=None), value)
    return found


def _arrangement(model: nn.Module, call: Call) -> Callable[[list[fx.Node]], Any]:
    """A function that arranges the outputs of the graph as the module returns them, in dicts and tuples."""
    with torch.no_grad():
        output = _plain(model(*call.args, **call.kwargs))
    leaves, spec = pytree.tree_flatten(output)

    def arrange(nodes: list[fx.Node]) -> Any:
        rest = iter(nodes)
        return pytree.tree_unflatten([next(rest) if isinstance(x, torch.Tensor) else x for x in leaves], spec)

    return arrange


def _plain(output: Any) -> Any:
    if isinstance(output, Mapping):
        return {key: _plain(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return tuple(_plain(value) for value in output)
    return output


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _worst(module: nn.Module, call: Call, expected: Sequence[torch.Tensor]) -> float:
    got = run(module, call)
    if len(got) != len(expected):
        return float("inf")
    return max(_difference(a, b) for a, b in zip(got, expected, strict=True))


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    if got.numel() == 0 or torch.equal(got, expected):
        return 0.0
    return relative_difference(got, expected)


def _same(outputs: Sequence[torch.Tensor]) -> float:
    return max(SAME.get(tensor.dtype, 0.05) for tensor in outputs)


def _vector(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in outputs])
