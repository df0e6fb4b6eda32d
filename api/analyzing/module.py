"""``analyze`` of a module that is no model of transformers."""

from __future__ import annotations

from typing import Any

from ...ir.errors import RequestError
from ...passes.analyze.analyze import BOUND, Analyze, scoring_pass
from ...passes.pipeline import print_pass
from ...tracer import module as modules
from ..modules.named import LOSS_HINT, refuse_both
from ..modules.prune import DEFAULTS, run_passes
from ..progress import Progress, silent
from .next_command import Asked
from .result import AnalysisResult


def analyze_target(
    model: str,
    example: str,
    passes: str,
    *,
    loss: str | None = None,
    calib: str | None = None,
    bound: float = BOUND,
    measure: str = "params",
    device: str | None = None,
    progress: Progress = silent,
) -> AnalysisResult:
    """Measure what cuts of a named module cost, and find a budget.

    Args:
        model, example, loss, calib, device, progress: as in :func:`~fxprune.api.modules.named.prune_target`.
        passes, bound, measure: as in :func:`~.request.analyze`.

    Raises:
        RequestError: a mistake in the request, or nothing can be cut or measured.
        FxpruneError: the module cannot be traced, or a distance is not finite.
    """
    step = Analyze(scores=print_pass(scoring_pass(passes, DEFAULTS)), bound=bound, measure=measure)
    step.check()
    refuse_both(loss, calib)
    if loss is None and calib is None:
        raise RequestError("analyze measures by calibration data or a loss", LOSS_HINT)
    inputs = modules.parse_example(example)
    progress(f"building {model}")
    module = modules.resolve_module(model)
    read: dict[str, Any] = {"loss": loss and modules.resolve_function(loss), "calib": calib, "data": None}
    done = run_passes(module, inputs, (step,), device=device, progress=progress, **read)
    asked = Asked(model, calib, None, {"example": example, "loss": loss, "device": device}, plain=False)
    return AnalysisResult(model, done.parameters[0], done.macs[0], done.report[step.name], asked)
