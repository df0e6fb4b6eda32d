"""Whether every placement and two processes give the same result, over models and pipelines.

    python -m fxprune.tests.ranks.same_result --model DIR --calib TEXT --out same.json
    python -m fxprune.tests.ranks.same_result --families 5 --out same.json

The first form takes model directories, the second every fifth causal language model of transformers, tiny. All
pipelines run with all weights in memory, with ``--offload memory`` and ``disk``, and in two processes. Plans have to be
equal, and tensors within 1e-6 of the largest value of each. What was written is not loaded again here: other tests do
that.
The exit code is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fxprune import api
from fxprune.backends.huggingface import save, weight_source
from fxprune.ir import FxpruneError

from ..checkpoints import contents
from ..corpora import word_tokenizer
from ..families import causal_lm
from .test_torchrun import Two

FEW = "samples=4,length=32"
PIPELINES = [
    *(f"taylor{{variant={variant},{FEW}}}" for variant in ("vector", "element1", "element2", "second")),
    f"fisher{{{FEW}}}",
    f"wanda{{{FEW}}}",
    f"flap{{{FEW}}}",
    f"activation{{{FEW}}}",
    f"obs{{{FEW}}}",
    f"obs{{metric=loss,{FEW}}}",
    f"wanda{{{FEW}}},compensate{{{FEW}}}",
    f"obs{{by=global,target=params:0.8,{FEW}}},compensate{{{FEW}}}",
    f"drop{{layers=1,{FEW}}},taylor{{{FEW}}}",
    f"wanda{{by=search,{FEW},moves=2}}",
]
WORDS = [f"w{number}" for number in range(causal_lm.VOCAB)]


def models(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, directory and text of every model."""
    for path in options.model:
        yield path.name, path, options.calib
    if not options.families:
        return
    text = folder / "text.txt"
    text.write_text(" ".join(WORDS[(i * i + 3 * i // 2) % len(WORDS)] for i in range(600)), encoding="utf-8")
    for name in causal_lm.names()[options.start :: options.families]:
        if name in causal_lm.NOT_TRACED or name in causal_lm.NOT_SAVED:
            continue
        source = folder / name
        try:
            causal_lm.tiny_model(name).save_pretrained(source)
            word_tokenizer(WORDS).save_pretrained(source)
        except Exception as error:
            print(f"{name}: not written: {error}", file=sys.stderr)
            continue
        yield name, source, text


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def difference(one: Path, other: Path) -> tuple[str, float]:
    """ "same bytes", "same" or what differs; and the largest relative difference of a tensor."""
    if contents(one) == contents(other):
        return "same bytes", 0.0
    if (one / "fxprune.plan").read_bytes() != (other / "fxprune.plan").read_bytes():
        return "plan differs", 0.0
    wanted, found = tensors(one), tensors(other)
    if wanted.keys() != found.keys():
        return f"names differ: {sorted(wanted.keys() ^ found.keys())[:4]}", 0.0
    worst = max(
        float((found[name].double() - value.double()).abs().max()) / max(float(value.double().abs().max()), 1e-30)
        for name, value in wanted.items()
    )
    return ("same" if worst <= 1e-6 else "tensors differ"), worst


def compare(job: dict[str, Any], two: Two, folder: Path) -> dict[str, Any]:
    """One pipeline on one model: what each other way gives beside all weights in memory."""
    base = folder / "none"
    try:
        api.apply(**job, out=str(base), offload="none", force=True)
    except FxpruneError as error:
        return {"refused": error.message}
    found: dict[str, Any] = {}
    for way in ("memory", "disk"):
        try:
            api.apply(**job, out=str(folder / way), offload=way, force=True)
            found[way] = difference(base, folder / way)
        except FxpruneError as error:
            found[way] = (f"error: {error.message}", 0.0)
    answers = two(**job, out=str(folder / "two"), offload="none", force=True)
    told = next((str(said["error"]) for said in answers if said and "error" in said), None)
    found["two"] = difference(base, folder / "two") if told is None else (f"error: {told}", 0.0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a model directory")
    parser.add_argument("--calib", type=Path, help="calibration text of the model directories")
    parser.add_argument("--families", type=int, default=0, help="every N-th causal language model of transformers")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    save.FreshProcess, weight_source.verify_written = contextlib.nullcontext, lambda *_: {}  # type: ignore
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    two, counts = Two(), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        for name, source, text in models(options, Path(scratch)):
            began = time.process_time()
            for passes in PIPELINES:
                job = {"model": str(source), "passes": passes, "calib": str(text)}
                job |= {} if "target" in passes else {"ratio": 0.5}
                found = rows.setdefault(name, {})[passes] = compare(job, two, Path(scratch))
                for way, said in found.items():
                    counts[f"{way}: {said[0] if way != 'refused' else said}"[:90]] += 1
                    if way == "refused" or not said[0].startswith("same"):
                        print(f"{name}: {passes}: {way}: {said}", file=sys.stderr)
            print(f"{name}: {time.process_time() - began:.0f} CPU s; {dict(counts)}", file=sys.stderr)
            options.out.write_text(json.dumps({"counts": counts, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    two.close()
    return int(any("differ" in key or "error" in key for key in counts))


if __name__ == "__main__":
    sys.exit(main())
