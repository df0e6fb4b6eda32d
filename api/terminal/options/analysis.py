"""The options of ``analyze`` and ``report``, and what the first ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....ir.errors import RequestError
from ....passes.analyze.analyze import BOUND, SUMMED, Analyze
from ...progress import Progress
from ..module_options import add_module_options
from ..texts.options import add_reading_options, texts_of

if TYPE_CHECKING:
    from ...analyzing.result import AnalysisResult

OF_MODEL = ("trust_remote_code", "allow_pickle", "merge_adapter")


def add_analysis_options(parser: argparse.ArgumentParser) -> None:
    """Add them to ``analyze``."""
    parser.add_argument(
        "--pass", dest="scored", default="taylor", metavar="PASS",
        help="the pruning pass whose scores say which units go first, with its options (default: taylor)",
    )  # fmt: skip
    parser.add_argument(
        "--calib", action="append", metavar="DATA",
        help="calibration data, as for apply (required unless MODEL is demo, or with --loss); may be repeated",
    )  # fmt: skip
    add_reading_options(parser, several=False)
    parser.add_argument(
        "--bound", type=float, default=BOUND, metavar="D",
        help="the recommended budget is the smallest whose measured distance from the dense model stays within D, in "
        f"nats per token for text (default: {BOUND})",
    )  # fmt: skip
    parser.add_argument("--measure", choices=SUMMED, default=SUMMED[0], help="what a budget counts (default: params)")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--scores", metavar="FILE", help="keep scores and measurements in FILE, so that apply measures nothing twice"
    )
    files.add_argument("--plot", metavar="FILE", help="draw the curves to FILE.svg or FILE.png (extra `report`)")
    files.add_argument("--force", action="store_true", help="replace files of --json and --plot if they exist")
    add_module_options(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add them to ``report``."""
    parser.add_argument("outs", nargs="*", metavar="OUT", help="directories that apply wrote; several are compared")
    parser.add_argument("--html", default="report.html", metavar="FILE", help="the page (default: report.html)")
    for name, text in {
        "eval": "outputs of `fxprune eval --json` or `bench --json`: figures, and texts that the models wrote",
        "analysis": "files of `fxprune analyze --json FILE`; analysis.json in an OUT or beside it is shown too",
        "scores": "files of --scores, shown as heat maps",
    }.items():
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="FILE", help=text)
    parser.add_argument("--force", action="store_true", help="replace another page of fxprune")


def analyzed(arguments: argparse.Namespace, where: dict[str, Any], progress: Progress) -> AnalysisResult:
    """Analyze what is asked for, and write the files.

    Raises:
        RequestError: a mistake in the request.
    """
    asked = {"bound": arguments.bound, "measure": arguments.measure}
    Analyze(scores=arguments.scored, **asked).check()  # torch takes seconds to import, a mistake is told at once
    from .... import api
    from ...analyzing.result import ANALYSIS_BEGINS
    from ...pages.drawing import claim_picture
    from ...pages.written_file import claim_text
    from ...places import check_apart

    if isinstance(arguments.json, str) and not arguments.json.endswith(".json"):
        raise RequestError(
            f"--json {arguments.json}: a file for the result ends in .json",
            "write --json behind the model, or --json FILE.json",
        )
    told, model = arguments.json if isinstance(arguments.json, str) else None, arguments.model
    files = {"--scores": arguments.scores, "--json": told, "--plot": arguments.plot}
    calib = texts_of(arguments.calib)
    check_apart(reads={"MODEL": model, **{f"--calib {text}:": text for text in arguments.calib or ()}}, files=files)
    held = {"force": arguments.force, "reads": model}
    text = told and claim_text(Path(told), "--json", begins=ANALYSIS_BEGINS, **held)
    picture = arguments.plot and claim_picture(arguments.plot, **held)
    asked |= {"calib": calib, "loss": arguments.loss, "progress": progress}
    own = {name: getattr(arguments, name) for name in OF_MODEL}
    if api.is_named_module(model, arguments.example):
        device = where.pop("device", None)
        read = {"field": arguments.field, "split": arguments.split}
        api.refuse_options(model, {**own, **where, **read, "scores": arguments.scores})
        found = api.analyze_target(model, arguments.example, arguments.scored, device=device, **asked)
    else:
        asked |= {
            "split": arguments.split,
            "scores": arguments.scores,
            "example": arguments.example,
            "field": arguments.field,
            **own,
            **where,
        }
        found = api.analyze(model, arguments.scored, **asked)
    if told and text:
        found.write(told, seen=text)
    if picture:
        found.plot(arguments.plot, seen=picture)
    return found
