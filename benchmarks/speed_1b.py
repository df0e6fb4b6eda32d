"""Speed of a Llama with a billion parameters after half of its heads and feed-forward widths were removed.

    python -m fxprune.benchmarks.speed_1b --json speed_1b.json

Writes random float32 weights (4 GB), prunes them by magnitude, exports both models to ONNX, and compares their speed in
torch and then in ONNX Runtime, as ``fxprune bench`` does: in turn, every second round in reverse. Deletes all files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fxprune import api

CONFIG = LlamaConfig(
    hidden_size=2048, intermediate_size=6144, num_hidden_layers=18, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
NEEDED = 22e9
"""Disk space in bytes: both models, and both again as ONNX while one is being written."""


def write_model(folder: Path, layers: int) -> None:
    """Random weights, copied from one buffer: a billion random numbers would take minutes."""
    CONFIG.num_hidden_layers = layers
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    model.to_empty(device="cpu")
    buffer = torch.randn(1 << 24) * 0.02
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:
            parameter.data.fill_(1)
            continue
        for piece in parameter.data.view(-1).split(len(buffer)):
            piece.copy_(buffer.roll(1009 * number)[: len(piece)])
    model.save_pretrained(folder)


def seconds_of(command: list[str]) -> float:
    """Wall time of a process; it must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the whole benchmark, in a folder that is emptied afterwards."""

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    dense, pruned = folder / "dense", folder / "pruned"
    write_model(dense, arguments.layers)
    applied = api.apply(dense, "magnitude", ratio=0.5, out=pruned, progress=say)
    how = {"prompt": arguments.prompt, "new": arguments.new, "rounds": arguments.rounds, "threads": arguments.threads}
    rows = api.bench([dense, pruned], **how, progress=say).to_json()["models"]
    sizes, seconds = {}, {}
    for model in (dense, pruned):
        out = folder / f"{model.name}-onnx"
        seconds[model.name] = seconds_of([sys.executable, "-m", "fxprune", "export", str(model), "--out", str(out)])
        say(f"exported {out.name} in {seconds[model.name]:.0f} s")
        sizes[model.name] = {file.name: file.stat().st_size for file in out.glob("model.onnx*")}
        shutil.rmtree(model)
    rows += api.bench([folder / "dense-onnx", folder / "pruned-onnx"], **how, progress=say).to_json()["models"]
    for row in rows:
        row["name"] = Path(row["name"]).name
    return {
        "parameters_kept": applied.kept,
        "conditions": how,
        "models": rows,
        "onnx_bytes": sizes,
        "export_seconds": seconds,
        "peak_gb_of_a_process": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18, help="number of layers (default: 18, a billion parameters)")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="folder for the models (default: the temporary folder of the system)")
    parser.add_argument("--json", metavar="FILE", help="file for the results (default: print them)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fxprune-1b-", dir=arguments.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < NEEDED:
            sys.exit(f"error: {folder} has {free / 1e9:.1f} GB free, and {NEEDED / 1e9:.0f} GB are needed")
        text = json.dumps(measure(Path(folder), arguments), indent=2)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
