"""Prune real models, check them in a fresh process, export them and decode; one table.

python benchmarks/main_job.py --calib calib.txt MODEL [MODEL ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import fxprune


def run(model: Path, calib: Path, pipeline: str, folder: Path) -> dict[str, Any]:
    """Prune one model, export it, and return the results of the checks."""
    applied = fxprune.apply(model, pipeline, calib=calib, out=folder / "out")
    assert applied.saved is not None
    exported = fxprune.export(folder / "out", folder / "onnx")
    return {
        "model": model.name,
        "parameters": list(applied.parameters),
        "form": applied.saved.form,
        "model_type": applied.saved.model_type,
        "reloaded": dict(applied.saved.checks),
        "onnx": dict(exported.differences),
        "greedy": f"{exported.greedy_equal} of {exported.greedy_tokens}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--calib", required=True, type=Path)
    parser.add_argument("--passes", default="taylor{ratio=0.25}")
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {date.today()}, {options.passes}")
    for model in options.models:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(model, options.calib, options.passes, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
