"""The result of ``apply``: for the caller, as JSON, and as the record in the artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backends.huggingface import Saved
from ..passes.manager import Step
from .texts import TEXTS, Entries


@dataclass(frozen=True)
class GroupChange:
    """A group from which units were removed.

    Attributes:
        name, kind, layer: of the group.
        before, after: number of its units; of a nested group, summed over all units of its parent.
    """

    name: str
    kind: str
    layer: int | None
    before: int
    after: int


@dataclass(frozen=True)
class Applied:
    """The result of a pipeline on a model.

    Attributes:
        model: the model as the user gave it.
        pipeline: the passes that ran, as text.
        options: the same with the value of every option, defaults included.
        skipped: passes that a dry run left out, as text.
        parameters: number of parameters before and after.
        groups: the groups from which units were removed.
        steps: passes and analyses with their times.
        report: what each pass reported, by pass name.
        texts: fingerprints of the texts that were read; ``eval`` refuses to measure the model on them.
        saved: what was written; None in a dry run.
        resumed: the last pass that an interrupted run had finished; "" when no run was resumed.
    """

    model: str
    pipeline: str
    options: str
    skipped: str
    parameters: tuple[int, int]
    groups: tuple[GroupChange, ...]
    steps: tuple[Step, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    texts: Entries = field(default_factory=list)
    saved: Saved | None = None
    resumed: str = ""

    @property
    def kept(self) -> float:
        """Share of the parameters that was kept."""
        return self.parameters[1] / self.parameters[0]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        data = {
            **self.record(),
            "model": self.model,
            "passes": dict(self.report),
            "skipped": self.skipped,
            "resumed": self.resumed,
            "steps": [dataclasses.asdict(step) for step in self.steps],
        }
        saved = {**dataclasses.asdict(self.saved), "path": str(self.saved.path)} if self.saved else None
        return data | {"saved": saved}

    def record(self) -> dict[str, Any]:
        """The content of ``fxprune.json``. It holds no times, so that the same run gives the same bytes."""
        return {
            # The path to the model depends on the machine, so only its last part is kept.
            "model": Path(self.model).name if Path(self.model).is_dir() else self.model,
            "pipeline": self.options,
            "parameters": {"before": self.parameters[0], "after": self.parameters[1]},
            "groups": [dataclasses.asdict(change) for change in self.groups],
            "passes": {
                name: {key: value for key, value in entry.items() if key != "seconds"}
                for name, entry in self.report.items()
            },
            TEXTS: self.texts,
        }
