"""``analyze``: measure what every cut of a model costs, and find a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...passes.analyze.analyze import BOUND, Analyze
from ...passes.base import Pass
from ...runtime.place.choices import AUTO
from ...runtime.place.placement import PlacementRequest
from ...runtime.ranks import ALONE
from ..inputs.reading import GivenReading, Readings
from ..inputs.seen_texts import record_of
from ..progress import Progress, silent
from ..pruning.request import ApplyRequest
from ..request_checks import GivenData, Model, is_path
from .next_command import Asked
from .result import AnalysisResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnalysisResult", "analyze"]


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(ApplyRequest):
    """A request of ``apply`` whose one pass measures.

    Attributes:
        step: that pass.
    """

    step: Analyze

    def _asked(self) -> tuple[Pass, ...]:
        return (self.step,)


def analyze(
    model: Model,
    scored_by: str = "taylor",
    *,
    calib: GivenData | None = None,
    bound: float = BOUND,
    measure: str = "params",
    scores: str | Path | None = None,
    field: GivenReading = None,
    split: GivenReading = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    example: str | None = None,
    loss: str | Callable[[torch.nn.Module], torch.Tensor] | None = None,
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    offload: str = AUTO,
    max_memory: str | int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> AnalysisResult:
    """Measure what cuts of single groups, layers and parts of layers cost, and find a budget. The model stays.

    Args:
        model: as in :func:`fxprune.apply`.
        calib, field, split, tokenizer, example, loss: as there.
        device, dtype, offload, max_memory, trust_remote_code, allow_pickle, merge_adapter: as there.
        progress: as there.
        scored_by: pipeline text of one pruning pass, whose scores say which units go first.
        bound: the distance from the dense model that the recommended budget stays within: nats per token for text.
        measure: what a budget counts: ``params``, ``bytes`` or ``macs``.
        scores: a file for scores and measurements, which ``apply`` then uses with the same pass; as there.

    Raises:
        RequestError: a mistake in the request, or nothing can be cut or measured.
        FxpruneError: a distance that is not finite.
    """
    where = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    (step := Analyze(scores=scored_by, bound=bound, measure=measure)).check()
    done = AnalyzeRequest(step=step, model=model, passes=(), plan=None, out=None, shared={}, tokenizer=tokenizer,
        calib=calib, data=None, readings=Readings.parse(field, split), scores=scores, example=example, loss=loss,
        force=False, resume=False, dry_run=True, form="auto", place=where, trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle, merge_adapter=merge_adapter, print_ir_after=(), progress=progress, ranks=ALONE,
        sizes=None).run()  # fmt: skip
    flags: dict[str, Any] = {"field": field, "split": split, "example": example, "loss": loss, "device": device,
        "dtype": dtype, "offload": offload, "max-memory": max_memory, "trust-remote-code": trust_remote_code,
        "allow-pickle": allow_pickle, "merge-adapter": merge_adapter}  # fmt: skip
    asked = Asked(str(model) if is_path(model) else "MODEL", calib, scores, flags, plain=not _is_free(model))
    return AnalysisResult(done.model, done.parameters[0], done.macs[0], done.report[step.name], asked, done.placement)


def _is_free(model: Model) -> bool:
    """Whether a model is a directory that fxprune wrote in free form."""
    return is_path(model) and record_of(Path(str(model))).get("form") == "free"
