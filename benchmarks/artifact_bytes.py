"""Whether two states of fxprune write the same artifacts, byte for byte.

Run it in each of two checkouts and compare: the second run takes the first one's answer.

    python benchmarks/artifact_bytes.py --models MODELS --texts TEXTS --out before.json
    python benchmarks/artifact_bytes.py --models MODELS --texts TEXTS --out after.json --against before.json

MODELS holds model directories by the names in ``RUNS``, TEXTS the calibration files. What is installed as ``fxprune``
is what runs: set PYTHONPATH to choose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CALIB = ("--calib", "{texts}/tinystories-calib.txt")
DATA = ("--data", "{texts}/tinystories-recover.txt")
ONE = "samples=8,length=64"

RUNS: dict[str, tuple[str, ...]] = {
    "demo taylor": ("demo", "--pass", "taylor", "--ratio", "0.25"),
    "demo lora": ("demo", "--pass", "magnitude{heads=query},lora{steps=6}", "--ratio", "0.3"),
    "demo channels": ("demo", "--pass", "random{channels=true,multiple_of=8}", "--seed", "3"),
    "demo search": ("demo", "--pass", "wanda{by=search,moves=4,samples=8},distill{steps=4}", "--target", "params=0.8"),
    "llama-7m obs": (
        "{models}/llama-7m", "--pass", "obs{by=global,samples=8},compensate{samples=8}", "--target", "params=0.85",
        *CALIB,
    ),
    "llama-7m streamed": ("{models}/llama-7m", "--pass", "magnitude", "--ratio", "0.5"),
    "llama-7m paper": (
        "{models}/llama-7m", "--pass", "taylor{variant=element2},lora{steps=4}", "--layers", "1:7", *CALIB, *DATA,
    ),
    "stories260k fisher": (
        "{models}/stories260k", "--pass", f"fisher{{by=kinds,{ONE}}},finetune{{steps=4}}", "--target", "macs=0.8",
        *CALIB, *DATA,
    ),
    "babyllama-1m drop": (
        "{models}/babyllama-1m", "--pass", f"drop{{layers=1,{ONE}}},flap{{{ONE}}},compensate{{{ONE}}}", *CALIB,
    ),
    "tinystories-656k generate": (
        "{models}/tinystories-656k",
        "--pass", f"generate{{windows=16,length=64}},activation{{{ONE}}},drop{{sub_blocks=1,{ONE}}}",
        "--form", "free", *CALIB,
    ),
}  # fmt: skip
"""Name -> arguments of ``fxprune apply``."""

EXPORTS: dict[str, tuple[str, ...]] = {
    "demo taylor": ("--format", "onnx"),
    "llama-7m streamed": ("--format", "onnx", "--dtype", "int8", "--optimize", "none"),
}
"""Name of a run -> arguments of ``fxprune export`` on what it wrote."""


def digests(folder: Path) -> dict[str, str]:
    """Path within a directory -> sha256 of the file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(arguments: tuple[str, ...], places: dict[str, str]) -> float:
    """Run a command of fxprune; the seconds it took."""
    words = [word.replace("{models}", places["models"]).replace("{texts}", places["texts"]) for word in arguments]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", *words], capture_output=True, text=True, check=False, cwd=places["work"]
    )
    if done.returncode:
        raise SystemExit(f"fxprune {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return time.perf_counter() - started


def main() -> None:
    """Print what was written, as JSON, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="directory of the models")
    parser.add_argument("--texts", required=True, help="directory of the texts")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="JSON file of the other state")
    parser.add_argument("--only", help="a part of the names of the runs to make")
    parser.add_argument("--keep", type=Path, help="directory in which the artifacts stay")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = asked.keep or Path(folder)
        work.mkdir(exist_ok=True)
        places = {"models": asked.models, "texts": asked.texts, "work": str(work)}
        for number, (name, arguments) in enumerate(RUNS.items()):
            if asked.only and asked.only not in name:
                continue
            out = f"run{number}"
            seconds = run(("apply", *arguments, "--out", out), places)
            found[name] = {"seconds": round(seconds, 1), "files": digests(work / out)}
            print(f"{name}: {seconds:.1f} s", file=sys.stderr)
            if name in EXPORTS:
                seconds = run(("export", out, "--out", f"{out}-export", *EXPORTS[name]), places)
                found[f"{name}, exported"] = {"seconds": round(seconds, 1), "files": digests(work / f"{out}-export")}
                print(f"{name}, exported: {seconds:.1f} s", file=sys.stderr)
    asked.out.write_text(json.dumps(found, indent=1))
    if asked.against is not None:
        _compare(json.loads(asked.against.read_text()), found)


def _compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    same = different = 0
    for name in sorted({*before, *after}):
        old, new = (side.get(name, {}).get("files", {}) for side in (before, after))
        for path in sorted({*old, *new}):
            if old.get(path) == new.get(path):
                same += 1
            else:
                different += 1
                print(f"differs: {name}: {path}")
    print(f"{same} files are the same, {different} differ")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
