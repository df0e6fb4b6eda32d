"""The tables of timm and diffusers in docs/coverage.md: every model in a process of its own, row by row.

    pip install --no-deps timm diffusers torch-pruning pillow
    python -m fxprune.benchmarks.vision_zoo.table --rows zoo.json --write docs/coverage.md

Rows that the file has are not measured again. A model is called by its timm name or its diffusers class; sizes and
options of both are in models.json. torchvision is stubbed, see torchvision_stub.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fxprune.benchmarks.vision_zoo.page import section, with_section
from fxprune.benchmarks.vision_zoo.row import MODELS

LONGEST = 600
"""Seconds that a row may take."""


def measured(suite: str, name: str, only: str | None) -> dict[str, Any]:
    """A row, from a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "fxprune.benchmarks.vision_zoo.row", suite, name]
    try:
        done = subprocess.run(
            command + (["--only", only] if only else []), capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LONGEST} seconds"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=Path, required=True, help="JSON file of the rows, read and extended")
    parser.add_argument("--write", type=Path, help="page whose section on these models is replaced")
    parser.add_argument("--suites", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--names", nargs="*", default=[], help="measure only these")
    parser.add_argument("--again", nargs="*", default=[], help="measure these again")
    parser.add_argument("--only", choices=("times", "checks"), help="measure a part; what the row has else is kept")
    parser.add_argument("--all-again", action="store_true", help="measure every row again")
    options = parser.parse_args()
    rows = json.loads(options.rows.read_text(encoding="utf-8")) if options.rows.exists() else {}
    for suite in options.suites:
        held = rows.setdefault(suite, {})
        for name in MODELS[suite]:
            wanted = name in options.again or options.all_again or name not in held
            if not wanted or (options.names and name not in options.names):
                continue
            before = held.get(name, {}) if options.only else {}
            held[name] = {k: v for k, v in before.items() if k != "error"} | measured(suite, name, options.only)
            print(suite, name, json.dumps(held[name]), file=sys.stderr, flush=True)
            options.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if options.write:
        options.write.write_text(
            with_section(options.write.read_text(encoding="utf-8"), section(rows)), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
