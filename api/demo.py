"""``demo``: a complete example on the built-in model: prune 25%, recover, write safetensors and ONNX, measure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError
from ..runtime.threads import one_thread
from ..tracer.model import DEMO
from .evaluating.evaluation import evaluate
from .evaluating.measures import Measurement
from .exporting import export
from .places import claim
from .progress import Progress, silent
from .pruning.request import Applied, apply

PRUNE = "best{samples=32,ratio=0.25}"
RECOVER = "distill{steps=24,batch=16,micro_batch=16,length=128,lr=0.001}"
WINDOWS = 100
ARTIFACTS = {"pruned": None, "recovered": None, "onnx": "onnx"}
"""Name -> format, of an export."""
SCORES = "scores.safetensors"
"""What the first run computes and the second one reads, as two runs with --scores do; scores of something else that
are there are refused as they are there."""

Checks = Mapping[str, float]


@dataclass(frozen=True)
class Demo:
    """The result of the demo.

    Attributes:
        path: the directory with the artifacts.
        rows: the dense, pruned, recovered and ONNX model, measured on the built-in evaluation text.
        checks: row name -> check -> largest difference of a logit.
        seconds: wall time of the whole demo.
    """

    path: Path
    rows: tuple[Measurement, ...]
    checks: Mapping[str, Checks]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "seconds": self.seconds,
            "rows": [{**row.to_json(), "checks": dict(self.checks[row.name])} for row in self.rows],
        }


def run_demo(out: str | Path, *, force: bool = False, progress: Progress = silent) -> Demo:
    """Run a complete example on the built-in model.

    Args:
        out: directory for the artifacts ``pruned``, ``recovered`` and ``onnx``, and for ``scores.safetensors``.
        force: whether to replace the artifacts of an earlier run.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: ``out`` exists and ``force`` is not set.
        FxpruneError: a step failed.
    """
    started = time.perf_counter()
    root = Path(out)
    if root.exists() and not force:
        raise RequestError(f"{root} already exists", "choose another --out, or replace it with --force")
    for name, export_format in ARTIFACTS.items():
        claim(root / name, force=force, export=export_format)
    # On free cores two threads are no faster on this model (76 s, 78 s with one); on busy ones they wait for each
    # other (149 s, 101 s with one).
    with one_thread():
        checks, measured = _made(root, force, progress)
    rows = tuple(replace(row, name=name) for row, name in zip(measured, checks, strict=True))
    return Demo(root, rows, checks, time.perf_counter() - started)


def _made(root: Path, force: bool, progress: Progress) -> tuple[dict[str, Checks], list[Measurement]]:
    """Write the artifacts; the checks of each row, and what the rows measure."""
    shared: Any = {"form": "uniform", "scores": root / SCORES, "force": force, "progress": progress}
    with _no_empty_directory(root):
        pruned = apply(DEMO, PRUNE, out=root / "pruned", **shared)
    recovered = apply(DEMO, [PRUNE, RECOVER], out=root / "recovered", **shared)
    report = export(root / "recovered", root / "onnx", force=force, progress=progress)
    checks: dict[str, Checks] = {
        "dense": {},
        "pruned": _checks(pruned),
        "recovered": _checks(recovered),
        "ONNX": {name.replace("_", " "): value for name, value in report.to_json()["differences"].items()},
    }
    models: list[str | Path] = [DEMO, *(root / name for name in ARTIFACTS)]
    return checks, evaluate(models, windows=WINDOWS, progress=progress)


@contextmanager
def _no_empty_directory(root: Path) -> Iterator[None]:
    """The directory is there, and goes again where nothing came of what made it."""
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):  # something is in it
                root.rmdir()
        raise


def _checks(applied: Applied) -> Checks:
    """The check of the artifact in a fresh process."""
    assert applied.saved is not None
    return {"reloaded": float(applied.saved.checks["logits_worst_difference"])}
