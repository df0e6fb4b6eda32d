"""The page that benchmarks/quality.py writes: tables of the measured rows."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from fxprune.benchmarks.llm_pruner import CRITERIA
from fxprune.benchmarks.quality_runs import (
    CHOICES,
    MIXED,
    NO_REFIT,
    OBS_OF_MORE,
    OBS_OF_WRITTEN,
    PAPER_CALIBRATION,
    PAPER_MODEL,
    PAPER_OWN,
    PAPER_RATIOS,
    PAPER_WINDOWS,
    PEERS,
    RECOVER,
    RECOVERED,
    REFITS,
    SAME_WINDOWS,
    SCORES,
    TEXTS,
    Row,
    Run,
    criteria_runs,
    halves_runs,
    paper_runs,
    runs,
)
from fxprune.benchmarks.recovery_text import EACH

ERRORS = 2
"""A difference is claimed where it is more than so many standard errors."""

WORTH_RECOVERING = 0.05
"""Shares of an increase of the log-perplexity that is smaller than this are not shown."""


def measured(rows: dict[str, Row]) -> str:
    """The first and the last day on which a row was measured."""
    return " to ".join(sorted({min(row["date"] for row in rows.values()), max(row["date"] for row in rows.values())}))


def rises_of(row: Row) -> list[float]:
    """Increase of the log-perplexity on each text."""
    return [now - then for now, then in zip(row["losses"], row["dense"], strict=True)]


def increase(row: Row) -> float:
    """Mean over the texts of the increase of the log-perplexity."""
    return statistics.mean(rises_of(row))


def best_of_paper(rows: dict[str, Row], target: float, windows: str = PAPER_OWN) -> list[float]:
    """The smallest increase of the log-perplexity of any criterion of LLM-Pruner, for each text."""
    found = [rises_of(rows[run.key]) for run in criteria_runs(target, windows) if run.key in rows]
    if len(found) < len(CRITERIA):
        raise SystemExit(f"LLM-Pruner at {target} on {windows} was not measured: give --llm-pruner CHECKOUT")
    return [min(rises) for rises in zip(*found, strict=True)]


def shares(row: Row, best: list[float]) -> str:
    """The increases of a row divided by others, for each text."""
    return " / ".join(f"{rise / of:.2f}" for rise, of in zip(rises_of(row), best, strict=True))


def paper_table(rows: dict[str, Row]) -> list[str]:
    lines = ["| kept | pipeline | perplexity | increase, share of the paper's best | CPU s |", "|---|---|---|---|---|"]
    for target in PAPER_RATIOS:
        best = best_of_paper(rows, target)
        for run in (*criteria_runs(target, PAPER_OWN), *paper_runs(target)):
            if run.key in rows:
                row = rows[run.key]
                name = f"`{run.text}`" if run.part == "paper" else f"LLM-Pruner, {run.column}"
                pipeline = f"three texts: {name}" if run.calibration == MIXED else name
                lines.append(
                    f"| {row['kept']:.4f} | {pipeline} | {perplexities(row)} | {shares(row, best)} "
                    f"| {row['seconds']:.0f} |"
                )
    return lines


def paper_verdict(rows: dict[str, Row]) -> str:
    """Which pipelines reach half of the paper's best increase on each text, at each size."""
    reached: dict[str, list[bool]] = {}
    for target in PAPER_RATIOS:
        best = best_of_paper(rows, target)
        for run in paper_runs(target):
            if run.key in rows:
                name = f"`{run.pipeline}`" + (" on three texts" if run.calibration == MIXED else "")
                halves = (rise <= of / 2 for rise, of in zip(rises_of(rows[run.key]), best, strict=True))
                reached.setdefault(name, []).append(all(halves))
    names = [name for name, found in reached.items() if len(found) == len(PAPER_RATIOS) and all(found)]
    return f"Half of the paper's increase or less, on each text and at both sizes: {', '.join(names) or 'none'}."


def best_of_ten(rows: dict[str, Row]) -> str:
    """For each size, the shares of the best pipeline that reads only the ten windows; best by its worst text."""
    return least_worst(
        rows,
        lambda run: run.part == "paper" and run.calibration != MIXED and "generate" not in run.pipeline,
    )


def best_of_halves(rows: dict[str, Row], chosen: str, refit: str) -> str:
    """The same for units that are chosen on one text and weights that are refitted on another."""
    return least_worst(rows, lambda run: run.part == "halves" and (run.calibration, run.refit) == (chosen, refit))


def least_worst(rows: dict[str, Row], wanted: Callable[[Run], bool]) -> str:
    """For each size, the shares of the best row; best by its worst text."""
    found = []
    for target in PAPER_RATIOS:
        best = best_of_paper(rows, target)
        of = [rows[run.key] for run in (*paper_runs(target), *halves_runs(target)) if wanted(run) and run.key in rows]
        least = min(of, key=lambda row: max(rise / by for rise, by in zip(rises_of(row), best, strict=True)))
        found.append(f"{shares(least, best)} at {target}")
    return ", ".join(found)


def worst_draws(rows: dict[str, Row], pipelines: Sequence[str]) -> str:
    """For each size and each text, the largest share over the draws."""
    found = []
    for target in PAPER_RATIOS:
        best = best_of_paper(rows, target)
        drawn = [rows[run.key] for run in paper_runs(target) if run.pipeline in pipelines and run.key in rows]
        worst = [max(rises) / of for rises, of in zip(zip(*map(rises_of, drawn), strict=True), best, strict=True)]
        found.append(f"{' / '.join(f'{share:.2f}' for share in worst)} at {target} ({len(drawn)} draws)")
    return ", ".join(found)


def criteria_table(rows: dict[str, Row]) -> list[str]:
    """LLM-Pruner's criteria and obs on the same windows; shares are relative to the best criterion on each text."""
    names = " | ".join(CRITERIA)
    lines = [f"| kept | windows | {names} | `obs`, refit | increase, share of the best criterion's |"]
    lines.append("|---|---|" + "---|" * len(CRITERIA) + "---|---|")
    for target in PAPER_RATIOS:
        for windows, (_, _, pipeline) in SAME_WINDOWS.items():
            mine = rows.get(Run("paper", PAPER_MODEL, PAPER_CALIBRATION, TEXTS, target, pipeline, pipeline).key)
            if mine is not None:
                best = best_of_paper(rows, target, windows)
                theirs = [rows[run.key] for run in criteria_runs(target, windows)]
                shown = " | ".join(map(perplexities, (*theirs, mine)))
                lines.append(f"| {target} | {windows} | {shown} | {shares(mine, best)} |")
    return lines


def halves_table(rows: dict[str, Row]) -> list[str]:
    """Shares of the paper's best: a row per text on which units are chosen, a column per text for refitting."""
    names = {PAPER_CALIBRATION: "the ten windows", MIXED: "three texts"}
    across = " | ".join(f"refitted on {names[text]}" if text else "not refitted" for text in REFITS)
    lines = [f"| kept | score | units chosen on | {across} |", "|---|---|---|" + "---|" * len(REFITS)]
    for target in PAPER_RATIOS:
        best = best_of_paper(rows, target)
        found = {
            (run.column, run.calibration, run.refit): rows[run.key] for run in halves_runs(target) if run.key in rows
        }
        if len(found) < 2 * len(CHOICES) * len(REFITS):
            raise SystemExit(f"choices and refits at {target} were not all measured: run --part halves")
        for score in dict.fromkeys(score for score, _, _ in found):
            for chosen in CHOICES:
                cells = " | ".join(shares(found[score, chosen, refit], best) for refit in REFITS)
                lines.append(f"| {target} | `{score}` | {names[chosen]} | {cells} |")
    return lines


def perplexities(row: Row) -> str:
    return " / ".join(f"{math.exp(loss):.2f}" for loss in row["losses"])


def cell(found: list[float], digits: int = 3) -> str:
    """Mean and half the range."""
    spread = f" ± {(max(found) - min(found)) / 2:.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread}" if found else ""


def grouped(rows: dict[str, Row], part: str, seeds: int) -> dict[tuple[str, float], dict[str, list[Row]]]:
    """(model, budget) -> column -> rows of all seeds."""
    found: dict[tuple[str, float], dict[str, list[Row]]] = {}
    for run in runs(seeds):
        if run.part == part and run.key in rows:
            found.setdefault((run.model, run.target), {}).setdefault(run.column, []).append(rows[run.key])
    return found


def increases_table(found: dict[tuple[str, float], dict[str, list[Row]]]) -> list[str]:
    """A row per model and budget, a column per pipeline; the smallest value is in bold."""
    columns = list(dict.fromkeys(column for of in found.values() for column in of))
    lines = [f"| model | kept | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for (model, target), of_column in found.items():
        values = {column: [increase(row) for row in of] for column, of in of_column.items() if of}
        best = min(values, key=lambda column: statistics.mean(values[column]))
        cells = [f"**{cell(values[c])}**" if c == best else cell(values.get(c, [])) for c in columns]
        lines.append(f"| {model} | {target} | {' | '.join(cells)} |")
    return lines


def recovery_columns(rows: dict[str, Row], seeds: int) -> dict[tuple[str, float], dict[str, list[Row]]]:
    """(model, budget) -> column of the recovery table -> rows; columns without recovery are from the scores table."""
    without, trained = (grouped(rows, part, seeds) for part in ("scores", "recovery"))
    return {
        at: {
            f"{form}{name}": part[at].get(column, [])
            for form, column in RECOVERED.items()
            for name, part in (("", without), (" + recovery", trained))
        }
        for at in trained
    }


def recovery_table(rows: dict[str, Row], seeds: int) -> list[str]:
    """A row per model and budget, columns without and with recovery."""
    return increases_table(recovery_columns(rows, seeds))


def recovered_share(rows: dict[str, Row], seeds: int) -> str:
    """For each model, by how much recovery reduces the increase: smallest and largest over budgets and forms."""
    shares: dict[str, list[float]] = {}
    for (model, _), found in recovery_columns(rows, seeds).items():
        for form in RECOVERED:
            was, now = (statistics.mean(map(increase, found[form + name])) for name in ("", " + recovery"))
            if was >= WORTH_RECOVERING:
                shares.setdefault(model, []).append(1 - now / was)
    return ", ".join(f"{model} {min(of):.0%} to {max(of):.0%}" for model, of in shares.items())


def rates_table(rows: dict[str, Row], seeds: int) -> list[str]:
    """Increase on spare text by learning rate."""
    return increases_table(grouped(rows, "rate", seeds))


def draws(rows: dict[str, Row], part: str, seeds: int) -> str:
    """For each model, the number of draws in the mean of a cell."""
    found: dict[str, list[int]] = {}
    for (model, _), columns in grouped(rows, part, seeds).items():
        found.setdefault(model, []).extend(map(len, columns.values()))
    return ", ".join(f"{model} {'to '.join(sorted({str(min(of)), str(max(of))}))}" for model, of in found.items())


def dense_perplexities(rows: dict[str, Row], seeds: int) -> str:
    """The dense perplexities of the model with several evaluation texts."""
    for (model, _), columns in grouped(rows, "scores", seeds).items():
        if model == PAPER_MODEL:
            return " / ".join(f"{math.exp(loss):.2f}" for loss in next(iter(columns.values()))[0]["dense"])
    return "not measured"


def perplexities_table(columns: dict[tuple[str, float], dict[str, list[Row]]]) -> list[str]:
    """The perplexities of the model with several evaluation texts, for each text."""
    lines = [f"| kept | pipeline | {' | '.join(TEXTS)} |", "|---|---|" + "---|" * len(TEXTS)]
    for (model, target), found in columns.items():
        for column, of_seeds in found.items() if model == PAPER_MODEL else ():
            by_text = zip(*([math.exp(loss) for loss in row["losses"]] for row in of_seeds), strict=True)
            lines.append(f"| {target} | {column} | {' | '.join(cell(list(v), 2) for v in by_text)} |")
    return lines


def difference(rows: Sequence[Row], others: Sequence[Row]) -> tuple[float, float]:
    """Mean difference of the increases of two columns and its standard error, paired by draws.

    Args:
        rows: of one column, at least two draws.
        others: of the other, the same draws in the same order.
    """
    apart = [increase(row) - increase(other) for row, other in zip(rows, others, strict=True)]
    return statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart))


def smaller(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether the increase is smaller by more than ERRORS standard errors of the difference."""
    mean, error = difference(rows, others)
    return mean < -ERRORS * error


def verdict(rows: dict[str, Row], seeds: int) -> str:
    """In how many rows of the table of scores obs is better than wanda and flap, for any distribution of the budget."""
    peers = [column for column in SCORES if column.startswith(PEERS)]
    found = _counted(rows, "scores", seeds, "obs global", peers)
    return f"`obs global` is below each of the wanda and flap columns {found}"


def search_verdict(rows: dict[str, Row], seeds: int) -> str:
    """In how many rows search is better than uniform widths."""
    found = _counted(rows, "search", seeds, "fisher search", ["fisher uniform"])
    return f"Search is below uniform {found}"


def _counted(rows: dict[str, Row], part: str, seeds: int, column: str, others: Sequence[str]) -> str:
    """In how many cells a column is smaller than all others; the rest by name."""
    cells = {
        f"{model} at {target}": all(smaller(found[column], found[other]) for other in others)
        for (model, target), found in grouped(rows, part, seeds).items()
        if all(len(found.get(each, [])) > 1 for each in (column, *others))
    }
    rest = [name for name, found in cells.items() if not found]
    return (
        f"by more than {ERRORS} standard errors of the difference, paired by draws,\nin {len(cells) - len(rest)} of "
        f"{len(cells)} rows" + (f"; not shown for {', '.join(rest)}" if rest else "") + "."
    )


def page(rows: dict[str, Row], seeds: int, windows: int) -> str:
    scores, search = (grouped(rows, part, seeds) for part in ("scores", "search"))
    facts = {
        "MACHINE": f"{platform.machine()}, Python {platform.python_version()}, one thread, {measured(rows)}",
        "COMMAND": "python benchmarks/quality.py --models ../shared/models --text ../shared/text "
        "--llm-pruner ../LLM-Pruner --out docs/quality.md",
        "WINDOWS": str(windows),
        "PAPER_WINDOWS": str(PAPER_WINDOWS),
        "DRAWS": draws(rows, "scores", seeds),
        "DENSE": dense_perplexities(rows, seeds),
        "PAPER": "\n".join(paper_table(rows)),
        "PAPER_VERDICT": paper_verdict(rows),
        "WORST_OF_128": worst_draws(rows, OBS_OF_WRITTEN),
        "WORST_OF_384": worst_draws(rows, OBS_OF_MORE),
        "PAPER_TEN": best_of_ten(rows),
        "CHOSEN_ON_MORE": best_of_halves(rows, MIXED, PAPER_CALIBRATION),
        "REFITTED_ON_MORE": best_of_halves(rows, PAPER_CALIBRATION, MIXED),
        "CHOSEN_ALONE": best_of_halves(rows, MIXED, NO_REFIT),
        "HALVES": "\n".join(halves_table(rows)),
        "CRITERIA": "\n".join(criteria_table(rows)),
        "SCORES": "\n".join(increases_table(scores)),
        "VERDICT": verdict(rows, seeds),
        "PERPLEXITIES": "\n".join(perplexities_table(scores)),
        "RECOVER": RECOVER.removeprefix(",").replace("LR", "RATE"),
        "RECOVERY_DRAWS": draws(rows, "recovery", seeds),
        "EACH": ", ".join(f"{count:,} of {name}" for name, count in EACH.items()),
        "RECOVERY": "\n".join(recovery_table(rows, seeds)),
        "RECOVERED_PERPLEXITIES": "\n".join(perplexities_table(recovery_columns(rows, seeds))),
        "RATES": "\n".join(rates_table(rows, seeds)),
        "SHARES": recovered_share(rows, seeds),
        "SEARCH": "\n".join(increases_table(search)),
        "SEARCH_VERDICT": search_verdict(rows, seeds),
    }
    text = Path(__file__).with_name("quality.md").read_text(encoding="utf-8")
    for name, value in facts.items():
        text = text.replace(f"@{name}@", value)
    return text
