"""How far the embeddings of a sentence encoder move when it is pruned, and how far a repair brings them back.

    python benchmarks/encoders/embeddings.py MODEL TEXT [TEXT ...]
    python benchmarks/encoders/embeddings.py MODEL TEXT --repair compensate{samples=500,batch=16}

MODEL is a directory of a sentence encoder of transformers whose embeddings are the mean of its last hidden states; TEXT
are plain text files. Their sentences are cut at full stops. The first 2,000 of all are for calibration; the 300 that
are measured on come from the end of the files. Prints the mean and the least cosine to the embeddings of the dense
model.
"""

from __future__ import annotations

import argparse
import platform
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

import fxprune

SEEN, HELD_OUT = 2000, 300
PRUNE = "obs{by=global,samples=400,batch=16}"
REPAIR = "compensate{samples=1900,batch=16}"


def sentences(files: list[Path]) -> tuple[list[str], list[str]]:
    """Sentences for calibration, and those to measure on, equally many of every file."""
    seen, held = [], []
    for file in files:
        parts = re.split(r"(?<=[.!?])\s+", " ".join(file.read_text(encoding="utf-8").split()))
        found = list(dict.fromkeys(part for part in parts if 20 < len(part) < 250))
        held += found[-HELD_OUT // len(files) :]
        seen += found[: -HELD_OUT // len(files)][: SEEN // len(files)]
    random.Random(0).shuffle(seen)
    return [one for one in seen if one not in set(held)], held


def embeddings(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """The mean of the last hidden states of every text, ``[texts, width]``."""
    found = []
    for first in range(0, len(texts), 50):
        batch = tokenizer(texts[first : first + 50], return_tensors="pt", padding=True, truncation=True, max_length=128)
        counted = batch["attention_mask"][..., None]
        with torch.no_grad():
            found.append((model(**batch).last_hidden_state * counted).sum(1) / counted.sum(1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--target", default="params:0.88", help="size of the result (default: %(default)s)")
    parser.add_argument("--prune", default=PRUNE, help="default: %(default)s")
    parser.add_argument("--repair", default=REPAIR, help="default: %(default)s")
    options = parser.parse_args()
    seen, held = sentences(options.texts)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dense = AutoModel.from_pretrained(options.model, dtype=torch.float32).eval()
    expected = embeddings(dense, tokenizer, held)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {len(seen)} sentences, measured on {len(held)}")
    print("| passes | parameters kept | mean cosine | least | seconds |\n|---|---|---|---|---|")
    for passes in (options.prune, f"{options.prune},{options.repair}"):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            out = Path(folder) / "out"
            data = None if passes == options.prune else seen
            applied = fxprune.apply(options.model, passes, target=options.target, calib=seen, data=data, out=out)
            seconds = time.perf_counter() - started
            cosines = torch.cosine_similarity(expected, embeddings(fxprune.load(out).eval(), tokenizer, held))
        print(
            f"| `{passes}` | {applied.kept:.4f} | {cosines.mean():.3f} | {cosines.min():.3f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
