"""What prune_module made of a module: for the caller, for JSON, and for the record in the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ...backends.pt2.save import SavableModule, SavedModule, save_module
from ...backends.recipe import TRAINED
from ...ir.plan import Plan
from ...passes.manager import StepRecord
from ..pruning.group_change import GroupChange
from ..request_checks import check_paths
from ..shown import InOneLine, sizes
from .asked import digest_of


@dataclass(frozen=True, repr=False)
class Pruned(InOneLine):
    """A smaller module.

    Attributes:
        module: the result, in the training mode of the original.
        in_place: whether it is the original's own class, repaired; otherwise it is a ``torch.fx.GraphModule``.
        rebuilt_because: why the original's forward does not hold at the smaller widths; empty when it does.
        fixed_batch: why it runs at the number of samples of the example only; empty when any number will do.
        pipeline: the passes that ran, as text.
        options: the same with every option, those at their defaults too.
        parameters: elements of all parameters, before and after.
        macs: multiply-accumulates of one run on the example inputs, before and after.
        groups: those that lost units.
        plan: what was removed.
        worst_difference: of the module's outputs from those of the rewritten graph, relative to their scale.
        steps: passes and analyses with their times.
        report: what the passes recorded, by pass name.
        asked: what the module was pruned with, as :func:`~.asked.asked_for` says it.
        source: the name of the module that was given and the sha256 of its tensors.
        digest: the sha256 of the tensors of ``module`` as they were then.
        product: what :meth:`save` writes.
    """

    module: nn.Module
    in_place: bool
    rebuilt_because: str
    fixed_batch: str
    pipeline: str
    options: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    groups: tuple[GroupChange, ...]
    plan: Plan
    worst_difference: float
    steps: tuple[StepRecord, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    product: SavableModule | None = field(default=None, repr=False)

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{sizes(self.parameters)} by {self.pipeline}; see .module, .groups, .report and .save(DIRECTORY)"

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**self.to_record(), "steps": [step.to_json() for step in self.steps]}

    def to_record(self) -> dict[str, Any]:
        """The content of ``fxprune.json``. It holds no times, so that the same run gives the same bytes."""
        return {
            "pipeline": self.options,
            "asked": dict(self.asked),
            "source": dict(self.source),
            "form": "module" if self.in_place else "graph",
            "rebuilt_because": self.rebuilt_because,
            "fixed_batch": self.fixed_batch,
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "macs": {"before": self.macs[0], "after": self.macs[1]},
            "groups": [change.to_json() for change in self.groups],
            "worst_difference": self.worst_difference,
            "passes": dict(self.report),
        }

    def save(self, out: str | Path, *, force: bool = False) -> SavedModule:
        """Write ``model.safetensors``, ``model.pt2``, ``fxprune.plan`` and ``fxprune.json``, and check them in a
        fresh process. The current weights are written, so the module may have been trained since it was pruned.

        Raises:
            RequestError: ``out`` cannot be written.
            FxpruneError: the module cannot be exported, or the written files do not compute the same outputs.
        """
        check_paths(out=out)
        assert self.product is not None
        report = self.to_record()
        if self.digest and digest_of(self.module) != self.digest:
            report[TRAINED] = True
        return save_module(self.product, Path(out), report=report, force=force)
