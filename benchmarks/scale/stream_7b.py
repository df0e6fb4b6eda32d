"""Prune a Llama with the geometry of 7B with weights on disk: time compared with copying the files, and peak memory.

    python -m fxprune.benchmarks.scale.stream_7b --layers 8

Writes random bfloat16 weights in shards, copies them, prunes them by magnitude in a process of its own, and deletes all
files. Time: the copy, the pruning and a lower bound alternate, each after the source was read once, so that the file
cache of the system favours none of them. The lower bound is the minimal work, in two threads: one computes the sha256
of the source; the other reads as many bytes as are kept, computes their sha256 and writes them. Memory: the peak memory
of the process, minus that of a process that has only imported torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import RawIOBase
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

MARGIN = 1.15
"""Free disk space that must remain, in bytes."""

PIECE = 1 << 20

MEASURE = """
import sys
import torch
if sys.argv[1:]:
    from fxprune.cli import main
    if main(sys.argv[1:]): sys.exit(1)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def config_of(layers: int) -> LlamaConfig:
    """The configuration of Llama-7B with this number of layers."""
    return LlamaConfig(num_hidden_layers=layers, max_position_embeddings=2048)


def write_model(folder: Path, layers: int) -> int:
    """Write random weights, shard by shard; returns their size in bytes."""
    config = config_of(layers)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).to(torch.bfloat16).state_dict()
    config.save_pretrained(folder)
    split = split_torch_state_dict_into_shards(shapes, max_shard_size="2GB")
    # Long-lived randomness would take minutes; a shifted window into one buffer is different for every tensor.
    buffer = torch.empty(max(t.numel() for t in shapes.values()) + len(shapes) * 1009).normal_(0, 0.02).bfloat16()
    start = 0
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            size = shapes[name].numel()
            tensors[name] = buffer[start : start + size].view(shapes[name].shape).clone()
            start += 1009
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    return sum(tensor.numel() * 2 for tensor in shapes.values())


def read(source: Path) -> None:
    """Read the source once, so that the system keeps as much of it in its file cache as it can."""
    memory = bytearray(1 << 24)
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(memory):
                pass
    os.sync()


def seconds_of(work: list[str]) -> float:
    """Wall time of a command, until its output is on the disk."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(work, check=True, stdout=subprocess.DEVNULL)
    os.sync()
    return time.perf_counter() - start


def peak_of(*arguments: str) -> tuple[float, float]:
    """Run the program in a process: seconds until its output is on the disk, and peak memory in GB."""
    os.sync()
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    os.sync()
    return time.perf_counter() - start, int(done.stdout.split()[-1]) * 1024 / 1e9


def floor_of(source: Path, out: Path, size: int) -> float:
    """The lower bound: seconds to read and hash the source and, in parallel, to read, hash and write ``size`` bytes."""
    files = sorted(source.glob("*.safetensors"))
    os.sync()
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool, out.open("wb", buffering=0) as target:
        work = [pool.submit(_hash, files, None, sum(file.stat().st_size for file in files))]
        work.append(pool.submit(_hash, files, target, size))
        for done in work:
            done.result()
    os.sync()
    return time.perf_counter() - start


def _hash(files: list[Path], target: RawIOBase | None, size: int) -> str:
    digest, memory = hashlib.sha256(), memoryview(bytearray(PIECE))
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while size and (count := min(opened.readinto(memory), size)):
                size -= count
                digest.update(memory[:count])
                if target is not None:
                    target.write(memory[:count])
    return digest.hexdigest()


def measure(folder: Path, layers: int, ratio: float, repeats: int) -> dict[str, object]:
    """Run the whole benchmark, in a folder that is emptied afterwards."""
    source, copy, out = folder / "source", folder / "copy", folder / "out"
    source.mkdir()
    size = write_model(source, layers)
    _, bare = peak_of()
    command = ["apply", str(source), "--pass", "magnitude", "--ratio", str(ratio), "--out", str(out)]
    copies, prunings, floors, memory = [], [], [], 0.0
    for _ in range(repeats):
        read(source)
        copies.append(seconds_of(["cp", "-r", str(source), str(copy)]))
        shutil.rmtree(copy)
        read(source)
        took, peak = peak_of(*command)
        prunings.append(took)
        memory = max(memory, peak - bare)
        written = sum(file.stat().st_size for file in out.glob("model*.safetensors"))
        shutil.rmtree(out)
        read(source)
        floors.append(floor_of(source, copy, written))
        copy.unlink()
    return {
        "layers": layers,
        "source_gb": size / 1e9,
        "copy_seconds": copies,
        "apply_seconds": prunings,
        "floor_seconds": floors,
        "load": os.getloadavg()[0],
        "times_the_copy": min(prunings) / min(copies),
        "peak_gb_above_torch": memory,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="number of layers (default: 32, 13.5 GB)")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", help="folder for the models (default: the temporary folder of the system)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fxprune-7b-", dir=arguments.folder) as folder:
        needed = (0.53 + 0.41 * arguments.layers) * 2e9 * MARGIN
        free = shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(f"error: {folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed")
        print(json.dumps(measure(Path(folder), arguments.layers, arguments.ratio, arguments.repeats), indent=2))


if __name__ == "__main__":
    main()
