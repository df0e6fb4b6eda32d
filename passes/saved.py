"""Scores that outlast a run: computed once, used for any budget, and refused where they do not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..ir.errors import RequestError

if TYPE_CHECKING:
    from .data import Corpus, Scores

BUDGET = frozenset({"ratio", "target", "by", "moves", "multiple_of"})
"""Options that say how much goes, not what units are worth."""

CURVE = "search "
"""Before the name of a group: what a search measured of it, counts and distances ``[2, probes]``."""

AGAIN = "give another file, in which the scores of this run will be kept"


@dataclass
class Saved:
    """The scores of the first pass of a pipeline that scores units on text, and what they hold for.

    Attributes:
        name: of the file, for messages.
        arrays: group name -> scores, float64; and what a search measured. Empty until a run has filled it.
        record: ``pass``, ``options`` and ``model`` that they were computed with, and the windows that were ``read``.
        loaded: whether they come from a file, and so must fit.
        done: whether the pass of this run has come.
        changed: whether it holds what it did not hold at first.
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
        text: Corpus | None,
        names: Sequence[str],
        compute: Callable[[Corpus | None], Mapping[str, Scores]],
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
        witness = Witness(text) if text is not None else None
        found = compute(witness)
        self.arrays = {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}
        self.changed = True
        self.record = {**record, "read": witness.read if witness is not None else []}
        return found

    def distances(self, name: str, counts: Sequence[int], compute: Callable[[], Sequence[float]]) -> Sequence[float]:
        """How far the model is from the dense one when a group keeps so many of its units and all others are whole.

        Args:
            name: of the group, whose scores are kept here.
            counts: of units.
            compute: measures them, where these counts have not been.
        """
        known = self.arrays.get(CURVE + name)
        if known is None or known.shape[1] != len(counts) or not np.array_equal(known[0], counts):
            known = np.array([counts, compute()], dtype=np.float64)
            self.arrays[CURVE + name] = known
            self.changed = True
        return [float(value) for value in known[1]]

    def _require(self, record: Mapping[str, Any], text: Corpus | None, names: Sequence[str]) -> None:
        theirs = self.record
        if theirs["pass"] != record["pass"]:
            raise self._misfit(f"scores of {theirs['pass']!r}, and this run scores with {record['pass']!r}", AGAIN)
        changed = [
            f"{name}={theirs['options'].get(name)}, now {value}"
            for name, value in record["options"].items()
            if theirs["options"].get(name) != value
        ]
        if changed or theirs["options"].keys() != record["options"].keys():
            what = "; ".join(changed) or "of another kind of budget"
            raise self._misfit(
                f"scores of {record['pass']!r} with other options: {what}",
                f"{AGAIN}; scores of {record['pass']} without --target or by=global hold for one ratio only"
                if "ratio" in record["options"] or "ratio" in theirs["options"]
                else AGAIN,
            )
        if theirs["model"] != record["model"]:
            raise self._misfit("scores of another model, or of other weights", AGAIN)
        if theirs["read"] and text is None:
            raise self._misfit("scores that were computed on text", "give --calib with the same text")
        for read in theirs["read"]:
            if text is not None and not _reads_the_same(text, read):
                raise self._misfit(f"scores that were computed on another text than {text.name!r}", AGAIN)
        missing = [name for name in names if name not in self.arrays]
        if missing:
            raise self._misfit(f"no scores of {len(missing)} groups, {missing[0]} for one", AGAIN)

    def _misfit(self, what: str, hint: str) -> RequestError:
        return RequestError(f"{self.name} holds {what}", hint)


class Witness:
    """A text that writes down which windows were read of it."""

    def __init__(self, text: Corpus) -> None:
        self._text = text
        self.read: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The text's."""
        return self._text.name

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """The text's."""
        found = self._text.windows(length, count, seed)
        self.read.append({"length": length, "count": count, "seed": seed, "sha256": _digest(found)})
        return found


def _reads_the_same(text: Corpus, read: Mapping[str, Any]) -> bool:
    """Reading them is noted by the text, as it would be had they been used."""
    try:
        return _digest(text.windows(read["length"], read["count"], read["seed"])) == read["sha256"]
    except RequestError:  # too short
        return False


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(str(list(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes()).hexdigest()


def fingerprint(model: torch.nn.Module) -> str:
    """sha256 of the names, shapes and values of a model's tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
