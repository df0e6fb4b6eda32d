"""Zero-shot accuracy on local task files by lm-eval, item by item, so that models can be compared in pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxprune.benchmarks.known_models.runs import EVALUATION
from fxprune.benchmarks.zeroshot import TASKS

PAPER = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande")
"""The seven tasks of LLM-Pruner (arXiv 2305.11627, table 1)."""

ITEMS, MANY = 50, 400
"""Items of each task in a row of the table; in the rows of the dense and of recovered models. BLiMP, whose items are
short, has twice as many. The fewer are the first of the many, so that differences are paired."""

_SPREAD = (math.sqrt(5) - 1) / 2
"""Multiples of the golden ratio fall evenly into [0, 1): the first items of the order are spread over the file."""


def chosen(count: int, wanted: int, split: str = EVALUATION) -> list[int]:
    """Places of items in a file: the first of a fixed order for evaluation, the last of it for validation.

    Args:
        count: of the items in the file.
        wanted: how many; fewer where the file has less than twice as many.
        split: of ``runs.SPLITS``.
    """
    order = sorted(range(count), key=lambda place: place * _SPREAD % 1)
    wanted = min(wanted, count // 2)
    return order[:wanted] if split == EVALUATION else order[::-1][:wanted]


def configuration(name: str, folder: Path, wanted: int, split: str = EVALUATION) -> dict[str, Any]:
    """A task of lm-eval on some of the items of a local file, with the templates of ``benchmarks/zeroshot.py``."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[place]) for place in chosen(len(lines), wanted, split)]
    metrics = [{**metric, "aggregation": "mean", "higher_is_better": True} for metric in TASKS[name]["metric_list"]]

    def documents(**_: Any) -> dict[str, Any]:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    own = {"task": name, "custom_dataset": documents, "test_split": "test", "num_fewshot": 0, "metric_list": metrics}
    return {**TASKS[name], **own}


def right(model: Any, tokenizer: Any, folder: Path, *, items: int = ITEMS, split: str = EVALUATION) -> dict[str, str]:
    """Task -> a digit for each item, 1 where the model is right.

    Args:
        model: of transformers, in eval mode.
        tokenizer: its tokenizer.
        folder: with NAME.jsonl files.
        items: of each task; BLiMP has twice as many.
        split: which items.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from fxprune.benchmarks.known_models.scored import ScoredModel

    tasks = [configuration(name, folder, 2 * items if name == "blimp" else items, split) for name in TASKS]
    found = simple_evaluate(
        model=ScoredModel(model, tokenizer), tasks=tasks, bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    assert found is not None
    return {
        name: "".join(
            str(int(sample[task["metric_list"][0]["metric"]]))
            for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        )
        for name, task in TASKS.items()
    }


def accuracy(digits: str) -> float:
    """The share of items that are right."""
    return digits.count("1") / len(digits)


def mean_accuracy(tasks: Mapping[str, str], count: int | None = None) -> float:
    """The mean over the seven tasks of the paper, each by its first ``count`` items, or by all."""
    return sum(accuracy(tasks[name][:count]) for name in PAPER) / len(PAPER)
