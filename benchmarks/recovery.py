"""Recovery of llama-7m after a fifth of its parameters was removed: how much quality training recovers, and its cost.

python benchmarks/recovery.py --model ../shared/models/llama-7m --text ../shared/text --out docs/recovery.md

Rows in the JSON file are not run again. Scores, refitting and training read the ``-recover`` and ``-calib`` texts.
Perplexity is of the ``-eval`` texts: the same 200 windows of 128 tokens of each as in docs/quality.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fxprune.benchmarks.recovery_text import EACH, recovery_text, spare_text

Row = dict[str, Any]

COMMAND = "python benchmarks/recovery.py --model ../shared/models/llama-7m --text ../shared/text --out docs/recovery.md"

BEGUN = "2026-11-24"
"""The day on which the first row in the JSON file was measured."""

TEXTS = ("tinystories", "wikitext2", "bookcorpus")
WINDOWS, LENGTH = 200, 128
SPARE_WINDOWS = 64
SEEDS = (1, 2)
CUT = "taylor{target=params:0.8}"
REFIT = f"{CUT},compensate{{samples=128,seed=0}}"
SHORT = "batch=16,micro_batch=16,length=128,lr=0.001"
EQUAL = "steps=40,batch=16,micro_batch=16,length=128,lr=0.001"
LONG = "steps=STEPS,batch=16,micro_batch=16,length=128,lr=0.001"
ADAPT = f"{CUT},lora{{steps=40,batch=16,micro_batch=16,length=128,OPTIONS}}"
CHOICES = {
    "the text alone": ("lr=0.001", "lr=0.002", "lr=0.004", "lr=0.008"),
    "the teacher too": (
        "lr=0.001,teacher=0.5",
        "lr=0.002,teacher=0.5",
        "lr=0.004,teacher=0.5",
        "lr=0.002,teacher=0.5,temperature=2",
        "lr=0.004,teacher=0.25",
        "lr=0.008,teacher=0.25",
        "lr=0.008,teacher=0.5",
        "lr=0.002,teacher=1",
        "lr=0.004,teacher=1",
    ),
}
"""What ``lora`` learns from -> options that are tried."""

BEST = "fisher{target=params:0.8,by=global,samples=64,seed=0},compensate{samples=128,seed=0}"


@dataclass(frozen=True)
class Run:
    """A pipeline, and the table in which it is a row."""

    table: str
    pipeline: str


def adapted(options: str) -> str:
    """The pipeline for some options of ``lora``."""
    return ADAPT.replace("OPTIONS", options)


def runs(steps: int) -> Iterator[Run]:
    """All runs, the most important first."""
    long = LONG.replace("STEPS", str(steps))
    yield Run("long", CUT)
    yield Run("long", REFIT)
    yield Run("long", f"{REFIT},distill{{{long}}}")
    yield Run("equal", f"{CUT},lora{{{EQUAL}}}")
    yield Run("equal", f"{CUT},lora{{{EQUAL},teacher=1}}")
    yield Run("equal", f"{CUT},lora{{{EQUAL},teacher=0.5}}")
    for seed in (1, 2):
        for teacher in ("", ",teacher=0.5"):
            yield Run("equal", f"{CUT},lora{{{EQUAL}{teacher},seed={seed}}}")
    yield Run("long", BEST)
    yield Run("equal", f"{CUT},finetune{{{EQUAL}}}")
    yield Run("equal", f"{CUT},distill{{{EQUAL}}}")
    for blocks in (f"{EQUAL},blocks=20", f"steps=20,{SHORT},blocks=20"):
        yield Run("equal", f"{CUT},distill{{{blocks}}}")
    for teacher in (EQUAL, f"steps=20,{SHORT},blocks=20"):
        yield Run("equal", f"{REFIT},distill{{{teacher}}}")
    for options in CHOICES.values():
        yield from (Run("choice", adapted(each)) for each in options)
    yield Run("long", f"{BEST},distill{{{long}}}")
    yield Run("long", f"{CUT},distill{{{long}}}")


class Bench:
    """The model and its texts, read once."""

    def __init__(self, model: Path, text: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from fxprune.tracer.export import trace_causal_lm
        from fxprune.tracer.texts.corpus import load_text

        tokenizer = AutoTokenizer.from_pretrained(model)
        self.whole = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        self.traced = trace_causal_lm(self.whole)
        # The paper's own calibration text comes first, of which taylor reads the first ten windows.
        self.data = recovery_text(text, reversed(TEXTS), tokenizer)
        self.held = [load_text(str(text / f"{name}-eval.txt"), tokenizer).windows(LENGTH, WINDOWS) for name in TEXTS]
        self.spare = [spare_text(text, name, tokenizer).windows(LENGTH, SPARE_WINDOWS) for name in TEXTS]

    def losses(self, model: Any) -> Row:
        """Log-perplexity on each evaluation text, and on each spare text, on which options are chosen."""
        from fxprune.passes.model.measure import perplexity

        read = {"losses": self.held, "spare": self.spare}
        return {name: [perplexity(model, windows).nll for windows in texts] for name, texts in read.items()}

    def run(self, pipeline: str) -> Row:
        """Run a pipeline on a copy of the model; measures process time and wall time."""
        from fxprune.ir.verifier import verify
        from fxprune.passes.manager import run_pipeline
        from fxprune.passes.model.measure import parameter_count
        from fxprune.passes.pipeline import parse_pipeline
        from fxprune.passes.registry import PASSES
        from fxprune.passes.state import Data, State, Subject
        from fxprune.passes.structure import ANALYSES

        subject = Subject(self.traced.graph, copy.deepcopy(self.whole), example=self.traced.example)
        state = State(subject, Data(calibration=self.data, recovery=self.data))
        clock, cpu = time.perf_counter(), time.process_time()
        run_pipeline(parse_pipeline([pipeline], PASSES), state, analyses=ANALYSES, verify=verify)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        kept = parameter_count(state.subject.model) / parameter_count(self.whole)
        return {"kept": kept, **self.losses(state.subject.model), "cpu": cpu, "clock": clock}


def closed(row: Row, cut: Row, dense: Sequence[float]) -> list[float]:
    """The recovered share of the increase of the log-perplexity: for each text, and for the sum."""
    texts = list(zip(row["losses"], cut["losses"], dense, strict=True))
    both = [sum(was - now for now, was, _ in texts), sum(was - whole for _, was, whole in texts)]
    return [*((was - now) / (was - whole) for now, was, whole in texts), both[0] / both[1]]


def table(rows: dict[str, Any], wanted: Sequence[Run]) -> list[str]:
    lines = ["| kept | pipeline | perplexity | gap closed | of all | CPU s |", "|---|---|---|---|---|---|"]
    for run in wanted:
        row = rows.get(run.pipeline)
        if row is None:
            continue
        lines.append(f"| {row['kept']:.4f} | `{run.pipeline}` | {results(row, rows)} |")
    return lines


def chosen(rows: dict[str, Any]) -> dict[str, str]:
    """What ``lora`` learns from -> of the options that were run, those with the lowest log-perplexity on spare text."""
    measured = {
        kind: [each for each in options if "spare" in rows.get(adapted(each), {})] for kind, options in CHOICES.items()
    }
    return {
        kind: min(options, key=lambda each: statistics.mean(rows[adapted(each)]["spare"]))
        for kind, options in measured.items()
        if options
    }


def further(rows: dict[str, Any]) -> Iterator[Run]:
    """Further seeds of the options that were chosen on spare text; to be called when all options were run."""
    for options in chosen(rows).values():
        yield from (Run("choice", adapted(f"{options},seed={seed}")) for seed in SEEDS)


def choice_table(rows: dict[str, Any]) -> list[str]:
    """All options, with the ones chosen on spare text in bold, and their further seeds."""
    lines = [
        "| learns from | options | spare text: mean log-perplexity | perplexity | gap closed | of all | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    best = chosen(rows)
    for kind, options in CHOICES.items():
        seeds = [f"{best[kind]},seed={seed}" for seed in SEEDS] if kind in best else []
        for each in (*options, *seeds):
            row = rows.get(adapted(each), {})
            if "spare" in row:
                shown = f"**`{each}`**" if each == best[kind] else f"`{each}`"
                lines.append(f"| {kind} | {shown} | {statistics.mean(row['spare']):.4f} | {results(row, rows)} |")
    return lines


def results(row: Row, rows: dict[str, Any]) -> str:
    """The last cells of a row in all tables: perplexity, gap closed, of all, seconds."""
    *shares, whole = closed(row, rows[CUT], rows["dense"]["losses"])
    shown = " / ".join(f"{math.exp(loss):.2f}" for loss in row["losses"])
    texts = " / ".join(f"{share:.0%}" for share in shares)
    return f"{shown} | {texts} | {whole:.0%} | {row['cpu']:.0f}"


def page(rows: dict[str, Any], steps: int) -> str:
    found = list(runs(steps))
    equal = [Run("equal", CUT), *(run for run in found if run.table == "equal")]
    facts = {
        "MACHINE": f"{platform.machine()}, Python {platform.python_version()}, one thread, {BEGUN} to {date.today()}",
        "DENSE": " / ".join(f"{math.exp(loss):.2f}" for loss in rows["dense"]["losses"]),
        "LONG": "\n".join(table(rows, [run for run in found if run.table == "long"])),
        "EQUAL": "\n".join(table(rows, equal)),
        "COMMAND": COMMAND,
        "CHOICE": "\n".join(choice_table(rows)),
        "SPARE": f"{SPARE_WINDOWS} windows of {LENGTH} tokens of each text",
        "EACH": ", ".join(f"{count:,} of {name}" for name, count in EACH.items()),
    }
    text = Path(__file__).with_name("recovery.md").read_text(encoding="utf-8")
    for name, value in facts.items():
        text = text.replace(f"@{name}@", value)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, type=Path, help="directory of llama-7m")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt, -recover.txt and -eval.txt")
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".json"), help="JSON file for the rows")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--steps", type=int, default=290, help="training steps of the long run")
    parser.add_argument("--table", choices=("long", "equal", "choice"), help="run the rows of one table only")
    parser.add_argument(
        "--no-run", action="store_true", help="run nothing: write the page from the rows in the JSON file"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    rows: dict[str, Any] = json.loads(options.rows.read_text(encoding="utf-8")) if options.rows.exists() else {}
    bench = None
    for run in itertools.chain((Run("dense", "dense"),), runs(options.steps), further(rows)):
        # Rows of the first version do not hold what options are chosen on.
        known = run.pipeline in rows and (run.table != "choice" or "spare" in rows[run.pipeline])
        if known or options.no_run or options.table not in (None, run.table):
            continue
        bench = bench or Bench(options.model, options.text)
        rows[run.pipeline] = bench.losses(bench.whole) if run.table == "dense" else bench.run(run.pipeline)
        print(run.pipeline, rows[run.pipeline], flush=True)
        options.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.out is not None:
        options.out.write_text(page(rows, options.steps), encoding="utf-8")


if __name__ == "__main__":
    main()
