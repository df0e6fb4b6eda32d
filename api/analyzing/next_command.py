"""The commands that make what an analysis recommends."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...passes.analyze.analyze import scoring_pass
from ...passes.pipeline import print_pass
from ...passes.select.target import UNIFORM
from ...runtime.place.choices import AUTO


@dataclass(frozen=True)
class Asked:
    """What an analysis was asked for, as far as ``apply`` must be asked the same.

    Attributes:
        model: as the user gave it.
        calib: calibration data, as it was given.
        scores: the file that keeps scores and measurements; None without.
        flags: other flags of the command line by name, without dashes, with their values.
        plain: whether a plain configuration could describe the result; there is none for a module, and of a model in
            free form.
    """

    model: str
    calib: object = None
    scores: str | Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = True


def next_commands(asked: Asked, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What can come next, each with what it is for; nothing where no budget is recommended.

    Args:
        asked: what was asked for.
        report: what the pass ``analyze`` reported.
    """
    found = report["recommended"]
    if found is None:
        return []
    target = f"{report['measure']}={found['share']:g}"
    searching = scoring_pass(report["pass"])
    commands = [("widths as measured", _command(asked, report["pass"], target))]
    plain = print_pass(replace(searching, by=UNIFORM))
    for one in report["equal_widths"]:
        layers = [] if one["layers"] is None else ["--layers", "{}:{}".format(*one["layers"])]
        where = "in these layers" if layers else "in all layers"
        where += ", as a plain config describes them" if asked.plain and not layers else ""
        commands.append((f"equal widths {where}", _command(asked, plain, target, *layers)))
    return commands


def _command(asked: Asked, step: str, target: str, *more: str) -> str:
    words = ["fxprune", "apply", asked.model, "--pass", step, "--target", target, *more]
    texts = asked.calib if isinstance(asked.calib, list | tuple) else [] if asked.calib is None else [asked.calib]
    if all(isinstance(text, str | Path) for text in texts[:1]) and not _is_rows(asked.calib):
        words += [word for text in texts for word in ("--calib", str(text))]
    else:
        words += ["--calib", "TEXT"]
    if asked.scores is not None:
        words += ["--scores", str(asked.scores)]
    for name, value in asked.flags.items():
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (f"--{name}", str(one))]
        elif value not in (None, False, AUTO):
            words += [f"--{name}", value if isinstance(value, str) else str(value).removeprefix("torch.")]
    return shlex.join([*words, "--out", "OUT"])


def _is_rows(calib: object) -> bool:
    """Whether calibration data is the text itself, as a list of strings, and not the name of a file."""
    return isinstance(calib, list | tuple) and any(isinstance(row, str) for row in calib)
