"""Perplexity after pruning, without any training: models, budgets and pipelines, means over calibration seeds.

python benchmarks/quality.py --models ../shared/models --text ../shared/text --rows quality.json --out docs/quality.md

Rows that the JSON file holds are not run again. Calibration reads the ``-calib`` texts, perplexity the ``-eval``
ones. ``--part`` runs one of the parts, ``--seeds`` more or fewer draws of the calibration windows.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
SCORES_TARGETS = (0.8, 0.6)
SCORES = (
    "wanda{BUDGET,by=uniform}", "wanda{BUDGET,by=global}", "flap{BUDGET,by=uniform}", "flap{BUDGET,by=global}",
    "fisher{BUDGET,by=global}", "obs{BUDGET,by=global}",
)  # fmt: skip
BUDGET = "target=params:TARGET,samples=32,seed=SEED"
REFIT = ",compensate{samples=32,seed=SEED}"


@dataclass(frozen=True)
class Run:
    """One pipeline on one model: its text, and the text that it is calibrated on."""

    part: str
    model: str
    calibration: str
    texts: tuple[str, ...]
    target: float
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
    """Everything, the cheapest parts first."""
    for model in SCORES_MODELS:
        texts = TEXTS if model == PAPER_MODEL else TEXTS[:1]
        for target in SCORES_TARGETS:
            for score in SCORES:
                for seed in range(1 if model == PAPER_MODEL else seeds):
                    yield Run("scores", model, texts[0], texts, target, score.replace("BUDGET", BUDGET) + REFIT, seed)
    for target in PAPER:
        for pipeline in PAPER_PIPELINES:
            yield Run("paper", PAPER_MODEL, PAPER_CALIBRATION, TEXTS, target, pipeline)
    for model in SCORES_MODELS[:3]:
        for target in SCORES_TARGETS:
            for way in ("uniform", "search"):
                for seed in range(seeds):
                    pipeline = f"fisher{{target=params:TARGET,by={way},samples=10,seed=SEED}}"
                    yield Run("search", model, TEXTS[0], TEXTS[:1], target, pipeline, seed)


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

    def losses(self, name: str, model: Any, texts: tuple[str, ...]) -> list[float]:
        """Log-perplexity on each evaluation text."""
        from fxprune.passes.measure import perplexity

        windows = [self.corpus(name, text, "eval").windows(128, self.windows) for text in texts]
        return [perplexity(model, tokens).nll for tokens in windows]

    def dense(self, name: str, texts: tuple[str, ...]) -> list[float]:
        if ("dense", name) not in self._known:
            self._known["dense", name] = self.losses(name, self.of(name)[0], texts)
        found: list[float] = self._known["dense", name]
        return found

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
        started = time.perf_counter()
        run_pipeline(parse_pipeline([run.text], PASSES), state, analyses=ANALYSES, verify=verify)
        seconds = time.perf_counter() - started
        kept = parameter_count(state.model) / parameter_count(whole)
        losses = self.losses(run.model, state.model, run.texts)
        return {"kept": kept, "losses": losses, "dense": self.dense(run.model, run.texts), "seconds": seconds}


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


def cell(found: list[float]) -> str:
    """Mean and half the range."""
    spread = f" ± {(max(found) - min(found)) / 2:.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}" if found else ""


def grouped(rows: dict[str, Row], part: str, seeds: int) -> dict[tuple[str, float, str], list[float]]:
    """(model, budget, pipeline) -> increases over the seeds."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for run in runs(seeds):
        if run.part == part and run.key in rows:
            found.setdefault((run.model, run.target, run.pipeline), []).append(increase(rows[run.key]))
    return found


def scores_table(rows: dict[str, Row], part: str, seeds: int) -> list[str]:
    found = grouped(rows, part, seeds)
    names = list(dict.fromkeys(re.sub(r"\{.*?by=(\w+).*", r" \1", pipeline) for _, _, pipeline in found))
    lines = [f"| model | kept | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for model, target in dict.fromkeys((model, target) for model, target, _ in found):
        values = {
            re.sub(r"\{.*?by=(\w+).*", r" \1", p): v for (m, t, p), v in found.items() if (m, t) == (model, target)
        }
        means = {name: statistics.mean(value) for name, value in values.items()}
        best = min(means, key=lambda name: means[name])
        cells = [f"**{cell(values[n])}**" if n == best else cell(values.get(n, [])) for n in names]
        lines.append(f"| {model} | {target} | {' | '.join(cells)} |")
    return lines


def page(rows: dict[str, Row], seeds: int, windows: int) -> str:
    head = Path(__file__).with_name("quality.md").read_text(encoding="utf-8")
    facts = {
        "MACHINE": f"{platform.machine()}, Python {platform.python_version()}, one thread, {date.today()}",
        "COMMAND": "python benchmarks/quality.py --models ../shared/models --text ../shared/text --out docs/quality.md",
        "WINDOWS": str(windows),
        "SEEDS": str(seeds),
        "PAPER": "\n".join(paper_table(rows, seeds)),
        "SCORES": "\n".join(scores_table(rows, "scores", seeds)),
        "SEARCH": "\n".join(scores_table(rows, "search", seeds)),
    }
    for name, text in facts.items():
        head = head.replace(f"@{name}@", text)
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", required=True, type=Path, help="folder of model directories")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt and NAME-eval.txt")
    parser.add_argument("--rows", type=Path, default=Path("quality.json"), help="where rows are kept")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--part", choices=("paper", "scores", "search"), help="run one part only")
    parser.add_argument("--only", default="", help="run models whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="calibration draws of the small models")
    parser.add_argument("--windows", type=int, default=200, help="evaluation windows of 128 tokens of each text")
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
        options.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.out is not None:
        options.out.write_text(page(rows, options.seeds, options.windows), encoding="utf-8")


if __name__ == "__main__":
    main()
