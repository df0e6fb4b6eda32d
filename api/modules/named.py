"""A module that is given by its name, ``package.module:callable``, with example inputs as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...backends.pt2.save import SavedModule, save_module
from ...ir.errors import FxpruneError, RequestError
from ...passes.base import PassKind
from ...passes.couple.coupling import couple
from ...passes.model.measure import parameter_count
from ...passes.pipeline import parse_pipeline
from ...passes.recover.base import Recovery
from ...passes.registry import all_passes
from ...runtime.tensors import own_copy
from ...tracer import module as modules
from ...tracer.export import Traced
from ...tracer.named_objects import is_target
from ..places import claim
from ..progress import Progress, silent
from ..pruning.asked_passes import check_data_trains, check_reads_no_text
from ..shown import InOneLine, sizes
from ..tracing import Trace
from .prune import DEFAULTS, Pruned, prune_module

EXAMPLE = "give its inputs, such as --example 'float32[2,3,224,224]'; separate several inputs with commas"
WITHOUT_LOSS = ("random", "magnitude")
LOSS_HINT = (
    "give --calib FILE.npz with inputs by name, or --loss package.module:function; it takes the module and returns a "
    "scalar"
)
TRAINING_DATA = "give --data FILE.npz with inputs by name, or --data package.module:function that yields batches"


@dataclass(frozen=True, repr=False)
class PrunedTarget(InOneLine):
    """The result of pruning a named module.

    Attributes:
        model: its name, as the user gave it.
        pruned: the result.
        saved: what was written; None in a dry run.
    """

    model: str
    pruned: Pruned
    saved: SavedModule | None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        where = "" if self.saved is None else f", in {self.saved.path}"
        return f"{self.model}, {sizes(self.pruned.parameters)} by {self.pipeline}{where}"

    @property
    def pipeline(self) -> str:
        """The passes that ran, as text; options at their defaults are left out."""
        return self.pruned.pipeline

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        saved = self.saved.to_json() if self.saved is not None else None
        return {"model": self.model, **self.pruned.to_json(), "saved": saved}


def is_named_module(model: str, example: str | None) -> bool:
    """Whether ``MODEL`` on the command line is ``package.module:callable``.

    Raises:
        RequestError: it is, and there are no example inputs.
    """
    named = is_target(model) and not Path(model).exists()
    if named and example is None:
        raise RequestError(f"missing --example INPUTS for {model}", EXAMPLE)
    return named


def refuse_options(model: str, options: Mapping[str, object]) -> None:
    """Refuse options that have no effect on a named module.

    Args:
        model: its name.
        options: name -> value; a true value means that the option was given.

    Raises:
        RequestError: at least one was given.
    """
    given = ["--" + name.replace("_", "-") for name, value in options.items() if value]
    if given:
        raise RequestError(
            f"{', '.join(given)}: only for Hugging Face models; {model} is a module",
            "leave it out",
        )


def trace_target(model: str, example: str, *, progress: Progress = silent) -> Trace:
    """Trace a named module and find its coupled groups.

    Args:
        model: ``package.module:callable``.
        example: its inputs, such as ``float32[2,3,224,224]``.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: the name or the inputs are not valid.
        FxpruneError: the module does not run on the inputs, or ``torch.export`` cannot trace it.
    """
    inputs = modules.parse_example(example)
    progress(f"building {model}")
    module = own_copy(modules.resolve_module(model)).eval()
    call = modules.bind(module, inputs)
    modules.run(module, call)
    progress(f"tracing {model}")
    traced = _traced(module, call)
    progress("finding groups")
    return Trace(model, traced, couple(traced.graph), parameter_count(module))


def _traced(module: nn.Module, call: modules.ForwardCall) -> Traced:
    """Trace for any number of samples where the module allows it, so that no width is confused with that number."""
    if call.batch is not None and call.batch > 1:
        try:
            return modules.trace_module(module, call, batch=True)
        except FxpruneError:
            pass
    return modules.trace_module(module, call, batch=False)


def prune_target(
    model: str,
    example: str,
    passes: Sequence[str],
    *,
    loss: str | None = None,
    calib: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    progress: Progress = silent,
    **shared: Any,
) -> PrunedTarget:
    """Make a named module smaller and write it.

    Args:
        model, example: ``package.module:callable``, and its inputs, such as ``float32[2,3,224,224]``.
        passes: pipeline texts that run one after the other.
        loss: ``package.module:function``, for scores that need one.
        calib, data: inputs that scores are computed on, or recovery trains on, as :func:`~.prune.prune_module` reads
            them from files and functions.
        out: the directory to make, complete or absent; may be left out in a dry run.
        force: whether an existing ``out`` is replaced.
        dry_run: write nothing.
        device: where it is pruned; the CPU when None.
        progress: told what is going on.
        shared: ``ratio``, ``layers``, ``within``, ``seed``, ``multiple_of``, ``runtime``, ``target``, ``tolerance``,
            ``channels``, for every pass that has such an option.

    Raises:
        RequestError: a mistake in the request.
        FxpruneError: the module cannot be traced, a pass failed, or what was written computes something else.
    """
    _check_passes(passes, shared, loss=loss, calib=calib, data=data)
    if out is None and not dry_run:
        raise RequestError("missing --out DIR", "give one, or --dry-run to write nothing")
    seen = None if out is None else claim(Path(out), force=force)
    inputs = modules.parse_example(example)
    progress(f"building {model}")
    module = modules.resolve_module(model)
    read: dict[str, Any] = {"loss": loss and modules.resolve_function(loss), "calib": calib, "data": data}
    pruned = prune_module(module, inputs, passes, device=device, progress=progress, **read, **shared)
    if out is None or dry_run:
        return PrunedTarget(model, pruned, None)
    progress(f"writing {out}")
    assert pruned.product is not None
    report = {"model": model, **pruned.to_record(), "source": {**pruned.source, "name": model}}
    return PrunedTarget(model, pruned, save_module(pruned.product, Path(out), report=report, force=force, seen=seen))


def refuse_both(loss: str | None, calib: str | None) -> None:
    """Refuse calibration data beside a loss."""
    if loss is not None and calib is not None:
        raise RequestError("--calib has no effect with --loss, which brings its own data", "leave out one of the two")


def _check_passes(
    passes: Sequence[str], shared: Mapping[str, Any], *, loss: str | None, calib: str | None, data: str | None
) -> None:
    """Check the passes and their options before the module is built."""
    if not passes:
        raise RequestError("missing --pass PIPELINE", "give one, such as --pass magnitude")
    pipeline = parse_pipeline(passes, all_passes(), shared, defaults=DEFAULTS)
    check_reads_no_text(pipeline)
    check_data_trains(pipeline, data)
    refuse_both(loss, calib)
    blind = [step.name for step in pipeline if step.kind == PassKind.SCORE and step.name not in WITHOUT_LOSS]
    if loss is None and calib is None and blind:
        raise RequestError(f"{blind[0]} scores need a loss or calibration data", LOSS_HINT)
    untaught = [step.name for step in pipeline if isinstance(step, Recovery)]
    if data is None and untaught:
        raise RequestError(f"{untaught[0]} has no data to train on", TRAINING_DATA)
