"""Scores kept in a file: computed once, then used for any budget, and refused when they do not fit the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..ir.errors import RequestError
from ..runtime.streaming.block_runner import BlockRunner
from ..runtime.tensors import first_names
from .data import Inputs, is_inputs

if TYPE_CHECKING:
    from .data import Calibration, Corpus, InputSet, Scores

BUDGET = frozenset({"ratio", "target", "by", "moves", "multiple_of", "runtime", "tolerance"})
"""Options that decide how much is removed and do not change the scores."""

SCOPE = frozenset({"layers"})
"""Options that only say which groups are scored: where all of them are in the file, others did not change theirs."""

CURVE = "search "
"""Prefix of a group name, for what a search measured for the group: counts and distances, ``[2, probes]``."""

AGAIN = "give another FILE to --scores; the scores of this run are kept there"


@dataclass
class ScoreCache:
    """The scores of the first pruning pass of a pipeline, and what they were computed with.

    Attributes:
        name: name of the file, for messages.
        arrays: group name -> scores, float64; also what a search measured. Empty until they are computed.
        record: ``pass``, ``options`` and ``model`` of the computation, and the text windows that were ``read``.
        loaded: whether they come from a file, and so must fit this run.
        done: whether the first pruning pass of this run has used them.
        changed: whether something was added in this run.
    """

    name: str
    arrays: dict[str, Scores] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    loaded: bool = False
    done: bool = False
    changed: bool = False

    def scores(
        self,
        record: Mapping[str, Any],
        text: Calibration | None,
        names: Sequence[str],
        compute: Callable[[Calibration | None], Mapping[str, Scores]],
    ) -> Mapping[str, Scores]:
        """The scores of a pass: those that are kept if there are any, otherwise computed, and kept.

        Args:
            record: ``pass``, the ``options`` that matter, and ``model``, its :func:`fingerprint`.
            text: for calibration, None when the user gave none.
            names: of the groups whose scores are wanted.
            compute: computes them from the text that it is given.

        Raises:
            RequestError: when those that are kept are of another pass, model or text, or of other options or groups.
        """
        self.done = True
        if self.loaded:
            self._require(record, text, names)
            return {name: self.arrays[name] for name in names}
        recording = _recording(text)
        found = compute(recording)
        self.arrays = {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}
        self.changed = True
        self.record = {**record, "read": recording.read if recording is not None else []}
        return found

    def distances(self, name: str, counts: Sequence[int], compute: Callable[[], Sequence[float]]) -> Sequence[float]:
        """The model's distance from the dense model when one group keeps ``counts`` units and all others keep
        everything.

        Args:
            name: name of the group.
            counts: numbers of units.
            compute: measures the distances, if they are not known for these counts.
        """
        known = self.arrays.get(CURVE + name)
        if known is None or known.shape[1] != len(counts) or not np.array_equal(known[0], counts):
            known = np.array([counts, compute()], dtype=np.float64)
            self.arrays[CURVE + name] = known
            self.changed = True
        return [float(value) for value in known[1]]

    def remember(self, read: Sequence[dict[str, Any]]) -> None:
        """Also measurements were made on these windows or samples: they belong to the data from now on."""
        held = self.record.setdefault("read", [])
        fresh = [one for one in read if one not in held]
        held += fresh
        self.changed = self.changed or bool(fresh)

    def _require(self, record: Mapping[str, Any], text: Calibration | None, names: Sequence[str]) -> None:
        theirs = self.record
        if theirs["pass"] != record["pass"]:
            raise self._misfit(f"scores of {theirs['pass']!r}, but this run uses {record['pass']!r}", AGAIN)
        one_budget = "ratio" in record["options"] or "ratio" in theirs["options"]
        scope = frozenset() if one_budget else SCOPE  # which groups are missing is seen below
        changed = [
            f"{name}={theirs['options'].get(name)}, now {value}"
            for name, value in record["options"].items()
            if name not in scope and theirs["options"].get(name) != value
        ]
        if changed or theirs["options"].keys() != record["options"].keys():
            what = "; ".join(changed) or "the budget is of another kind"
            raise self._misfit(
                f"scores of {record['pass']!r} with other options: {what}",
                f"{AGAIN}; without --target and by=global, scores of {record['pass']} are valid for one ratio only"
                if one_budget
                else AGAIN,
            )
        if theirs["model"] != record["model"]:
            raise self._misfit("scores of another model or other weights", AGAIN)
        if theirs["read"] and text is None:
            raise self._misfit("scores that were computed on text; this run has none", "give the same --calib FILE")
        for read in theirs["read"]:
            if text is not None and not _reads_the_same(text, read):
                raise self._misfit(f"scores that were computed on another text, not on {text.name!r}", AGAIN)
        missing = [name for name in names if name not in self.arrays]
        if missing:
            raise self._misfit(f"no scores of {len(missing)} groups, such as {missing[0]}", AGAIN)

    def _misfit(self, what: str, hint: str) -> RequestError:
        return RequestError(f"{self.name} holds {what}", hint)


class RecordingCorpus:
    """A corpus that records which windows were read (recording corpus)."""

    def __init__(self, text: Corpus) -> None:
        self._text = text
        self.read: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The name of the text."""
        return self._text.name

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Windows of the text, as in :class:`~.base.Corpus`."""
        found = self._text.windows(length, count, seed)
        self.read.append({"length": length, "count": count, "seed": seed, "sha256": _digest(found)})
        return found

    def tokens(self) -> torch.Tensor:
        """All tokens of the text."""
        found = self._text.tokens()
        self.read.append({"length": None, "count": None, "seed": None, "sha256": _digest(found)})
        return found


class RecordingInputs:
    """A data set of inputs that records which samples were read."""

    def __init__(self, inputs: InputSet) -> None:
        self._inputs = inputs
        self.read: list[dict[str, Any]] = []
        self.name, self.labelled, self.divided = inputs.name, inputs.labelled, inputs.divided
        self.join = inputs.join

    def rows(self, length: int, count: int | None = None, seed: int | None = None) -> Sequence[Inputs]:
        """Samples of the data set, as in :class:`~.data.InputSet`."""
        found = self._inputs.rows(length, count, seed)
        self.read.append({"length": length, "count": count, "seed": seed, "sha256": _digest_of_rows(found)})
        return found


@contextmanager
def reading_for(cache: ScoreCache | None, data: Calibration | None) -> Iterator[Calibration | None]:
    """The data; what is read of it inside, for measurements that a cache keeps, is noted there."""
    recording = None if cache is None else _recording(data)
    yield data if recording is None else recording
    if cache is not None and recording is not None:
        cache.remember(recording.read)


def _recording(data: Calibration | None) -> RecordingCorpus | RecordingInputs | None:
    if data is None:
        return None
    return RecordingInputs(data) if is_inputs(data) else RecordingCorpus(data)


def _reads_the_same(data: Calibration, read: Mapping[str, Any]) -> bool:
    """Whether data has the same windows or samples. Reading them here counts as use of the data."""
    asked = read["length"], read["count"], read["seed"]
    try:
        if not is_inputs(data) and read["length"] is None:
            return bool(_digest(data.tokens()) == read["sha256"])
        found = _digest_of_rows(data.rows(*asked)) if is_inputs(data) else _digest(data.windows(*asked))
    except RequestError:  # too short
        return False
    return bool(found == read["sha256"])


def _digest_of_rows(rows: Sequence[Inputs]) -> str:
    found = hashlib.sha256()
    for row in rows:
        for name, value in sorted(row.items()):
            tensor = isinstance(value, torch.Tensor)
            found.update(f"{name} {_digest(value) if tensor else value!r} ".encode())
    return found.hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(str(list(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def fingerprint(runner: BlockRunner) -> str:
    """sha256 of the names, shapes, dtypes and values of a model's tensors, wherever they are."""
    found, first = hashlib.sha256(), first_names(runner.model)
    for name, tensor in sorted(runner.model.state_dict().items()):
        value = runner.value(first[name]) if tensor.is_meta else tensor.detach()
        found.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        found.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
