"""``report``: one page about what runs made, what analyses measured, and how models compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ...backends.artifact import read_record
from ...ir.errors import RequestError
from ...runtime.json_object import check_schema, parse_json, read_json_object
from ..analyzing.result import ANALYSIS_MARK
from ..pages.drawing import require_matplotlib
from ..pages.evaluations import Evaluation, read_evaluation
from ..pages.page import PAGE_BEGINS, Shown, ShownRun, page, run_at
from ..pages.written_file import claim_text, write_text
from ..places import check_apart
from ..progress import Progress, silent
from ..pruning.score_file import read_scores
from ..request_checks import check_paths
from .same_model import check_scores, other_model

ANALYSIS_HINT = "give a FILE that `fxprune analyze MODEL --json FILE` wrote"
EVAL_HINT = "give the output of `fxprune eval OUT MODEL --text FILE --json`, or of bench"


class GroupCurve(TypedDict):
    """A group in an analysis."""

    name: str
    kind: str
    layer: int | None
    units: int
    counts: list[int]
    losses: list[float]
    scores: list[float]


class PartCost(TypedDict):
    """A layer or a part of one in an analysis."""

    layer: int
    kind: str
    loss: float


class BudgetCost(TypedDict):
    """A budget in an analysis."""

    share: float
    predicted: float
    measured: float


class AnalysisFile(TypedDict):
    """What is read of an analysis."""

    model: str
    measure: str
    unit: str
    bound: float
    target: str | None
    groups: list[GroupCurve]
    parts: list[PartCost]
    budgets: list[BudgetCost]
    recommended: BudgetCost | None


_LONGEST_ROW = 1 << 20

ANALYSIS_NAME = "analysis.json"
"""An analysis of this name beside a result is shown without being asked for."""


@dataclass(frozen=True)
class Reported:
    """The page that was written.

    Attributes:
        path: the file.
        bytes: its size.
        runs: names of the results on it.
        analyses, evaluations, scores: names of the files on it.
        others: analyses beside the results that are not on it -> the model that they are of.
    """

    path: Path
    bytes: int
    runs: tuple[str, ...]
    analyses: tuple[str, ...]
    evaluations: tuple[str, ...]
    scores: tuple[str, ...]
    others: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        names = {name: list(getattr(self, name)) for name in ("runs", "analyses", "evaluations", "scores")}
        return {"path": str(self.path), "bytes": self.bytes, **names, "others": dict(self.others)}


def report(
    outs: Sequence[str | Path] | str | Path = (),
    html: str | Path = "report.html",
    *,
    eval: Sequence[str | Path] = (),
    analysis: Sequence[str | Path] = (),
    score_files: Sequence[str | Path] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Reported:
    """Write one self-contained page: it loads nothing from elsewhere and runs no script.

    Args:
        outs: directories that ``apply`` wrote, shown side by side.
        html: the file to write; it appears complete or not at all.
        eval: outputs of ``fxprune eval --json`` or ``bench --json``: figures, and texts that the models wrote.
        analysis: files that ``fxprune analyze --json FILE`` wrote. One called ``analysis.json`` in a result, or beside
            it, is shown too.
        score_files: files of ``apply --scores``, shown as heat maps; analyses hold scores too.
        force: whether another page may be replaced.
        progress: told what is going on.

    Raises:
        RequestError: a file that cannot be read, is of another kind, or cannot be written; nothing to show; matplotlib
            is not there.
    """
    folders = [Path(out) for out in ([outs] if isinstance(outs, str | Path) else outs)]
    _check(folders, [*eval, *analysis, *score_files])
    require_matplotlib()
    check_apart(reads={f"{path}:": path for path in (*eval, *analysis, *score_files)}, files={"--html": html})
    seen = claim_text(html, "--html", begins=PAGE_BEGINS, force=force, example="report.html")
    progress("reading")
    runs = [run_at(folder, read_record(folder)) for folder in folders]
    analyses, others = _analyses(runs, folders, analysis)
    measured = [_evaluation(Path(path)) for path in eval]
    held = {Path(path).name: _scores(path, runs) for path in score_files}
    if not held:
        held = {name: {g["name"]: g["scores"] for g in found["groups"]} for name, found in analyses.items()}
    progress("drawing")
    text = page(Shown(runs, analyses, held, measured))
    progress(f"writing {html}")
    write_text(html, text, seen)
    return Reported(
        Path(html), len(text.encode()), tuple(run.name for run in runs), tuple(analyses),
        tuple(one.name for one in measured), tuple(Path(path).name for path in score_files), others,
    )  # fmt: skip


def _check(folders: Sequence[Path], files: Sequence[str | Path]) -> None:
    if not folders and not files:
        raise RequestError("there is nothing to report on", "give a directory that `fxprune apply` wrote")
    for path in (*folders, *files):
        check_paths(file=path)
    for path in files:
        if not Path(path).expanduser().is_file():
            raise RequestError(f"{path} is no file", "check the path")


def _analyses(
    runs: Sequence[ShownRun], folders: Sequence[Path], asked: Sequence[str | Path]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Analyses by the name of their file; and those beside the results that are of another model, with that model."""
    named = {str(path): Path(path).expanduser() for path in asked}
    beside = [place / ANALYSIS_NAME for folder in folders for place in (folder, folder.parent)]
    named |= {str(path): path for path in beside if path.is_file() and path not in named.values()}
    read = {name: _analysis(path) for name, path in named.items()}
    others = {name: model for name, found in read.items() if (model := other_model(found, runs)) is not None}
    for path in asked:
        if (model := others.get(str(path))) is not None:
            raise RequestError(
                f"--analysis {path} is of another model: {model}", "give the analysis of the model that was pruned"
            )
    return {Path(name).name: found for name, found in read.items() if name not in others}, others


def _scores(path: str | Path, runs: Sequence[ShownRun]) -> dict[str, Any]:
    _, scores = read_scores(Path(path).expanduser())
    check_scores(path, scores, runs)
    return scores


def _analysis(path: Path) -> Mapping[str, Any]:
    found = read_json_object(path, ANALYSIS_HINT)
    if found.get("fxprune") != ANALYSIS_MARK:
        raise RequestError(f"{path} is no analysis", ANALYSIS_HINT)
    check_schema(found, AnalysisFile, path, ANALYSIS_HINT)
    return found


def _holds_rows(path: Path) -> bool:
    """Whether a file that holds no JSON object is a list of rows, or has one in every line, as texts do."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline(_LONGEST_ROW).strip()
        return first.startswith("[") or isinstance(parse_json(first, str(path), EVAL_HINT), dict)
    except (RequestError, OSError, ValueError):
        return False


def _evaluation(path: Path) -> Evaluation:
    try:
        data = read_json_object(path, EVAL_HINT)
    except RequestError:
        if _holds_rows(path):
            raise RequestError(f"{path} is no result of eval or bench: it holds rows", EVAL_HINT) from None
        raise
    found = read_evaluation(path.name, data)
    if found is None:
        raise RequestError(f"{path} holds no models", EVAL_HINT)
    return found
