"""Rows of benchmarks/known_models in which a pruned model is trained for so many CPU seconds; rows that are there stay.

python -m fxprune.benchmarks.known_models.recovered --models MODELS --text ../shared/text --tasks ../shared/tasks \\
    --work WORK

WORK keeps the pruned models, so that several recoveries begin from the same one.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from fxprune.benchmarks.known_models.row import quality
from fxprune.benchmarks.known_models.rows_file import is_whole, read_rows, write_rows
from fxprune.benchmarks.known_models.runs import CALIBRATION, DENSE, EVALUATION, TEXTS, VALIDATION, Run, characters
from fxprune.benchmarks.known_models.zero_shot import MANY

KEPT = 0.8

HELD = 24
"""Examples that are held out, of which the loss is measured nine times; the best weights stay."""
BATCH = 8
COMMON = f"train_on=answers,length=160,batch={BATCH},micro_batch=4,validation=HELD"
LORA = f"lora{{{COMMON},lr=RATE,steps=STEPS}}"
DISTILL = f"distill{{{COMMON},lr=RATE,steps=STEPS}}"
TAUGHT = f"lora{{{COMMON},teacher=0.5,lr=RATE,steps=STEPS}}"

ALPACA = "alpaca-5000.json"
"""Instructions with answers, of which the answers alone are trained on; as in LLM-Pruner, section 4.1."""

TRIED = ("0.0003", "0.001", "0.003")
"""Rates of the short trainings."""

LONG, SHORT = 1800, 240
"""CPU seconds of a training: of the rows of the page, and where a recovery is chosen."""

TIMED = (1, 4)
"""Steps of the two trainings that say what a step costs."""


@dataclass(frozen=True)
class Recovery:
    """How a pruned model is trained.

    Attributes:
        base: the method that pruned it, of ``runs.METHODS``.
        passes: the pass, with RATE and STEPS to be filled in.
        rate: the learning rate.
        seconds: CPU seconds that it may take, with what it measures on held-out examples.
    """

    base: str
    passes: str
    rate: str
    seconds: int = LONG

    def text(self, steps: int, held: int = HELD) -> str:
        """The pass, with so many steps and held-out examples."""
        filled = self.passes.replace("RATE", self.rate).replace("HELD", str(held))
        return filled.replace("STEPS", str(steps))


RECOVERED = {
    "best + lora": Recovery("best", LORA, "0.001"),
    "best + distill": Recovery("best", DISTILL, "0.0003"),
    "paper + lora": Recovery("paper", LORA, "0.001"),
    "paper + distill": Recovery("paper", DISTILL, "0.0003"),
}
"""Name of the row -> what is done, on the first draw."""

TRIALS = {
    f"best + {name} {rate}": Recovery("best", passes, rate, SHORT)
    for name, passes in {"lora": LORA, "taught lora": TAUGHT, "distill": DISTILL}.items()
    for rate in TRIED
}
"""The same for choosing: measured on the validation split alone."""


def pruned(run: Run, models: Path, text: Path, work: Path) -> Path:
    """The pruned model of a run, made where it is not there yet."""
    import fxprune

    out = work / run.key.replace("|", "-").replace(", ", "-")
    if out.is_dir():
        return out
    work.mkdir(parents=True, exist_ok=True)
    calibration = work / "calibration.txt"
    calibration.write_text("\n".join(characters(text, name, CALIBRATION) for name in TEXTS), encoding="utf-8")
    started = time.process_time()
    fxprune.apply(models / run.model, run.pipeline, calib=str(calibration), out=out, dtype="float32")
    seconds = time.process_time() - started
    (work / f"{out.name}.json").write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")
    return out


def recovered(run: Run, options: argparse.Namespace, dense_answers: Sequence[str]) -> dict[str, Any]:
    """Train, and measure what comes out. CPU seconds are of the pruning and of the training.

    Args:
        run: the row; its method is one of RECOVERED or TRIALS.
        options: folders.
        dense_answers: the dense model's to the instructions.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import fxprune
    from fxprune.passes.model.measure import parameter_count
    from fxprune.tracer.texts.corpus import load_text

    how = {**RECOVERED, **TRIALS}[run.method]
    folder = pruned(replace(run, method=how.base, split=EVALUATION), options.models, options.text, options.work)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModelForCausalLM.from_pretrained(options.models / run.model, dtype="float32").eval()
    model: Any = fxprune.load(folder).float()
    data = load_text(str(options.text / ALPACA), tokenizer)
    before = json.loads((options.work / f"{folder.name}.json").read_text(encoding="utf-8"))["seconds"]
    steps = steps_within(how, model, dense, data)
    started = time.process_time()
    report = trained(how.text(steps), model, dense, data)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "kept": parameter_count(model) / parameter_count(dense),
        "seconds": round(before + seconds, 1),
        "training": {
            "pass": how.text(steps), "seconds": round(seconds, 1), "validation": report["validation"],
            "tokens": report["tokens"],
        },
        "peak_gb": round(peak, 2),
        **quality(model, tokenizer, run, options.text, tasks=options.tasks, dense=dense_answers, items=MANY),
        "date": date.today().isoformat(),
    }  # fmt: skip


def trained(passes: str, model: Any, dense: Any, data: Any) -> dict[str, Any]:
    """Run a recovery pass on a model, in place; what it reports.

    Args:
        passes: the pass, as text.
        model: the pruned model.
        dense: the model before, which a teacher is.
        data: rows to train on.
    """
    from fxprune.passes.pipeline import parse_pipeline
    from fxprune.passes.registry import PASSES
    from fxprune.passes.state import Before, Data, State, Subject
    from fxprune.tracer.export import trace_causal_lm

    (step,) = parse_pipeline(passes, PASSES)
    step.check()
    traced = trace_causal_lm(model)
    state = State(Subject(traced.graph, model, example=traced.example), Data(recovery=data), before=Before(model=dense))
    step.run(state)
    report: dict[str, Any] = state.ledger.report[step.name]
    return report


def steps_within(how: Recovery, model: Any, dense: Any, data: Any) -> int:
    """How many steps the CPU seconds of a recovery allow for, by two short trainings of copies of the model.

    A loss on held-out examples is a forward pass, a third of what a step costs for as many.
    """
    costs = []
    for steps in TIMED:
        other, started = copy.deepcopy(model), time.process_time()
        trained(how.text(steps, held=0), other, dense, data)
        costs.append(time.process_time() - started)
    each = (costs[1] - costs[0]) / (TIMED[1] - TIMED[0])
    return max(8, round(how.seconds / each - 9 * HELD / BATCH / 3))


def measured(key: str, options: argparse.Namespace) -> str | None:
    """The row as JSON text, from a fresh process; None where it failed, whose reason stands on stderr then."""
    command = [sys.executable, "-W", "ignore", "-m", "fxprune.benchmarks.known_models.recovered", "--one", key]
    for name in ("models", "text", "tasks", "work", "model", "rows"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", required=True, type=Path, help="folder of model directories")
    parser.add_argument("--text", required=True, type=Path, help="folder of texts, with alpaca-5000.json")
    parser.add_argument("--tasks", required=True, type=Path, help="folder of NAME.jsonl task files")
    parser.add_argument("--work", required=True, type=Path, help="folder that keeps the pruned models")
    parser.add_argument("--model", default="smollm2-135m", help="folder of the model")
    here = Path(__file__).parent
    parser.add_argument("--rows", type=Path, default=here / "rows.json", help="JSON file with the dense model's row")
    parser.add_argument("--recovered", type=Path, default=here / "recovered.json", help="JSON file of the rows")
    parser.add_argument("--names", nargs="*", default=[], help="measure only these")
    parser.add_argument("--split", choices=(EVALUATION, VALIDATION), default=EVALUATION, help="what is measured on")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    dense = read_rows(options.rows).get(Run(options.model, DENSE).key)
    if not is_whole(dense, options.tasks):
        raise SystemExit(f"{options.rows} has no dense row with tasks: run known_models.table with --tasks first")
    if options.one:
        print(json.dumps(recovered(Run.of(options.one), options, dense["written"]["answers"])))
        return 0
    failed = 0
    for name in options.names or (RECOVERED if options.split == EVALUATION else TRIALS):
        key = Run(options.model, name, KEPT, split=options.split).key
        if key in read_rows(options.recovered):
            continue
        found = measured(key, options)
        failed += found is None
        if found is not None:
            write_rows(options.recovered, read_rows(options.recovered) | {key: json.loads(found)})
        print(key, "failed" if found is None else "measured", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
