"""The part of the page on recovered models, from measured rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.benchmarks.known_models.columns import by_task, cells, headers
from fxprune.benchmarks.known_models.recovered import ALPACA, KEPT, RECOVERED, TRIALS, Recovery
from fxprune.benchmarks.known_models.runs import DENSE, PROMPTS, TEXTS, VALIDATION, Run
from fxprune.benchmarks.known_models.zero_shot import MANY, mean_accuracy

Rows = Mapping[str, Any]

TITLE = "### Recovered"

AUTO_SINCE = "2026-12-02"
OLDER_CUT = "The cut of `best` is that of its refit with `damping=0.01` here, not `auto` as in the tables above."
"""Of rows that were measured before the refit of ``best`` chose its damping itself."""

COMMAND = """\
    python -m fxprune.benchmarks.known_models.recovered --models MODELS --text TEXTS --tasks TASKS --work WORK"""


def recovered_section(recovered: Rows, rows: Rows, model: str) -> list[str]:
    """The lines of the section; none where nothing has been recovered.

    Args:
        recovered: rows of ``recovered.json``.
        rows: of ``rows.json``, for the dense model and what is pruned alone.
        model: the folder of the model.
    """
    dense = rows.get(Run(model, DENSE).key, {})
    found = {name: recovered.get(Run(model, name, KEPT).key) for name in RECOVERED}
    held = {name: row for name, row in found.items() if row}
    if not held or "tasks" not in dense:
        return []
    bases = {how.base: rows.get(Run(model, how.base, KEPT).key) for how in RECOVERED.values()}
    pruned = {name: row for name, row in bases.items() if row}
    lines = [TITLE, "", *_explained(held), "", COMMAND, ""]
    lines += [f"| method | training | CPU s of it | GB | perplexity | {' | '.join(headers())} |",
              f"|{'---|' * (5 + len(headers()))}"]  # fmt: skip
    everything = {DENSE: dense, **pruned, **held}
    lines += [_line(name, row, dense) for name, row in everything.items()]
    lines += [
        "",
        f"By task, on {MANY} items or half of the file, in percent:",
        "",
        *by_task({DENSE: dense, **held}, DENSE),
    ]
    lines += ["", *_choice(recovered, model)]
    return [*lines, "", *answers(everything)]


def answers(rows: Rows) -> list[str]:
    """What models write after the prompts, in full.

    Args:
        rows: name of the column -> row.
    """
    lines = ["The most probable words after ten prompts, in full:", "", f"| prompt | {' | '.join(rows)} |"]
    lines += [f"|{'---|' * (1 + len(rows))}"]
    for at, prompt in enumerate(PROMPTS):
        texts = [" ".join(row["answers"][at].replace("|", "\\|").split()) for row in rows.values()]
        lines.append(f"| {prompt} | {' | '.join(texts)} |")
    return lines


def _explained(held: Rows) -> list[str]:
    dates = sorted(row["date"] for row in held.values())
    return [
        f"{KEPT} of all parameters kept, then trained on the answers of {ALPACA}. The weights with the smallest loss",
        "on held-out examples are what is measured. CPU seconds are of the training alone, with its measurements on",
        "what is held out; they are dearer where other jobs share the machine. Aimed at: 94.97% of the dense accuracy,",
        f"which LLM-Pruner's abstract gives for a fifth of the parameters. One draw. {_span(dates)}.",
        *([OLDER_CUT] if dates[-1] < AUTO_SINCE else []),
    ]


def _span(dates: Sequence[str]) -> str:
    """From the first day to the last; one day where they are the same."""
    return " to ".join(dict.fromkeys([dates[0], dates[-1]]))


def _line(name: str, row: Any, dense: Any) -> str:
    training = row.get("training")
    texts = " / ".join(f"{math.exp(statistics.mean(row['losses'][text])):.2f}" for text in TEXTS)
    how = [f"`{training['pass']}`", f"{training['seconds']:.0f}"] if training else ["-", "-"]
    return f"| {name} | {' | '.join(how)} | {row['peak_gb']:.1f} | {texts} | {' | '.join(cells([row], dense))} |"


def _choice(recovered: Rows, model: str) -> list[str]:
    """What the recoveries were chosen by; none where no short training was measured."""
    found = {(name, how): recovered.get(Run(model, name, KEPT, split=VALIDATION).key) for name, how in TRIALS.items()}
    held = {key: row for key, row in found.items() if row}
    if not held:
        return []
    lines = [
        "Passes and rates were chosen by short trainings, measured on the validation split: parts of the `-calib`",
        "texts and items of the tasks that are neither trained nor evaluated on.",
        "",
        "| training | CPU s | log-perplexity | mean accuracy, % |",
        "|---|---|---|---|",
    ]
    return lines + [_trial(how, row) for (_, how), row in held.items()]


def _trial(how: Recovery, row: Any) -> str:
    mean = statistics.mean(statistics.mean(row["losses"][text]) for text in TEXTS)
    training, accuracy = row["training"], 100 * mean_accuracy(row["tasks"])
    return f"| {how.base}, `{training['pass']}` | {training['seconds']:.0f} | {mean:.3f} | {accuracy:.1f} |"
