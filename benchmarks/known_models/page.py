"""The section of docs/quality.md on a model that people know, from measured rows."""

from __future__ import annotations

import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fxprune.benchmarks.known_models.columns import EXPLAINED, cells, headers
from fxprune.benchmarks.known_models.comparisons import COMPARED, ERRORS, HEADER, comparison, difference
from fxprune.benchmarks.known_models.recovered_page import recovered_section
from fxprune.benchmarks.known_models.runs import (
    ABLATIONS,
    CALIBRATED,
    CHOICE,
    CHOICES,
    CHOSEN,
    DENSE,
    DRAWS,
    EVALUATED,
    KEPT,
    METHODS,
    PROMPTS,
    TEXTS,
    VALIDATION,
    Run,
    runs,
)

TITLE = "## A model that people know"
BEST, WORST = "best", "paper"
"""The methods whose answers are shown beside the dense model's."""


def with_section(page: str, text: str) -> str:
    """A page whose section of this title is replaced, or added at its end."""
    before, found, rest = page.partition(f"{TITLE}\n")
    after = re.search(r"^## ", rest, re.MULTILINE) if found else None
    return before.rstrip("\n") + "\n\n" + text + ("\n" + rest[after.start() :] if after else "")


def section_of(page: str) -> str:
    """The section of a page, with its title; empty where it has none."""
    _, found, rest = page.partition(f"{TITLE}\n")
    after = re.search(r"^## ", rest, re.MULTILINE)
    return found + (rest[: after.start()] if after else rest)


def section(rows: Mapping[str, Any], model: str, recovered: Mapping[str, Any] | None = None) -> str:
    """The text of the section, with what has been measured so far.

    Args:
        rows: key of the run -> row.
        model: the folder of the model.
        recovered: the same for models that were trained after they were pruned.
    """
    dense = rows[Run(model, DENSE).key]
    means = " / ".join(f"{math.exp(statistics.mean(dense['losses'][text])):.2f}" for text in TEXTS)
    dates = sorted(row["date"] for key, row in rows.items() if key.startswith(f"{model}|"))
    measured = sum(run.key in rows for run in runs(model))
    names = [f"increase, {text}" for text in TEXTS]
    lines = [
        TITLE,
        "",
        f"{model}, nothing trained: dense {means} on {' / '.join(TEXTS)}.",
        f"Calibration reads {CALIBRATED} windows of 128 tokens of all three texts, `paper` and `taylor uniform` ten of",
        f"them; perplexity is of the first {EVALUATED} windows of each `-eval` text. Nothing is chosen on these: for",
        "that, there is `--split validation` (below). Kept is of all parameters, embeddings included. The increase of",
        "the log-perplexity is a mean over draws of the calibration windows, ± its standard error, paired over windows",
        "and over draws. CPU seconds of the passes, peak memory of the process.",
        *EXPLAINED.splitlines(),
        f"{measured} of {len(list(runs(model)))} rows have been measured.",
        f"{platform.machine()}, two cores, Python {platform.python_version()}, {dates[0]} to {dates[-1]}.",
        "",
        "    python -m fxprune.benchmarks.known_models.table --models MODELS --text TEXTS --tasks TASKS --code CODE "
        "--write docs/quality.md",
        "",
        f"| kept | method | draws | perplexity | {' | '.join([*names, *headers()])} | CPU s | GB |",
        f"|{'---|' * (6 + len(names) + len(headers()))}",
        f"| 1 | {DENSE} | 1 | {means} | {' | '.join(['0'] * len(names) + cells([dense], dense))} | | |",
    ]
    for kept in sorted(KEPT, reverse=True):
        lines += [_line(_draws(rows, model, method, kept), dense, kept, method) for method in (*METHODS, *ABLATIONS)
                  if _draws(rows, model, method, kept)]  # fmt: skip
    parts = [*_peers(), *_comparisons(rows, model, dense), *_chosen(rows, model), *_answers(rows, model)]
    trained = recovered_section(recovered or {}, rows, model)
    return "\n".join([*lines, "", *parts, *(["", *trained] if trained else []), ""])


def _draws(rows: Mapping[str, Any], model: str, method: str, kept: float) -> list[Mapping[str, Any]]:
    return [rows[run.key] for run in _seeds(model, method, kept) if run.key in rows]


def _seeds(model: str, method: str, kept: float) -> list[Run]:
    return [Run(model, method, kept, seed) for seed in range(DRAWS)]


def _peers() -> list[str]:
    """How the peers' own code is run."""
    return [*PEERS.strip().splitlines(), ""]


PEERS = """
**The peers' own code** reads the same 128 windows. LLM-Pruner's is called as its `llama3.py` calls it,
`--block_wise`: groups from `k_proj` and `gate_proj`, scores summed in a group, the same ratio in all layers that are
cut. These are 4:27 of 30 (its recipes: 4:30 of 32, 4:18 of 22); with 4:28 no ratio keeps 0.8, because all layers lose
one of three kv heads at once. The ratio is the one that keeps the share of all parameters. It scores a kv head with
query heads of others: of three kv heads, the first with query heads 0, 3 and 6, but 0, 1 and 2 are removed with it.
`kv corrected` puts the heads in the order that its sum expects while it scores. Files of commits c61334d and 07ece7a;
the parts that they share with Torch-Pruning 1.1.5 are taken from that. FLAP's is WIFV and AL-AM of `lib/prune.py`
(commit 9bbad71). It knows only heads with keys of their own; here one mask stands for a kv head and its three query
heads, whose columns are averaged. Its weight against an inner channel is 512/3 as in FLAP, because 3 heads of 64 have
as many parameters with one kv head as a head of 128 alone. Means stay in float32. It may remove all heads of a layer.
"""


def _comparisons(rows: Mapping[str, Any], model: str, dense: Mapping[str, Any]) -> list[str]:
    """Differences of two methods on the draws that both have."""
    lines = []
    for kept in sorted(KEPT, reverse=True):
        for compared in COMPARED:
            pairs = zip(_seeds(model, compared.method, kept), _seeds(model, compared.other, kept), strict=True)
            both = [(rows[one.key], rows[two.key]) for one, two in pairs if one.key in rows and two.key in rows]
            if both:
                mine, others = map(list, zip(*both, strict=True))
                lines.append(comparison(compared, mine, others, [dense], kept))
    if not lines:
        return []
    return [
        "**Compared.** Differences of the log-perplexity, paired; one is called better or worse where the difference",
        f"is more than {ERRORS} standard errors. The share is of the two increases over the dense model.",
        "",
        *HEADER,
        *lines,
        "",
    ]


def _chosen(rows: Mapping[str, Any], model: str) -> list[str]:
    """What was chosen on the validation split, and by what."""
    where = [
        "**Chosen on validation text**: characters 300,000 to 400,000 of the `-calib` texts, which neither calibration",
        f"nor evaluation reads. At {KEPT[0]:g}, first draw; increase of the log-perplexity there, mean of the three",
        "texts, and the difference from what was chosen. The peers' options are the best by this measure; ours stay as",
        "they are unless another is shown to be better. Damping and windows are of `wanda uniform` and its refit.",
        "",
        "| option of | option | increase | against the chosen | |",
        "|---|---|---|---|---|",
    ]
    lines = []
    dense = rows.get(Run(model, DENSE, split=VALIDATION).key)
    for name, options in CHOICES.items():
        found = {option: rows.get(option_run(model, name, option).key) for option in options}
        by = found[CHOSEN[name]]
        for option, row in found.items():
            if dense and row and by:
                rise, apart = over_texts(row, dense), over_texts(row, by)
                against = "" if row is by else f"{apart[0]:+.3f} ± {apart[1]:.3f}"
                mark = "chosen" if option == CHOSEN[name] else ""
                lines.append(f"| {name} | {option} | {rise[0]:.3f} ± {rise[1]:.3f} | {against} | {mark} |")
    if not lines:
        return ["The options of the peers' code, damping and windows have not been chosen on validation text yet.", ""]
    return [*where, *lines, ""]


def option_run(model: str, name: str, option: str) -> Run:
    """The row on which an option of CHOICES is judged."""
    return Run(model, f"{name}{CHOICE}{option}", KEPT[0], split=VALIDATION)


def over_texts(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """The mean over texts of the differences of two rows, and its standard error."""
    apart = [difference([row], [other], text) for text in TEXTS]
    return statistics.mean(mean for mean, _ in apart), math.hypot(*(error for _, error in apart)) / len(apart)


def _line(found: Sequence[Mapping[str, Any]], dense: Mapping[str, Any], kept: float, method: str) -> str:
    means = [statistics.mean(statistics.mean(row["losses"][text]) for row in found) for text in TEXTS]
    apart = [difference(found, [dense], text) for text in TEXTS]
    shown = [
        f"{kept:g}", method, str(len(found)), " / ".join(f"{math.exp(mean):.2f}" for mean in means),
        *(f"{mean:.3f} ± {error:.3f}" for mean, error in apart), *cells(found, dense),
        f"{statistics.mean(row['seconds'] for row in found):.0f}", f"{max(row['peak_gb'] for row in found):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |"


def _answers(rows: Mapping[str, Any], model: str) -> list[str]:
    """What the models write after the prompts, the most probable token each time."""
    shown = {DENSE: rows.get(Run(model, DENSE).key)}
    shown |= {f"`{method}`, 0.8": rows.get(Run(model, method, 0.8).key) for method in (WORST, BEST)}
    held = {name: row for name, row in shown.items() if row}
    lines = ["The most probable words after ten prompts:", "", f"| prompt | {' | '.join(held)} |"]
    lines += [f"|{'---|' * (1 + len(held))}"]
    for at, prompt in enumerate(PROMPTS):
        texts = [" ".join(row["answers"][at].replace("|", "\\|").split()) for row in held.values()]
        lines.append(f"| {prompt} | {' | '.join(texts)} |")
    return lines
