"""One row of benchmarks/known_models, in a process of its own, so that its peak memory is its own.

python -m fxprune.benchmarks.known_models.row MODELS TEXT 'smollm2-135m|best|0.8|0' [CODE]
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fxprune.benchmarks.known_models.cut import cut
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


def measured(run: Run, models: Path, text: Path, code: Path | None = None) -> dict[str, Any]:
    """Kept share, log-perplexity of every window, answers, CPU seconds of the passes and peak memory in GB."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fxprune.passes.model.measure import parameter_count, perplexity
    from fxprune.tracer.texts.corpus import from_string

    model = AutoModelForCausalLM.from_pretrained(models / run.model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / run.model)
    whole, started = parameter_count(model), time.process_time()
    if run.method != DENSE:
        mixed = "\n".join(characters(text, name, CALIBRATION) for name in TEXTS)
        cut(run, model, from_string("three texts", mixed, tokenizer), code)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    losses = {}
    for name in TEXTS:
        windows = from_string(name, characters(text, name, run.split), tokenizer).windows(WINDOW, EVALUATED)
        losses[name] = [round(perplexity(model, window[None]).nll, 6) for window in windows]
    found = {"kept": parameter_count(model) / whole, "losses": losses, "seconds": round(seconds, 1)}
    return {**found, "peak_gb": round(peak, 2), "answers": _answers(model, tokenizer), "date": date.today().isoformat()}


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
    models, text, key, *code = sys.argv[1:]
    print(json.dumps(measured(Run.of(key), Path(models), Path(text), *map(Path, code))))


if __name__ == "__main__":
    main()
