"""Perplexity after pruning: models, budgets and pipelines, means over draws, with little or no training.

python benchmarks/quality.py --models ../shared/models --text ../shared/text --out docs/quality.md

Rows that quality.json holds are not run again; ``--rows`` names another file, to measure everything anew. Calibration
reads the ``-calib`` texts, recovery also the ``-recover`` ones, perplexity the ``-eval`` ones; that they share nothing
is checked. LLM-Pruner's own code runs where ``--llm-pruner`` names a checkout of it. ``--part`` runs some of the parts,
``--only`` some models, ``--seeds`` more or fewer draws. Processes that run side by side want files of their own:
``--merge FILE ...`` puts their rows into one.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from fxprune.benchmarks.known_models.page import section_of, with_section
from fxprune.benchmarks.llm_pruner import LLMPruner
from fxprune.benchmarks.quality_page import increase, page
from fxprune.benchmarks.quality_runs import (
    MIXED,
    PAPER_FIRST,
    PAPER_RATIOS,
    PAPER_WINDOWS,
    PARTS,
    TEXTS,
    Row,
    Run,
    runs,
)
from fxprune.benchmarks.recovery_text import recovery_text, spare_text

SPARE_WINDOWS = 64


class Bench:
    """Models, tokenizers and texts; each is read once."""

    def __init__(self, models: Path, text: Path, windows: int, llm_pruner: Path | None = None) -> None:
        self.models, self.text, self.windows = models, text, windows
        self.llm_pruner = None if llm_pruner is None else LLMPruner(llm_pruner)
        self._known: dict[Any, Any] = {}

    def of(self, name: str) -> tuple[Any, Any, Any]:
        """Model, tokenizer and traced graph."""
        if name not in self._known:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            from fxprune.tracer.export import trace_causal_lm

            model = AutoModelForCausalLM.from_pretrained(self.models / name, dtype="float32").eval()
            self._known[name] = (model, AutoTokenizer.from_pretrained(self.models / name), trace_causal_lm(model))
        found: tuple[Any, Any, Any] = self._known[name]
        return found

    def corpus(self, name: str, text: str, part: str) -> Any:
        from fxprune.tracer.texts.corpus import from_string, load_text

        tokenizer = self.of(name)[1]
        if text == MIXED:
            parts = [(self.text / f"{each}-{part}.txt").read_text(encoding="utf-8") for each in TEXTS]
            length = min(map(len, parts))
            mixed = "\n".join(each[:length] for each in parts)
            return self.once((name, text, part), lambda: from_string("three texts", mixed, tokenizer))
        return self.once((name, text, part), lambda: load_text(str(self.text / f"{text}-{part}.txt"), tokenizer))

    def training(self, run: Run) -> Any:
        """Text for recovery, None for a run without it."""
        if not run.training:
            return None
        return self.once(
            ("training", run.model, run.training),
            lambda: recovery_text(self.text, run.training, self.of(run.model)[1]),
        )

    def require_apart(self, run: Run) -> None:
        """Stop if a text that the run may read overlaps a text that it is measured on."""
        refit = self.corpus(run.model, run.refit, "calib") if run.refit else None
        for read in (self.corpus(run.model, run.calibration, "calib"), refit, self.training(run)):
            if read is not None:
                key = ("apart", run.model, read.name, run.texts, self.count(run))
                self.once(key, lambda read=read: self._refuse_overlap(run, read))

    def _refuse_overlap(self, run: Run, read: Any) -> None:
        from fxprune.tracer.texts.fingerprints import TrackedText
        from fxprune.tracer.texts.overlap import MeasuredText, overlap

        tracked_text = TrackedText(read)
        tracked_text.windows(128)
        known = tracked_text.fingerprint("read", read.name)
        for name in run.texts:
            text = self.corpus(run.model, name, "eval")
            windows = text.windows(128, self.count(run))
            found = overlap(known, MeasuredText.of(windows, text)) if known else None
            if found is not None:
                raise SystemExit(f"{read.name} and {text.name} share {found.passages} passages: {found.example!r}")

    def count(self, run: Run) -> int:
        """Evaluation windows of each text."""
        return PAPER_WINDOWS if run.part in ("paper", "halves", "criteria") else self.windows

    def losses(self, run: Run, model: Any) -> list[float]:
        """Log-perplexity on each evaluation text; to choose a learning rate, on spare text instead."""
        from fxprune.passes.model.measure import perplexity

        if run.part == "rate":
            tokenizer = self.of(run.model)[1]
            windows = [spare_text(self.text, text, tokenizer).windows(128, SPARE_WINDOWS) for text in run.texts]
        else:
            windows = [self.corpus(run.model, text, "eval").windows(128, self.count(run)) for text in run.texts]
        return [perplexity(model, tokens).nll for tokens in windows]

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def remember_scores(self, run: Run, pipeline: Sequence[Any]) -> None:
        """Scores do not depend on the budget or its distribution, so they are computed once."""
        if run.part in ("scores", "recovery", "rate"):
            at = next(at for at, step in enumerate(pipeline) if hasattr(step, "scores"))
            first, before = pipeline[at], pipeline[:at]
            compute = first.scores
            key = ("scores", run.model, repr(before), repr(replace(first, target=None, by="uniform")))
            object.__setattr__(first, "scores", lambda groups, state: self.once(key, lambda: compute(groups, state)))

    def run(self, run: Run) -> Row:
        from fxprune.passes.model.measure import parameter_count
        from fxprune.passes.state import Data, State, Subject

        whole, _, traced = self.of(run.model)
        calibration = self.corpus(run.model, run.calibration, "calib")
        self.require_apart(run)
        subject = Subject(traced.graph, copy.deepcopy(whole), example=traced.example)
        state = State(subject, Data(calibration=calibration, recovery=self.training(run)))
        started = time.process_time()
        (self._own_code if run.part == "criteria" else self._pipeline)(run, state)
        seconds = time.process_time() - started
        kept = parameter_count(state.subject.model) / parameter_count(whole)
        dense = self.once(("dense", run.part, run.model), lambda: self.losses(run, whole))
        losses, today = self.losses(run, state.subject.model), date.today().isoformat()
        return {"kept": kept, "losses": losses, "dense": dense, "seconds": seconds, "date": today}

    def _pipeline(self, run: Run, state: Any) -> None:
        from fxprune.ir.verifier import verify
        from fxprune.passes.manager import run_pipeline
        from fxprune.passes.pipeline import parse_pipeline
        from fxprune.passes.registry import PASSES
        from fxprune.passes.structure import ANALYSES

        pipeline = parse_pipeline([run.text], PASSES)
        self.remember_scores(run, pipeline)

        def read_other(step: Any, state: Any) -> None:
            if run.refit and step.name == pipeline[0].name:
                state.data.calibration = self.corpus(run.model, run.refit, "calib")

        run_pipeline(pipeline, state, analyses=ANALYSES, verify=verify, between=read_other)

    def _own_code(self, run: Run, state: Any) -> None:
        """Prune with LLM-Pruner, on the windows that a pipeline with ``generate`` reads."""
        from fxprune.passes.calibrate.generate import Generate

        assert self.llm_pruner is not None
        if run.seed is not None:
            Generate(windows=run.written, first=PAPER_FIRST, seed=run.seed).run(state)
        windows = state.data.calibration.windows(128, PAPER_FIRST + run.written)
        self.llm_pruner.cut(state.subject.model, windows, run.column, PAPER_RATIOS[run.target])


def write(path: Path, rows: dict[str, Row], wanted: Iterable[Run]) -> None:
    """Write the rows: first those of known runs, in their order, then all others."""
    keys = dict.fromkeys([*(run.key for run in wanted if run.key in rows), *rows])
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in keys)
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def read(path: Path) -> dict[str, Row]:
    found: dict[str, Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", required=True, type=Path, help="folder of model directories")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt, -recover.txt and -eval.txt")
    parser.add_argument("--llm-pruner", type=Path, help="a checkout of github.com/horseee/LLM-Pruner, to run it too")
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".json"), help="JSON file for the rows")
    parser.add_argument("--merge", type=Path, nargs="*", default=(), help="further JSON files; later ones win")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--part", choices=PARTS, nargs="*", default=PARTS, help="run these parts only")
    parser.add_argument("--only", default="", help="run models whose name contains this")
    parser.add_argument("--no-run", action="store_true", help="run nothing: merge rows, and write the page")
    parser.add_argument("--seeds", type=int, default=3, help="number of draws of the calibration windows")
    parser.add_argument("--windows", type=int, default=100, help="evaluation windows of 128 tokens of each text")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    rows = {key: row for path in (options.rows, *options.merge) for key, row in read(path).items()}
    wanted = list(runs(options.seeds))
    write(options.rows, rows, wanted)
    bench = Bench(options.models, options.text, options.windows, options.llm_pruner)
    for run in wanted:
        skip = options.no_run or run.part not in options.part or options.only not in run.model
        unable = run.part == "criteria" and bench.llm_pruner is None
        if skip or unable or run.key in rows:
            continue
        rows[run.key] = bench.run(run)
        print(f"{run.key}: kept {rows[run.key]['kept']:.4f}, +{increase(rows[run.key]):.4f}", flush=True)
        write(options.rows, rows, wanted)
    if options.out is not None:
        text = page(rows, options.seeds, options.windows)
        kept = section_of(options.out.read_text(encoding="utf-8")) if options.out.exists() else ""
        options.out.write_text(with_section(text, kept) if kept else text, encoding="utf-8")


if __name__ == "__main__":
    main()
