"""A plan that another run wrote, checked against the model it is to be carried out on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..backends.artifact import PLAN, RECORD, read_plan, read_record
from ..backends.digests import sha256, source_digests
from ..ir.errors import FxpruneError, RequestError
from ..ir.plan import Indices
from ..tracer.model import Source


@dataclass(frozen=True)
class Recorded:
    """A plan file, and what stands beside it.

    Attributes:
        path: of the plan file.
        sha256: of the plan file.
        slices: (tensor name, dimension) -> indices that stay.
        record: the ``fxprune.json`` beside it, empty when there is none.
        origin: sha256 of the weights the plan is to be applied to, when they had to be computed.
    """

    path: Path
    sha256: str
    slices: Mapping[tuple[str, int], Indices]
    record: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] | None = None

    def check_result(self, parameters: tuple[int, int]) -> None:
        """Refuse a result of another size than the run that made the plan reached from the same size.

        Raises:
            FxpruneError: naming the passes of that run.
        """
        theirs = self.record.get("parameters") or {}
        if theirs.get("before") == parameters[0] and theirs.get("after") not in (None, parameters[1]):
            raise FxpruneError(
                f"{self.path} leaves {parameters[1]:,} parameters, but the run that made it left {theirs['after']:,}",
                f"it ran {self.record.get('pipeline')}: a plan holds what became narrower, not layers that went",
            )


def read_recorded(plan: str | Path, source: Source) -> Recorded:
    """Read a plan, and refuse a source that is no longer what the plan was made from.

    Args:
        plan: a plan file, or the directory of an artifact.
        source: what it is to be applied to.

    Raises:
        RequestError: the plan is missing, damaged or no plan; or it was made from a model directory of this name whose
            weights were others.
    """
    path = Path(plan).expanduser()
    path = path / PLAN if path.is_dir() else path
    slices = read_plan(path)
    record = read_record(path.parent) if (path.parent / RECORD).is_file() else {}
    absent = (record.get("passes") or {}).get("drop", {}).get("sub_blocks", ())
    if absent:
        gone = ", ".join(part["module"] for part in absent)
        raise RequestError(
            f"{path} belongs to a run that took out {gone}, which no plan holds",
            f"run its pipeline instead: {record.get('pipeline')}",
        )
    origin = record.get("source") or {}
    found = None
    if origin.get("sha256") and origin.get("name") == source.directory.resolve().name:
        found = source_digests(source.directory)
        made_from = origin["sha256"]
        changed = [name for name in sorted({**found, **made_from}) if found.get(name) != made_from.get(name)]
        if changed:
            raise RequestError(
                f"{source.directory} has changed since {path} was made from it: {', '.join(changed[:3])}",
                f"restore the source, or give the plan without the {RECORD} beside it to apply it to other weights",
            )
    return Recorded(path, sha256(path), slices, record, found)
