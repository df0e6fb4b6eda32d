"""What a process holds of a pruned model and its key-value cache, beside what ``--target memory=`` says.

    fxprune apply MODEL --pass magnitude --target memory=60MB@512x16 --out OUT
    python -m fxprune.benchmarks.scale.memory_target OUT --context 512 --batch 16

A fresh process loads OUT with transformers in the dtype of its files, with the weights in memory of its own instead of
in mapped files, reads a batch of random tokens in one forward pass, and lets go of everything but the model and its
cache. What counts is the anonymous memory that the kernel says it has (``RssAnon``), less what it had before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def resident() -> int:
    """Bytes of anonymous memory of this process, after what is free was given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def load(directory: str) -> torch.nn.Module:
    """The model, with weights in memory of its own."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", trust_remote_code=True).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def measure(directory: str, context: int, batch: int) -> int:
    """Bytes of a model and of a cache that it has filled; called in a process of its own."""
    warm = load(directory)  # what the library keeps once it has run
    with torch.no_grad():
        warm(input_ids=torch.zeros(1, 2, dtype=torch.long))
    del warm
    before = resident()
    model = load(directory)
    ids = torch.randint(model.config.vocab_size, (batch, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    found = resident() - before
    assert cache.get_seq_length() == context
    return found


def main() -> None:
    """Print what was asked for, what was predicted, and what a process holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(measure(given.directory, given.context, given.batch))
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--inside"]
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}  # what is freed goes back at once
    said = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True).stdout
    measured = int(said.split()[-1])
    record = json.loads((Path(given.directory) / "fxprune.json").read_text(encoding="utf-8"))
    allocation = next(entry["allocation"] for entry in record["passes"].values() if "allocation" in entry)
    reached = allocation["reached"]
    print(
        f"asked for {allocation['budget']:,}; predicted {reached:,}, of which cache {allocation.get('cache', 0):,}; "
        f"measured {measured:,}: {measured / reached - 1:+.2%} from what was predicted, "
        f"{measured / allocation['budget'] - 1:+.2%} from what was asked for"
    )


if __name__ == "__main__":
    main()
