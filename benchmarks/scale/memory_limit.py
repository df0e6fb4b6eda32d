"""Pipelines under a hard limit of the operating system, on random weights that stay on disk.

    python -m fxprune.benchmarks.scale.memory_limit --layers 22 --limit 2 --pass taylor --pass fisher --out memory.json
    python -m fxprune.benchmarks.scale.memory_limit --geometry 7b --limit 4 --pass 'taylor{samples=10}'

Each pipeline runs in a process of its own. That process imports torch and transformers first; then it may take only so
many GB of memory of its own beside what it has (``RLIMIT_DATA`` of Linux: anonymous and private memory, not the pages
of files, which the system can drop at any time). A pipeline that needs more fails. The JSON has times and peaks too.
The exit code is 1 when a pipeline failed.
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
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

GEOMETRIES: dict[str, dict[str, int]] = {
    "1b": {
        "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "7b": {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "tiny": {
        "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
}  # fmt: skip

CHILD = """
import json, resource, sys, time
import torch, transformers
from transformers import LlamaForCausalLM
def status(key):
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))
limit, threads, arguments = float(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(threads)
torch.randn(64, 64) @ torch.randn(64, 64)
held, resident = status("VmData"), status("VmRSS")
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(limit * 1e9),) * 2)
import fxprune
began, cpu = time.perf_counter(), time.process_time()
fxprune.apply(progress=lambda text: print(text, file=sys.stderr), **arguments)
print(json.dumps({"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
                  "peak_rss_gb_above_imports": round((status("VmHWM") - resident) / 1e9, 3)}))
"""


def write_model(folder: Path, geometry: dict[str, int], tokenizer: Path) -> int:
    """Write random bfloat16 weights in shards, with a tokenizer; returns the number of parameters."""
    config = LlamaConfig(**geometry, max_position_embeddings=2048)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for path in tokenizer.glob("*token*"):
        shutil.copy(path, folder / path.name)
    split = split_torch_state_dict_into_shards(shapes, max_shard_size="2GB")
    # A shifted window into one buffer differs for every tensor; to draw each would take minutes.
    largest = max(tensor.numel() for tensor in shapes.values())
    buffer = torch.empty(largest + 1009 * len(shapes)).normal_(0, 0.02).bfloat16()
    start = 0
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            tensors[name] = buffer[start : start + shapes[name].numel()].view(shapes[name].shape).clone()
            start += 1009
        save_file(tensors, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(tensor.numel() for tensor in shapes.values())


def run(pipeline: str, model: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One pipeline in a process of its own."""
    given = {
        "model": str(model), "passes": pipeline, "calib": str(options.calib), "out": str(scratch / "out"),
        "force": True, "offload": "disk", "device": "cpu", **json.loads(options.arguments),
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TMPDIR": str(scratch)}
    command = [sys.executable, "-c", CHILD, str(options.limit), str(options.threads), json.dumps(given)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    shutil.rmtree(scratch / "out", ignore_errors=True)
    if ended.returncode:
        return {"pipeline": pipeline, "failed": ended.returncode}
    return {"pipeline": pipeline, **json.loads(ended.stdout.splitlines()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="1b")
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--limit", type=float, default=2.0, help="GB beside what the imports take; 0 for none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pass", dest="passes", action="append", required=True, metavar="PIPELINE")
    parser.add_argument("--arguments", default="{}", help="further arguments of fxprune.apply, as JSON")
    parser.add_argument("--calib", type=Path, required=True, help="calibration text")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model directory whose tokenizer is used")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    geometry = dict(GEOMETRIES[options.geometry])
    geometry["num_hidden_layers"] = options.layers or geometry["num_hidden_layers"]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        began = time.perf_counter()
        parameters = write_model(Path(folder) / "model", geometry, options.tokenizer)
        print(f"wrote {parameters:,} parameters in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        results = [run(pipeline, Path(folder) / "model", Path(folder), options) for pipeline in options.passes]
    record = {
        "date": date.today().isoformat(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__, "threads": options.threads, "geometry": geometry, "parameters": parameters,
        "limit_gb": options.limit, "runs": results,
    }  # fmt: skip
    text = json.dumps(record, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
