"""What an accelerator does: scores, refits, recovery and memory of a model with the geometry of Llama-3.1-8B.

    python -m fxprune.benchmarks.scale.accelerator --calib a.txt --tokenizer DIR --out accelerator.json

Random bfloat16 weights are written on the spot. Each run is a process of its own, so that its peak memory is its own.
It ends after ``--minutes``; what did not fit is listed. Without an accelerator it takes a small geometry, to be tested.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fxprune.benchmarks.scale.memory_limit import GEOMETRIES, write_model

LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip

CHILD = """
import json, sys, time
import torch, fxprune
arguments = json.loads(sys.argv[1])
steps = []
def progress(text):
    steps.append((time.perf_counter(), text))
began = time.perf_counter()
applied = fxprune.apply(progress=progress, **arguments)
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
peak = torch.get_device_module(device).max_memory_allocated() if device is not None else 0
passes = {step.text: round(step.seconds, 2) for step in applied.steps}
tokens = {name: entry["tokens"] for name, entry in applied.report.items() if "tokens" in entry}
print(json.dumps({"seconds": round(time.perf_counter() - began, 1), "passes": passes, "tokens": tokens,
                  "peak_device_gb": round(peak / 1e9, 2)}))
"""


def runs_of(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, model and arguments of every run, the most important first."""
    windows, length = (128, 2048) if options.geometry == "8b" else (8, 64)
    refit = f"obs{{by=global,samples={windows},length={length}}},compensate{{samples={windows},length={length}}}"
    target = {"target": "params=0.8"}
    train = {"data": str(options.calib)}
    lora = f"taylor,lora{{steps={options.steps}}}"
    return [
        ("taylor, weights in host memory", "large", {"passes": "taylor", "offload": "memory"}),
        ("taylor, all on the device", "large", {"passes": "taylor", "offload": "none"}),
        ("taylor in float32 here", "small", {"passes": "taylor", "dtype": "float32"}),
        ("taylor in bfloat16 here", "small", {"passes": "taylor", "dtype": "bfloat16"}),
        ("taylor in float32 on the CPU", "small", {"passes": "taylor", "dtype": "float32", "device": "cpu"}),
        ("obs and refit, weights in host memory", "large", {"passes": refit, "offload": "memory", **target}),
        ("lora", "large", {"passes": lora, "offload": "none", **train}),
        ("obs and refit, all on the device", "large", {"passes": refit, "offload": "none", **target}),
    ]


def folder_of(run: str) -> str:
    """The name of the folder that a run writes."""
    return run.replace(" ", "-").replace(",", "")


def one_run(arguments: dict[str, Any], seconds: float) -> dict[str, Any] | None:
    """A call of ``fxprune.apply`` in a process of its own; None when there is no time for it."""
    command = [sys.executable, "-c", CHILD, json.dumps(arguments)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(0.1, seconds))
    except subprocess.TimeoutExpired:
        return None
    if ended.returncode:
        return {"failed": ended.stderr[-800:]}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def kept_alike(first: Path, second: Path) -> float:
    """Share of the units that two plans of the same model both keep, of those that the first keeps."""
    one, other = (load_file(next(folder.rglob("plan*.safetensors"))) for folder in (first, second))
    same = sum(len(set(one[name].tolist()) & set(other[name].tolist())) for name in one if name in other)
    return same / sum(tensor.numel() for tensor in one.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=("8b", "1b", "tiny"), help="8b on an accelerator, tiny on a CPU")
    parser.add_argument("--calib", type=Path, required=True, help="calibration text")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model directory whose tokenizer is used")
    parser.add_argument("--minutes", type=float, default=10.0, help="no run begins after this, and none lasts longer")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of lora")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    options.geometry = options.geometry or ("tiny" if device is None else "8b")
    name = "none" if device is None else torch.get_device_module(device).get_device_name()
    end = time.monotonic() + 60 * options.minutes
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "accelerator": name,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "geometry": options.geometry,
        "runs": {},
        "left_out": [],
    }
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        large = LLAMA_8B if options.geometry == "8b" else GEOMETRIES[options.geometry]
        small = GEOMETRIES["1b" if device is not None else "tiny"]
        for kind, geometry in (("large", large), ("small", small)):
            record[f"{kind}_parameters"] = write_model(Path(folder) / kind, geometry, options.tokenizer)
        for run, model, given in runs_of(options):
            out = Path(folder) / folder_of(run)
            whole = {"model": f"{folder}/{model}", "calib": str(options.calib), "out": str(out), **given}
            result = one_run(whole, end - time.monotonic())
            if result is None:
                record["left_out"].append(run)
            else:
                record["runs"][run] = result
            if model == "large":
                shutil.rmtree(out, ignore_errors=True)
        plans = {run: Path(folder) / run.replace(" ", "-") for run, model, _ in runs_of(options) if model == "small"}
        there = [run for run, path in plans.items() if path.is_dir()]
        for run in there[1:]:
            record["runs"][run]["kept_alike"] = round(kept_alike(plans[there[0]], plans[run]), 5)
    text = json.dumps(record, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any("failed" in result for result in record["runs"].values()))


if __name__ == "__main__":
    sys.exit(main())
