"""What runs on the checked device, in a process of its own: prints a line of JSON for every case.

    python on_checked_device.py MODEL CASE...

A case is a pipeline, which runs on the device and on the CPU, or a key of :data:`CALLS`. ``error`` says what stopped it
on the device; for a pipeline ``plans`` says whether the same units were kept, and ``difference`` how far the tensors
are apart.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from checked_device import NAME, add_checked_device

import fxprune
from fxprune.api.inputs.reading import Readings
from fxprune.api.model_call import ModelCall
from fxprune.api.placing import largest_forward, place_model
from fxprune.api.progress import silence, silent
from fxprune.api.pruning.model_run import ModelRun
from fxprune.api.request_checks import CALIBRATION, RECOVERY, GivenRows
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.select.latency import forward_seconds
from fxprune.runtime.place.placement import PlacementRequest
from fxprune.runtime.tolerances import relative_difference
from fxprune.tracer.model import load_config, resolve

WORDS = "one two three four five six seven eight nine ten"
TEXTS = {part: [f"{WORDS} {part} " * 60] for part in (CALIBRATION, RECOVERY, "evaluation")}


def run(folder: Path, pipeline: str, device: str) -> ModelRun:
    """A pipeline on a device, in float32; nothing is written."""
    source = resolve(folder)
    config = load_config(source)
    steps = parse_pipeline(pipeline, PASSES)
    request = PlacementRequest.parse(device=device, dtype="float32")
    placement = place_model(request, source, config, forward=largest_forward(steps), sums=True)
    work = ModelRun(source, steps, ModelCall(config), silent, placement=placement)
    texts = {part: GivenRows(part, tuple(TEXTS[part])) for part in (CALIBRATION, RECOVERY)}
    work.read(steps, texts, {}, loss=None, recorded=None, scores=None, readings=Readings())
    work.run(steps, lambda *_: None, None)
    model = work.state.subject.model
    found = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    assert found == {str(placement.device)}, f"the model is on {found}"
    return work


def compared(folder: Path, pipeline: str) -> dict[str, Any]:
    """A pipeline on both devices."""
    work, plain = run(folder, pipeline, NAME), run(folder, pipeline, "cpu")
    kept, wanted = (
        None if one.state.ledger.plan is None else {key: list(k) for key, k in one.state.ledger.plan.slices.items()}
        for one in (work, plain)
    )
    tensors, expected = (one.state.subject.model.state_dict() for one in (work, plain))
    difference = max(relative_difference(tensors[name].cpu(), found) for name, found in expected.items())
    return {"plans": kept == wanted, "difference": difference}


def refused(_folder: Path) -> dict[str, Any]:
    """Operations that meet tensors of two devices, and whether each was stopped."""
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=NAME)
    generator = torch.Generator().manual_seed(0)
    operations: Mapping[str, Callable[[], Any]] = {
        "addition": lambda: there + here,
        "in place": lambda: there.add_(here),
        "product": lambda: here @ there,
        "index": lambda: there.index_select(0, torch.tensor([0])),
        "list": lambda: torch.cat([there, here]),
        "embedding": lambda: torch.nn.functional.embedding(torch.tensor([[0]]), there),
        "numpy": there.numpy,
        "random numbers": lambda: torch.rand(3, device=NAME, generator=generator),
    }
    found = {}
    for name, operation in operations.items():
        try:
            operation()
            found[name] = False
        except (RuntimeError, TypeError):
            found[name] = True
    return {"stopped": found}


def evaluated(folder: Path) -> dict[str, Any]:
    """Perplexity and speed, on both devices."""
    rows = [
        fxprune.evaluate(folder, TEXTS["evaluation"], window=16, windows=4, device=device, dtype="float32")[0]
        for device in ("auto", "cpu")
    ]
    return {"where": rows[0].to_json()["placement"]["device"], "perplexities": [row.perplexity.value for row in rows]}


def written(folder: Path) -> dict[str, Any]:
    """Digests of what ``apply`` writes, from both devices."""
    digests = []
    with tempfile.TemporaryDirectory() as scratch:
        for device in ("auto", "cpu"):
            out = Path(scratch) / device
            given = {"ratio": 0.25, "calib": TEXTS[CALIBRATION], "device": device, "dtype": "float32"}
            fxprune.apply(folder, "taylor{samples=3,length=16}", out=out, **given)
            digests.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())})
    return {"digests": digests}


class Rebuilt(torch.nn.Module):
    """Its code holds a width, so that a graph replaces it; the graph creates a tensor for any number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x)).reshape(-1, 32)
        return self.last(hidden) + torch.arange(x.shape[0], device=x.device)[:, None]


def rebuilt(_folder: Path) -> dict[str, Any]:
    """A module that becomes a graph, on the device, and back on the CPU."""
    torch.manual_seed(0)
    pruned = fxprune.prune_module(Rebuilt().eval(), torch.randn(3, 8), "magnitude", ratio=0.5, device=NAME)
    return {"rebuilt": not pruned.in_place, "outputs": list(pruned.module(torch.randn(5, 8)).shape)}


def module(_folder: Path) -> dict[str, Any]:
    """A module that is no language model, pruned on the device with a loss on batches."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)).eval()
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]

    def loss(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).square().mean()

    given = {"ratio": 0.5, "loss": loss, "calib": batches}
    found = [fxprune.prune_module(net, (batches[0],), "taylor", device=device, **given) for device in (NAME, None)]
    kept = [{name: units.tolist() for name, units in one.plan.keep.items()} for one in found]
    return {"kept": kept, "home": str(next(found[0].module.parameters()).device)}


def timed(folder: Path) -> dict[str, Any]:
    """Seconds of a forward pass on the device."""
    return {"seconds": forward_seconds(run(folder, "taylor{samples=3,length=16}", NAME).state.subject)}


CALLS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "refused": refused, "evaluated": evaluated, "written": written, "module": module, "rebuilt": rebuilt,
    "timed": timed,
}  # fmt: skip


def main(model: str, *cases: str) -> None:
    """Run the cases, each to its end or to its error."""
    silence()
    held = add_checked_device()
    for case in cases:
        try:
            call = CALLS.get(case)
            found = compared(Path(model), case) if call is None else call(Path(model))
        except Exception as error:
            found = {"error": "".join(traceback.format_exception(error)[-6:])}
        print(json.dumps({"case": case, "error": "", **found}), flush=True)
    del held


if __name__ == "__main__":
    main(*sys.argv[1:])
