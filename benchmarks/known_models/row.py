"""One row of benchmarks/known_models, in a process of its own, so that its peak memory is its own.

python -m fxprune.benchmarks.known_models.row MODELS TEXT 'smollm2-135m|best|0.8|0' --tasks TASKS --rows rows.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fxprune.benchmarks.known_models.cut import cut
from fxprune.benchmarks.known_models.rows_file import read_rows
from fxprune.benchmarks.known_models.runs import (
    ANSWER,
    CALIBRATION,
    DENSE,
    EVALUATED,
    PROMPTS,
    TEXTS,
    WINDOW,
    Run,
    characters,
)
from fxprune.benchmarks.known_models.zero_shot import ITEMS, MANY


def measured(
    run: Run,
    models: Path,
    text: Path,
    *,
    code: Path | None = None,
    tasks: Path | None = None,
    dense: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Prune, and measure what comes out; CPU seconds and peak memory in GB are of the passes.

    Args:
        run: the row.
        models: folder of model directories.
        text: folder of texts.
        code: folder of checkouts of peers.
        tasks: folder of task files; None measures no tasks and no answers to instructions.
        dense: the dense model's answers to the instructions; None writes them anew.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fxprune.benchmarks.known_models.written import followed
    from fxprune.passes.model.measure import parameter_count
    from fxprune.tracer.texts.corpus import from_string

    model = AutoModelForCausalLM.from_pretrained(models / run.model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / run.model)
    if tasks is not None and dense is None and run.method != DENSE:
        dense = [str(tokenizer.decode(row)) for row in followed(model, tokenizer)]
    whole, started = parameter_count(model), time.process_time()
    if run.method != DENSE:
        mixed = "\n".join(characters(text, name, CALIBRATION) for name in TEXTS)
        cut(run, model, from_string("three texts", mixed, tokenizer), code)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    about = {"kept": parameter_count(model) / whole, "seconds": round(seconds, 1), "peak_gb": round(peak, 2)}
    compared = None if run.method == DENSE else dense
    items = MANY if run == Run(run.model, DENSE) else ITEMS
    found = quality(model, tokenizer, run, text, tasks=tasks, dense=compared, items=items)
    return {**about, **found, "date": date.today().isoformat()}


def quality(
    model: Any, tokenizer: Any, run: Run, text: Path, *, tasks: Path | None, dense: Sequence[str] | None, items: int
) -> dict[str, Any]:
    """What a model is worth: log-perplexity of every window; with task files, what is right of their items, what it
    writes, and the CPU seconds that both took; the most probable words after PROMPTS.

    Args:
        model: dense, pruned or recovered, in eval mode.
        tokenizer: its tokenizer.
        run: says the split.
        text, tasks: folders.
        dense: the dense model's answers to the instructions, where it is another.
        items: of each task.
    """
    from fxprune.benchmarks.known_models.written import generated
    from fxprune.benchmarks.known_models.zero_shot import right
    from fxprune.passes.model.measure import perplexity
    from fxprune.tracer.texts.corpus import from_string

    losses = {}
    for name in TEXTS:
        windows = from_string(name, characters(text, name, run.split), tokenizer).windows(WINDOW, EVALUATED)
        losses[name] = [round(perplexity(model, window[None]).nll, 6) for window in windows]
    found: dict[str, Any] = {"losses": losses, "answers": _answers(model, tokenizer)}
    if tasks is None:
        return found
    times = [time.process_time()]
    found["tasks"] = right(model, tokenizer, tasks, items=items, split=run.split)
    times.append(time.process_time())
    found["written"] = generated(model, tokenizer, dense)
    times.append(time.process_time())
    return {**found, "measuring": [round(after - before, 1) for before, after in itertools.pairwise(times)]}


def _answers(model: Any, tokenizer: Any) -> list[str]:
    """What the model writes after each prompt."""
    from fxprune.passes.model.forward import decoded, inference

    found = []
    with inference(model):
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            written: list[int] = []
            logits, state = decoded(model, ids)
            for _ in range(ANSWER):
                written.append(int(logits[0, -1].argmax()))
                logits, state = decoded(model, torch.tensor([written[-1:]]), state)
            found.append(tokenizer.decode(written))
    return found


def main() -> None:
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, help="folder of model directories")
    parser.add_argument("text", type=Path, help="folder of texts")
    parser.add_argument("key", help="of the row")
    parser.add_argument("--code", type=Path, help="folder of checkouts of peers")
    parser.add_argument("--tasks", type=Path, help="folder of task files")
    parser.add_argument("--rows", type=Path, help="JSON file of the rows, for what the dense model answers")
    options = parser.parse_args()
    run = Run.of(options.key)
    rows = read_rows(options.rows) if options.rows else {}
    dense = rows.get(Run(run.model, DENSE, split=run.split).key, {}).get("written", {}).get("answers")
    folders = {"code": options.code, "tasks": options.tasks}
    found = measured(run, options.models, options.text, **folders, dense=dense)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
