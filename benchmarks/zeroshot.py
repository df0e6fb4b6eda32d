"""Zero-shot accuracy before and after pruning, with the API of lm-eval on local task files; nothing is downloaded.

pip install -c constraints.txt -e '.[eval]'
python benchmarks/zeroshot.py --model ../shared/models/llama-7m --calib ../shared/text/bookcorpus-calib.txt \\
    --tasks ../shared/tasks --rows zeroshot.json --out docs/zeroshot.md

Models are pruned by ``fxprune.apply`` and loaded from its output. Rows in the JSON file are not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]

CHOICE = {
    "output_type": "multiple_choice", "doc_to_text": "{{ctx}}", "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}", "metric_list": [{"metric": "acc_norm"}],
}  # fmt: skip
TASKS: dict[str, dict[str, Any]] = {
    "arc_easy": CHOICE,
    "arc_challenge": CHOICE,
    "boolq": {**CHOICE, "target_delimiter": "", "metric_list": [{"metric": "acc"}]},
    "hellaswag": CHOICE,
    "openbookqa": CHOICE,
    "piqa": CHOICE,
    # By what the rest of the sentence costs after either name (lm-eval's own winogrande).
    "winogrande": {
        "output_type": "multiple_choice",
        "doc_to_text": "label",
        "doc_to_target": "{{sentence[sentence.index('_') + 1:].strip()}}",
        "doc_to_choice": "{% set head = sentence[:sentence.index('_')] %}{{[head + choices[0], head + choices[1]]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "blimp": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
        "metric_list": [{"metric": "acc"}],
    },
}
"""Task configurations of lm-eval, without the data set."""

CHANCE = {"boolq": 0.5, "piqa": 0.5, "winogrande": 0.5, "blimp": 0.5, "lambada": 0.0}
"""Accuracy by chance; 0.25 for the other tasks."""

PIPELINES = {
    "dense": "",
    "0.839, LLM-Pruner's taylor": "taylor{target=params:0.839}",
    "0.839, obs and refit": "obs{target=params:0.839,by=global},compensate",
    "0.634, LLM-Pruner's taylor": "taylor{target=params:0.634}",
    "0.634, obs and refit": "obs{target=params:0.634,by=global},compensate",
}


def configuration(name: str, folder: Path) -> dict[str, Any]:
    """A task of lm-eval, on a local file."""
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    metrics = [{**metric, "aggregation": "mean", "higher_is_better": True} for metric in TASKS[name]["metric_list"]]
    return {**TASKS[name], "task": name, **data, "test_split": "test", "num_fewshot": 0, "metric_list": metrics}


def spread(count: int, wanted: int) -> list[int]:
    """Indices of documents, spread evenly over a file, since BLiMP has its paradigms one after the other."""
    return sorted({round(at * (count - 1) / max(1, min(wanted, count) - 1)) for at in range(min(wanted, count))})


def accuracies(model: Any, tokenizer: Any, tasks: Path, documents: int) -> dict[str, list[float]]:
    """Task -> accuracy, its standard error, number of documents."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lines = {name: sum(1 for _ in (tasks / f"{name}.jsonl").open(encoding="utf-8")) for name in TASKS}
    samples = {name: spread(lines[name], 10 * documents if name == "blimp" else documents) for name in TASKS}
    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu"),
        tasks=[configuration(name, tasks) for name in TASKS],
        samples=samples,
        bootstrap_iters=1,
        log_samples=False,
        task_manager=TaskManager(include_defaults=False),
    )
    assert found is not None
    results: dict[str, list[float]] = {}
    for name, task in TASKS.items():
        metric, result = task["metric_list"][0]["metric"], found["results"][name]
        results[name] = [float(result[f"{metric},none"]), float(result[f"{metric}_stderr,none"]), len(samples[name])]
    return results


def measure(options: argparse.Namespace, pipeline: str) -> Row:
    """Prune a model, load the artifact, and evaluate it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import fxprune

    with tempfile.TemporaryDirectory() as scratch:
        where, kept = options.model, 1.0
        if pipeline:
            where = Path(scratch) / "pruned"
            kept = fxprune.apply(options.model, pipeline, calib=options.calib, out=where).kept
            model: Any = fxprune.load(where).float()
        else:
            model = AutoModelForCausalLM.from_pretrained(where, dtype="float32", trust_remote_code=False)
        started = time.perf_counter()
        found = accuracies(model.eval(), AutoTokenizer.from_pretrained(where), options.tasks, options.documents)
        return {"kept": kept, "tasks": found, "seconds": time.perf_counter() - started}


def table(rows: dict[str, Row]) -> list[str]:
    """A row per task and a column per model, in percent with standard errors."""
    names = [name for name in PIPELINES if name in rows]
    lines = [f"| task | questions | chance | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for task in TASKS:
        cells = [f"{100 * rows[n]['tasks'][task][0]:.1f} ± {100 * rows[n]['tasks'][task][1]:.1f}" for n in names]
        count = rows[names[0]]["tasks"][task][2]
        lines.append(f"| {task} | {count} | {100 * CHANCE.get(task, 0.25):.0f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, type=Path, help="a model directory")
    parser.add_argument("--calib", required=True, type=Path, help="calibration text")
    parser.add_argument("--tasks", required=True, type=Path, help="folder with NAME.jsonl files")
    parser.add_argument("--documents", type=int, default=60, help="questions per task (BLiMP: ten times as many)")
    parser.add_argument("--rows", type=Path, default=Path("zeroshot.json"), help="JSON file for the rows")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows: dict[str, Row] = json.loads(options.rows.read_text(encoding="utf-8")) if options.rows.exists() else {}
    for name, pipeline in PIPELINES.items():
        if name not in rows:
            rows[name] = measure(options, pipeline)
            print(f"{name}: {rows[name]}", flush=True)
            options.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.out is not None:
        facts = {
            "TABLE": "\n".join(table(rows)),
            "PIPELINES": "\n".join(
                f"- {name}: `{p}`, {rows[name]['kept']:.4f} kept" for name, p in PIPELINES.items() if p
            ),
            "VERSION": version("lm-eval"),
            "COMMAND": "python benchmarks/zeroshot.py --model ../shared/models/llama-7m --tasks ../shared/tasks \\\n"
            "        --calib ../shared/text/bookcorpus-calib.txt "
            f"--documents {options.documents} --out docs/zeroshot.md",
            "MACHINE": f"{platform.machine()}, Python {platform.python_version()}, {date.today()}",
        }
        page = Path(__file__).with_name("zeroshot.md").read_text(encoding="utf-8")
        for name, text in facts.items():
            page = page.replace(f"@{name}@", text)
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
