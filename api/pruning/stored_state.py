"""What a stage holds of a state: what does not follow from the model and from the decisions of passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from ...ir.errors import FxpruneError
from ...passes.base import Pass
from ...passes.calibrate.written_text import Joined
from ...passes.changes import changed_values, kept_digest, put_values, structure_digest
from ...passes.data import is_inputs
from ...passes.manager import Analysis
from ...passes.recover.adapters import Adapter
from ...passes.redo import redo
from ...passes.score_cache import ScoreCache
from ...passes.state import Finished, State
from ...passes.structure import DECISIONS
from ...runtime.streaming.block_runner import BlockRunner

ADAPTER_OBJECT = "fxprune.adapter"
"""The only key of an object that stands for an :class:`~fxprune.passes.recover.lora.Adapter`."""

SUBJECT = "subject"
COPIES: tuple[Literal["model", "same_layers"], ...] = ("model", "same_layers")
"""The model that is pruned, and the copies of it in :class:`~fxprune.passes.state.Before`."""

JsonData = dict[str, Any]


@dataclass(frozen=True)
class StoredState:
    """A state between two passes, without what is made anew.

    Attributes:
        structure, kept: digests of what is made anew, see :func:`~fxprune.passes.changes.structure_digest` and
            :func:`~fxprune.passes.changes.kept_digest`.
        finished: the passes that have run.
        changed, values: of the model and of its copies: names of the tensors whose values passes may have changed, and
            those values.
        report, written, scores: as in :class:`~fxprune.passes.state.Ledger`.
    """

    structure: str
    kept: str
    finished: list[Finished]
    changed: dict[str, frozenset[str]]
    values: dict[str, dict[str, torch.Tensor]]
    report: dict[str, Any]
    written: list[tuple[int, torch.Tensor]]
    scores: ScoreCache | None

    @classmethod
    def of(cls, state: State, rest: Sequence[Pass]) -> StoredState:
        """What is to be stored of a state.

        Args:
            state: after a pass.
            rest: the passes that have not run. Copies of the model are stored only for these.
        """
        ledger, before = state.ledger, state.before
        needed = [copy for copy in COPIES if any(copy in step.looks_back_at for step in rest)]
        if before.same_layers is before.model and needed == list(COPIES):
            needed.remove("same_layers")
        models = {SUBJECT: state.subject.runner} | {copy: before.runner(copy) for copy in needed}
        changed = {SUBJECT: ledger.changed, **before.changed}
        return cls(
            structure=structure_digest(state),
            kept=kept_digest(state.subject.model, ledger.changed),
            finished=list(ledger.finished),
            changed=changed,
            values={part: changed_values(m, changed[part]) for part, m in models.items() if m is not None},
            report=dict(ledger.report),
            written=list(ledger.written),
            scores=ledger.scores,
        )

    def restore(self, state: State, done: Sequence[Pass], rest: Sequence[Pass], analyses: Sequence[Analysis]) -> None:
        """Make of a state at the start of a run what it was when it was stored.

        Args:
            state: is changed.
            done, rest: the passes that have run, and the others.
            analyses: the analyses that passes may need.

        Raises:
            FxpruneError: what is stored does not fit the passes or the model, or gives something else than it did then.
        """
        redo(done, self.finished, state, rest=rest, analyses=analyses)
        if structure_digest(state) != self.structure:
            raise FxpruneError("what the finished passes did gives another model now")
        if kept_digest(state.subject.model, self.changed[SUBJECT]) != self.kept:
            raise FxpruneError("the weights that no pass has changed are others now")
        before, ledger = state.before, state.ledger
        for part, values in self.values.items():
            put_values(_runner_of(state, part), values)
        before.changed = {copy: self.changed[copy] for copy in COPIES if copy in self.changed}
        ledger.changed, ledger.report, ledger.written = self.changed[SUBJECT], self.report, self.written
        ledger.scores = self.scores
        for first, windows in self.written:
            given = state.data.calibration
            assert not is_inputs(given), "generate, which wrote them, refuses inputs"
            state.data.calibration = Joined(given, first, windows)

    def to_json(self) -> JsonData:
        """As JSON data, in which tensors and arrays stand too."""
        return {
            "structure": self.structure,
            "kept": self.kept,
            "finished": [
                {"name": one.name, "decisions": [{"name": d.name, **d.to_json()} for d in one.decisions]}
                for one in self.finished
            ],
            "changed": {part: sorted(names) for part, names in self.changed.items()},
            "values": self.values,
            "report": {name: _packed(entry) for name, entry in self.report.items()},
            "written": self.written,
            "scores": None if self.scores is None else asdict(self.scores),
        }

    @classmethod
    def from_json(cls, data: JsonData) -> StoredState:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: for other data.
        """
        scores = data["scores"]
        return cls(
            structure=data["structure"],
            kept=data["kept"],
            finished=[_finished(one) for one in data["finished"]],
            changed={part: frozenset(names) for part, names in data["changed"].items()},
            values={part: dict(data["values"][part]) for part in (SUBJECT, *COPIES) if part in data["values"]},
            report={name: _unpacked(entry) for name, entry in data["report"].items()},
            written=[(int(first), windows.clone()) for first, windows in data["written"]],
            scores=None if scores is None else ScoreCache(**scores | {"arrays": _copied(scores["arrays"])}),
        )


def _runner_of(state: State, part: str) -> BlockRunner:
    found = (
        state.subject.runner if part == SUBJECT else state.before.runner("model" if part == "model" else "same_layers")
    )
    if found is None:
        raise FxpruneError(f"there is no model for the values of '{part}'")
    return found


def _finished(data: Mapping[str, Any]) -> Finished:
    kinds = {kind.name: kind for kind in DECISIONS}
    return Finished(data["name"], tuple(kinds[made["name"]].from_json(made) for made in data["decisions"]))


def _copied(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays that do not depend on the file that they were read from."""
    return {name: np.array(array) for name, array in arrays.items()}


def _packed(entry: Mapping[str, Any]) -> JsonData:
    return {
        name: {ADAPTER_OBJECT: vars(value)} if isinstance(value, Adapter) else value for name, value in entry.items()
    }


def _unpacked(entry: Mapping[str, Any]) -> JsonData:
    return {
        name: Adapter(
            value[ADAPTER_OBJECT]["config"], {key: t.clone() for key, t in value[ADAPTER_OBJECT]["tensors"].items()}
        )
        if isinstance(value, dict) and ADAPTER_OBJECT in value
        else value
        for name, value in entry.items()
    }
