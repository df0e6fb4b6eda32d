"""The result of ``apply``: for the caller, as JSON, and as the record in the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backends.huggingface.save import SavedModel
from ...backends.huggingface.serving import FEWER_HEADS, serving_remarks
from ...ir.groups import HEAD_KINDS
from ...passes.manager import StepRecord
from ...runtime.place.placement import Placement
from ..inputs.seen_texts import TEXTS, Entries
from ..shown import InOneLine, sizes
from .group_change import GroupChange


@dataclass(frozen=True, repr=False)
class Applied(InOneLine):
    """What a pipeline did.

    Attributes:
        model: as the user gave it.
        pipeline: the passes that ran, as text.
        options: the same with every option, those at their defaults too.
        skipped: passes that a dry run left out, as text.
        parameters: elements of all parameters, before and after.
        macs: multiply-accumulates of one call with the example inputs of the trace, before and after.
        groups: those that lost units.
        steps: passes and analyses with their times.
        report: what the passes recorded, by pass name.
        texts: fingerprints of what was read, so that no text is measured on that a model has seen.
        saved: what was written; None in a dry run.
        resumed: the last pass that had been done by a run which broke off; "" when there was none.
        plugins: the passes that installed packages bring -> package and version.
        placement: where it ran.
        call: the inputs that ``macs`` are of, with their shapes; "" where they are not known.
        whole: what could not run block by block: path of a list of blocks, or "" for the model -> why.
        unread: arguments with data that no pass read, such as ``calib``.
    """

    model: str
    pipeline: str
    options: str
    skipped: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    groups: tuple[GroupChange, ...]
    steps: tuple[StepRecord, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    texts: Entries = field(default_factory=list)
    saved: SavedModel | None = None
    resumed: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None
    whole: Mapping[str, str] = field(default_factory=dict)
    call: str = ""
    unread: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        where = "" if self.saved is None else f", in {self.saved.path}"
        return f"{self.model}, {sizes(self.parameters)} by {self.pipeline}{where}"

    @property
    def kept(self) -> float:
        """Share of the parameters that was kept."""
        return self.parameters[1] / self.parameters[0]

    @property
    def serving(self) -> list[str]:
        """What servers need for a model in the free form, by what it lacks."""
        if self.saved is None or self.saved.form != "free":
            return []
        heads = any(change.kind in {kind.value for kind in HEAD_KINDS} for change in self.groups)
        kinds = {*self.saved.unlike, *([FEWER_HEADS] if heads else [])}
        return serving_remarks(str(self.saved.checks.get("loaded_by")), kinds)

    def _repr_html_(self) -> str:
        """What a notebook shows: what `fxprune report` says of the result, without what was measured elsewhere."""
        from ..pages.page import ShownRun, fragment, run_at

        if self.saved is None:
            return fragment(ShownRun(self.model, self.to_record()))
        record = {**self.to_record(), "checks": dict(self.saved.checks), "form": self.saved.form}
        return fragment(run_at(self.saved.path, {**record, "model_type": self.saved.model_type}))

    def to_json(self) -> dict[str, Any]:
        """As JSON data: what ``fxprune.json`` keeps, with the model as the user gave it, the times and what was
        written."""
        return {
            **self.to_record(),
            "model": self.model,
            "passes": dict(self.report),
            "skipped": self.skipped,
            "unread": list(self.unread),
            "resumed": self.resumed,
            "placement": self.placement.to_json() if self.placement else None,
            "whole": dict(self.whole),
            "steps": [step.to_json() for step in self.steps],
            "saved": self.saved.to_json() if self.saved else None,
            "serving": self.serving,
        }

    def to_record(self) -> dict[str, Any]:
        """The content of ``fxprune.json``. It holds no times, so that the same run gives the same bytes."""
        return {
            # The path to the model depends on the machine, so only its last part is kept.
            "model": Path(self.model).name if Path(self.model).is_dir() else self.model,
            "pipeline": self.options,
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "macs": {"before": self.macs[0], "after": self.macs[1], **({"of": self.call} if self.call else {})},
            "groups": [change.to_json() for change in self.groups],
            "passes": {
                name: {key: value for key, value in entry.items() if key != "seconds"}
                for name, entry in self.report.items()
            },
            TEXTS: self.texts,
            **({"plugins": dict(self.plugins)} if self.plugins else {}),
        }
