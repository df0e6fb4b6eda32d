"""Pipelines on the checked device and on the CPU, in a process of its own; prints what came out as JSON.

    python on_checked_device.py MODEL DTYPE PIPELINE...

For each pipeline: ``error``, what stopped it on the device, or nothing; and how far the result is from that on the CPU:
``plans``, whether the same units were kept, and ``difference`` of the tensors.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from fxprune.api.model_call import ModelCall
from fxprune.api.placing import largest_forward, place_model
from fxprune.api.progress import silence, silent
from fxprune.api.pruning.model_run import ModelRun
from fxprune.api.request_checks import GivenRows
from fxprune.api.seen_texts import CALIBRATION, RECOVERY
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.runtime.placement import PlacementRequest
from fxprune.runtime.tolerances import relative_difference
from fxprune.tracer.model import load_config, resolve

WORDS = "one two three four five six seven eight nine ten"


def run(model: Path, pipeline: str, device: str, dtype: str) -> ModelRun:
    source = resolve(model)
    config = load_config(source)
    steps = parse_pipeline(pipeline, PASSES)
    request = PlacementRequest.parse(device=device, dtype=dtype)
    placement = place_model(request, source, config, forward=largest_forward(steps), sums=True)
    work = ModelRun(source, steps, ModelCall(config), silent, placement)
    texts = {part: GivenRows(part, (f"{WORDS} {part} " * 60,)) for part in (CALIBRATION, RECOVERY)}
    work.read(steps, texts, loss=None, recorded=None, scores=None)
    work.run(steps, lambda *_: None, None)
    found = {
        str(tensor.device) for tensor in (*work.state.subject.model.parameters(), *work.state.subject.model.buffers())
    }
    assert found == {str(placement.device)}, f"the model is on {found}"
    return work


def compare(model: Path, pipeline: str, dtype: str) -> dict[str, Any]:
    try:
        work = run(model, pipeline, "auto", dtype)
    except Exception as error:
        return {"error": "".join(traceback.format_exception(error)[-6:])}
    plain = run(model, pipeline, "cpu", dtype)
    ours, theirs = (one.state.ledger.plan for one in (work, plain))
    same = (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        kept, wanted = ({key: list(map(int, found)) for key, found in plan.slices.items()} for plan in (ours, theirs))
        same = kept == wanted
    tensors, wanted_tensors = (one.state.subject.model.state_dict() for one in (work, plain))
    difference = max(relative_difference(tensors[name].cpu(), found) for name, found in wanted_tensors.items())
    return {"error": "", "plans": same, "difference": difference}


def main(model: str, dtype: str, *pipelines: str) -> None:
    from checked_device import add_checked_device

    silence()
    kept = add_checked_device()
    for pipeline in pipelines:
        print(json.dumps({pipeline: compare(Path(model), pipeline, dtype)}), flush=True)
    del kept


if __name__ == "__main__":
    main(*sys.argv[1:])
