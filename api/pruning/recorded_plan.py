"""``--plan``: a plan that another run wrote, checked against the model that it will be applied to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backends.artifact import RECORD, plan_file, read_plan, read_record, read_sizes
from ...backends.digests import sha256, source_digests
from ...ir.errors import FxpruneError, RequestError
from ...ir.plan import Indices
from ...tracer.model import ModelSource


@dataclass(frozen=True)
class Recorded:
    """A plan file and the record beside it.

    Attributes:
        path: the plan file.
        sha256: the hash of that file.
        slices: (tensor name, dimension) -> indices that are kept.
        sizes: (tensor name, dimension) -> how many indices there were; empty where the plan does not say it.
        record: the ``fxprune.json`` beside it; empty when there is none.
        origin: the sha256 of each weight file of the model, if they had to be computed here.
    """

    path: Path
    sha256: str
    slices: Mapping[tuple[str, int], Indices]
    sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] | None = None

    def check_source(self, shapes: Mapping[str, Sequence[int]], parameters: int) -> None:
        """Check that the model has the sizes of the one that the plan was made for: the indices of a narrower one fit
        a wider one, but keep what they were never meant to.

        Args:
            shapes: of its parameters, by name.
            parameters: their number.

        Raises:
            RequestError: it is of another size.
        """
        for (name, dim), size in sorted(self.sizes.items()):
            if dim < len(shapes.get(name, ())) and shapes[name][dim] != size:
                raise RequestError(
                    f"{self.path} was made for another model: dimension {dim} of '{name}' has {shapes[name][dim]:,} "
                    f"indices here, and had {size:,} there",
                    "give a plan of the same architecture and sizes",
                )
        theirs = (self.record.get("parameters") or {}).get("before")
        if theirs not in (None, parameters):
            raise RequestError(
                f"{self.path} was made for another model: of {theirs:,} parameters, where this one has {parameters:,}",
                "give a plan of the same architecture and sizes; or, if they differ only where the plan cuts nothing, "
                f"copy it away from its {RECORD}",
            )

    def check_result(self, parameters: int) -> None:
        """Check that the model has shrunk to the same size as in the run that made the plan.

        Args:
            parameters: how many there are now.

        Raises:
            FxpruneError: the run that made the plan ended at another size.
        """
        theirs = self.record.get("parameters") or {}
        if theirs.get("after") not in (None, parameters):
            raise FxpruneError(
                f"{self.path} leaves {parameters:,} parameters, but the run that made it left {theirs['after']:,}",
                f"a plan holds no dropped layers; run the whole pipeline instead: {self.record.get('pipeline')}",
            )


def read_recorded(plan: str | Path, source: ModelSource) -> Recorded:
    """Read a plan, and check that the model is the one it was made from.

    Args:
        plan: a plan file, or the directory of an artifact.
        source: the model that it will be applied to.

    Raises:
        RequestError: the file is missing, damaged or not a plan; or the plan was made from a model directory of this
            name with other weights.
    """
    path = plan_file(Path(plan).expanduser())
    slices = read_plan(path)
    record = read_record(path.parent) if (path.parent / RECORD).is_file() else {}
    absent = (record.get("passes") or {}).get("drop", {}).get("sub_blocks", ())
    if absent:
        gone = ", ".join(part["module"] for part in absent)
        raise RequestError(
            f"{path} is from a run that dropped {gone}; a plan cannot repeat that",
            f"run its pipeline instead: {record.get('pipeline')}",
        )
    moved = [name for name, report in (record.get("passes") or {}).items() if report.get("reordered")]
    if moved:
        raise RequestError(
            f"{path} is from a run of {moved[0]}, which reordered the channels of every expert: the plan alone does "
            "not say which ones went",
            f"run its pipeline instead: {record.get('pipeline')}",
        )
    origin = record.get("source") or {}
    found = None
    if origin.get("sha256") and origin.get("name") == source.origin.resolve().name:
        found = source_digests(source.origin)
        made_from = origin["sha256"]
        changed = [name for name in sorted({**found, **made_from}) if found.get(name) != made_from.get(name)]
        if changed:
            raise RequestError(
                f"{source.origin} has changed since {path} was made: {', '.join(changed[:3])}",
                f"restore these files; or, to apply the plan to other weights, copy it away from its {RECORD}",
            )
    return Recorded(path, sha256(path), slices, read_sizes(path), record, found)


def origin_of(source: ModelSource, recorded: Recorded | None) -> Mapping[str, str] | None:
    """The sha256 of the files that the user gave, if they are known, or are not those that were pruned; else None."""
    if recorded is not None and recorded.origin is not None:
        return recorded.origin
    return None if source.unmerged is None else source_digests(source.unmerged)
