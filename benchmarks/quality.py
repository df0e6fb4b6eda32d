"""Perplexity after pruning, without any training: models, budgets and pipelines, means over calibration seeds.

python benchmarks/quality.py --models ../shared/models --text ../shared/text --out docs/quality.md

Rows that quality.json holds are not run again; ``--rows`` names another file, to measure everything anew. Calibration
reads the ``-calib`` texts, perplexity the ``-eval`` ones. ``--part`` runs one of the parts, ``--seeds`` more or fewer
draws of the calibration windows.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TEXTS = ("tinystories", "wikitext2", "bookcorpus")
DENSE = (23.24, 32.35, 64.91)
PAPER = {
    0.839: {"L2": (25.23, 34.84, 69.42), "vector": (26.35, 35.07, 68.74), "element1": (26.40, 34.82, 68.29)},
    0.634: {"L2": (30.82, 43.62, 88.55), "vector": (33.22, 45.88, 79.95), "element1": (33.14, 44.43, 80.01)},
}
"""LLM-Pruner's own code on llama-7m, layers 1:7, ratios 0.25 and 0.6: perplexity on TEXTS."""

PAPER_MODEL = "llama-7m"
PAPER_WINDOWS = 200
PAPER_CALIBRATION = "bookcorpus"
PAPER_PIPELINES = (
    "taylor{target=params:TARGET}",
    "fisher{target=params:TARGET,by=global,samples=10}",
    "fisher{target=params:TARGET,by=search,samples=10},compensate{samples=10,damping=0.3}",
    "obs{target=params:TARGET,by=global,samples=10},compensate{samples=10,damping=0.3}",
    "generate{windows=128},fisher{target=params:TARGET,by=global,samples=138},compensate{samples=138}",
    "generate{windows=128},obs{target=params:TARGET,by=global,samples=138},compensate{samples=138}",
    "generate{windows=384},fisher{target=params:TARGET,by=global,samples=266},compensate{samples=394}",
    "generate{windows=128},fisher{target=params:HALFWAY,by=global,samples=138},compensate{samples=138},"
    "fisher{target=params:TARGET,by=global,samples=138},compensate{samples=138}",
)

SCORES_MODELS = ("stories260k", "tinystories-656k", "babyllama-1m", "llama-7m")
SCORES_TARGETS = (0.9, 0.8, 0.7, 0.5)
SEARCH_TARGETS = (0.8, 0.6)
BUDGET = "target=params:TARGET,samples=32,seed=SEED"
REFIT = ",compensate{samples=32,seed=SEED}"
PAPER_COLUMN = "LLM-Pruner's taylor, as cut"
SCORES = {
    PAPER_COLUMN: f"taylor{{{BUDGET}}}",
    **{
        f"{score} {way}": f"{score}{{{BUDGET},by={way}}}{REFIT}"
        for score in ("wanda", "flap", "fisher", "obs")
        for way in ("uniform", "global")
    },
}
PEERS = ("wanda", "flap")
SEARCH = {
    f"fisher {way}": f"fisher{{target=params:TARGET,by={way},samples=10,seed=SEED}}" for way in ("uniform", "search")
}


@dataclass(frozen=True)
class Run:
    """One pipeline on one model: its text, and the text that it is calibrated on."""

    part: str
    model: str
    calibration: str
    texts: tuple[str, ...]
    target: float
    column: str
    pipeline: str
    seed: int | None = None

    @property
    def key(self) -> str:
        return f"{self.part}|{self.model}|{self.target}|{self.pipeline}|{self.seed}"

    @property
    def text(self) -> str:
        """The pipeline with its budget and seed; halfway is halfway from the whole model."""
        found = self.pipeline.replace("TARGET", f"{self.target:g}").replace("HALFWAY", f"{(1 + self.target) / 2:g}")
        return found.replace("SEED", "none" if self.seed is None else str(self.seed))


def runs(seeds: int) -> Iterator[Run]:
    """Everything, the cheapest parts first; a seed is finished before the next one begins."""
    for model in SCORES_MODELS:
        texts = TEXTS if model == PAPER_MODEL else TEXTS[:1]
        calibration = PAPER_CALIBRATION if model == PAPER_MODEL else TEXTS[0]
        for seed in range(seeds):
            for target in SCORES_TARGETS:
                for column, pipeline in SCORES.items():
                    yield Run("scores", model, calibration, texts, target, column, pipeline, seed)
    for target in PAPER:
        for pipeline in PAPER_PIPELINES:
            yield Run("paper", PAPER_MODEL, PAPER_CALIBRATION, TEXTS, target, pipeline, pipeline)
    for model in SCORES_MODELS[:3]:
        for target in SEARCH_TARGETS:
            for column, pipeline in SEARCH.items():
                for seed in range(seeds):
                    yield Run("search", model, TEXTS[0], TEXTS[:1], target, column, pipeline, seed)


class Bench:
    """Models, tokenisers and texts, each read once."""

    def __init__(self, models: Path, text: Path, windows: int) -> None:
        self.models, self.text, self.windows = models, text, windows
        self._known: dict[Any, Any] = {}

    def of(self, name: str) -> tuple[Any, Any, Any]:
        """Model, tokeniser and traced graph."""
        if name not in self._known:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from fxprune.tracer.export import trace_causal_lm

            model = AutoModelForCausalLM.from_pretrained(self.models / name, dtype="float32").eval()
            self._known[name] = (model, AutoTokenizer.from_pretrained(self.models / name), trace_causal_lm(model))
        found: tuple[Any, Any, Any] = self._known[name]
        return found

    def corpus(self, name: str, text: str, part: str) -> Any:
        from fxprune.tracer.text import load_text

        key = (name, text, part)
        if key not in self._known:
            self._known[key] = load_text(str(self.text / f"{text}-{part}.txt"), self.of(name)[1])
        return self._known[key]

    def losses(self, run: Run, model: Any) -> list[float]:
        """Log-perplexity on each evaluation text."""
        from fxprune.passes.measure import perplexity

        count = PAPER_WINDOWS if run.part == "paper" else self.windows
        windows = [self.corpus(run.model, text, "eval").windows(128, count) for text in run.texts]
        return [perplexity(model, tokens).nll for tokens in windows]

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def remember_scores(self, run: Run, pipeline: Sequence[Any]) -> None:
        """Scores do not depend on the budget or on how it is shared out: computed for the first of them."""
        first = pipeline[0]
        if run.part == "scores":
            compute = first.scores
            key = ("scores", run.model, repr(replace(first, target=None, by="uniform")))
            object.__setattr__(first, "scores", lambda groups, state: self.once(key, lambda: compute(groups, state)))

    def run(self, run: Run) -> Row:
        from fxprune.ir.verifier import verify
        from fxprune.passes.base import State
        from fxprune.passes.manager import run_pipeline
        from fxprune.passes.measure import parameter_count
        from fxprune.passes.pipeline import parse_pipeline
        from fxprune.passes.registry import ANALYSES, PASSES

        whole, _, traced = self.of(run.model)
        calibration = self.corpus(run.model, run.calibration, "calib")
        state = State(traced.graph, copy.deepcopy(whole), example=traced.example, calibration=calibration)
        pipeline = parse_pipeline([run.text], PASSES)
        self.remember_scores(run, pipeline)
        started = time.perf_counter()
        run_pipeline(pipeline, state, analyses=ANALYSES, verify=verify)
        seconds = time.perf_counter() - started
        kept = parameter_count(state.model) / parameter_count(whole)
        dense = self.once(("dense", run.part, run.model), lambda: self.losses(run, whole))
        return {"kept": kept, "losses": self.losses(run, state.model), "dense": dense, "seconds": seconds}


def increase(row: Row) -> float:
    """Mean over the texts of the increase of the log-perplexity."""
    return statistics.mean(now - then for now, then in zip(row["losses"], row["dense"], strict=True))


def best_of_paper(target: float, text: int) -> float:
    """The least increase of the log-perplexity that any criterion of LLM-Pruner reaches on one text."""
    return min(math.log(values[text] / DENSE[text]) for values in PAPER[target].values())


def paper_table(rows: dict[str, Row], seeds: int) -> list[str]:
    lines = ["| kept | pipeline | perplexity | increase, share of the paper's best | s |", "|---|---|---|---|---|"]
    for target, criteria in PAPER.items():
        for name, values in criteria.items():
            shares = [f"{math.log(v / DENSE[i]) / best_of_paper(target, i):.2f}" for i, v in enumerate(values)]
            shown = " / ".join(f"{v:.2f}" for v in values)
            lines.append(f"| {target} | LLM-Pruner, {name} | {shown} | {' / '.join(shares)} | |")
        for run in runs(seeds):
            if run.part == "paper" and run.target == target and run.key in rows:
                row = rows[run.key]
                rises = [now - then for now, then in zip(row["losses"], row["dense"], strict=True)]
                shares = [f"{rise / best_of_paper(target, i):.2f}" for i, rise in enumerate(rises)]
                shown = " / ".join(f"{math.exp(loss):.2f}" for loss in row["losses"])
                lines.append(
                    f"| {row['kept']:.4f} | `{run.text}` | {shown} | {' / '.join(shares)} | {row['seconds']:.0f} |"
                )
    return lines


def cell(found: list[float], digits: int = 3) -> str:
    """Mean and half the range."""
    spread = f" ± {(max(found) - min(found)) / 2:.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.{digits}f}{spread}" if found else ""


def grouped(rows: dict[str, Row], part: str, seeds: int) -> dict[tuple[str, float], dict[str, list[Row]]]:
    """(model, budget) -> column -> rows of the seeds."""
    found: dict[tuple[str, float], dict[str, list[Row]]] = {}
    for run in runs(seeds):
        if run.part == part and run.key in rows:
            found.setdefault((run.model, run.target), {}).setdefault(run.column, []).append(rows[run.key])
    return found


def increases_table(rows: dict[str, Row], part: str, seeds: int, columns: Sequence[str]) -> list[str]:
    """Models and budgets down, pipelines across; the least in bold."""
    lines = [f"| model | kept | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for (model, target), found in grouped(rows, part, seeds).items():
        values = {column: [increase(row) for row in found[column]] for column in found}
        best = min(values, key=lambda column: statistics.mean(values[column]))
        cells = [f"**{cell(values[c])}**" if c == best else cell(values.get(c, [])) for c in columns]
        lines.append(f"| {model} | {target} | {' | '.join(cells)} |")
    return lines


def draws(rows: dict[str, Row], seeds: int) -> dict[str, int]:
    """Model -> how many draws of the calibration windows every one of its cells is a mean of, at least."""
    found: dict[str, int] = {}
    for (model, _), columns in grouped(rows, "scores", seeds).items():
        found[model] = min([found.get(model, seeds), *map(len, columns.values())])
    return found


def dense_perplexities(rows: dict[str, Row], seeds: int) -> str:
    """Of the model with several evaluation texts."""
    for (model, _), columns in grouped(rows, "scores", seeds).items():
        if model == PAPER_MODEL:
            return " / ".join(f"{math.exp(loss):.2f}" for loss in next(iter(columns.values()))[0]["dense"])
    return "not measured"


def perplexities_table(rows: dict[str, Row], seeds: int) -> list[str]:
    """Of the model with several evaluation texts, text by text."""
    lines = [f"| kept | pipeline | {' | '.join(TEXTS)} |", "|---|---|" + "---|" * len(TEXTS)]
    for (model, target), found in grouped(rows, "scores", seeds).items():
        for column, of_seeds in found.items() if model == PAPER_MODEL else ():
            by_text = zip(*([math.exp(loss) for loss in row["losses"]] for row in of_seeds), strict=True)
            lines.append(f"| {target} | {column} | {' | '.join(cell(list(v), 2) for v in by_text)} |")
    return lines


def verdict(rows: dict[str, Row], seeds: int) -> str:
    """Whether obs is ever worse than one of its peers, whichever way their budget is shared out."""
    cells, worse = 0, []
    for (model, target), found in grouped(rows, "scores", seeds).items():
        means = {column: statistics.mean(increase(row) for row in rows_) for column, rows_ in found.items()}
        peers = [value for column, value in means.items() if column.startswith(PEERS)]
        if len(means) < len(SCORES):
            continue
        cells += 1
        if means["obs global"] > min(peers):
            worse.append(f"{model} at {target}")
    return (
        f"`obs global` is below the best of the four wanda and flap columns in {cells - len(worse)} of {cells} rows"
        + (f"; above it in {', '.join(worse)}" if worse else "")
    )


def page(rows: dict[str, Row], seeds: int, windows: int) -> str:
    head = Path(__file__).with_name("quality.md").read_text(encoding="utf-8")
    facts = {
        "MACHINE": f"{platform.machine()}, Python {platform.python_version()}, one thread, {date.today()}",
        "COMMAND": "python benchmarks/quality.py --models ../shared/models --text ../shared/text --out docs/quality.md",
        "WINDOWS": str(windows),
        "PAPER_WINDOWS": str(PAPER_WINDOWS),
        "DRAWS": ", ".join(f"{model} {count}" for model, count in draws(rows, seeds).items()),
        "DENSE": dense_perplexities(rows, seeds),
        "PAPER": "\n".join(paper_table(rows, seeds)),
        "SCORES": "\n".join(increases_table(rows, "scores", seeds, tuple(SCORES))),
        "VERDICT": verdict(rows, seeds),
        "PERPLEXITIES": "\n".join(perplexities_table(rows, seeds)),
        "SEARCH": "\n".join(increases_table(rows, "search", seeds, tuple(SEARCH))),
    }
    for name, text in facts.items():
        head = head.replace(f"@{name}@", text)
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", required=True, type=Path, help="folder of model directories")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt and NAME-eval.txt")
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".json"), help="where rows are kept")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--part", choices=("paper", "scores", "search"), help="run one part only")
    parser.add_argument("--only", default="", help="run models whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the calibration windows")
    parser.add_argument("--windows", type=int, default=100, help="evaluation windows of 128 tokens of each text")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    rows: dict[str, Row] = json.loads(options.rows.read_text(encoding="utf-8")) if options.rows.exists() else {}
    bench = Bench(options.models, options.text, options.windows)
    for run in runs(options.seeds):
        if run.key in rows or options.part not in (None, run.part) or options.only not in run.model:
            continue
        rows[run.key] = bench.run(run)
        print(f"{run.key}: kept {rows[run.key]['kept']:.4f}, +{increase(rows[run.key]):.4f}", flush=True)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        options.rows.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    if options.out is not None:
        options.out.write_text(page(rows, options.seeds, options.windows), encoding="utf-8")


if __name__ == "__main__":
    main()
