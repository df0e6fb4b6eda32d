"""Quality on a model that people know, row by row, each in a process of its own; rows that the file has stay.

python -m fxprune.benchmarks.known_models.table --models MODELS --text ../shared/text --tasks ../shared/tasks \\
    --write docs/quality.md

MODELS holds smollm2-135m, which ../shared/models/fetch.py makes. Peers' own code runs where ``--code`` names a folder
with checkouts of it: LLM-Pruner (github.com/horseee/LLM-Pruner) and FLAP (github.com/CASIA-IVA-Lab/FLAP).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from fxprune.benchmarks.known_models.page import section, with_section
from fxprune.benchmarks.known_models.rows_file import is_whole, read_rows, write_rows
from fxprune.benchmarks.known_models.runs import DENSE, EVALUATION, VALIDATION, Run, runs


def measured(run: Run, options: argparse.Namespace) -> str | None:
    """The row as JSON text, from a fresh process; None where it failed, whose reason stands on stderr then."""
    row = "fxprune.benchmarks.known_models.row"
    command = [sys.executable, "-W", "ignore", "-m", row, options.models, options.text, run.key, "--rows", options.rows]
    command += ["--tasks", options.tasks] if options.tasks else []
    command += ["--code", options.code] if options.code else []
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", required=True, type=Path, help="folder of model directories")
    parser.add_argument("--text", required=True, type=Path, help="folder of NAME-calib.txt and NAME-eval.txt")
    parser.add_argument("--tasks", type=Path, help="folder of NAME.jsonl task files; without, texts alone are measured")
    parser.add_argument("--model", default="smollm2-135m", help="folder of the model")
    parser.add_argument("--code", type=Path, help="folder of checkouts LLM-Pruner and FLAP, to run their own code too")
    own = Path(__file__).with_name("rows.json")
    parser.add_argument("--rows", type=Path, default=own, help="JSON file of the rows")
    parser.add_argument("--methods", nargs="*", default=[], help="measure only these")
    parser.add_argument("--kept", nargs="*", type=float, default=[], help="measure only these sizes")
    parser.add_argument("--split", choices=(EVALUATION, VALIDATION), default=EVALUATION, help="what is measured on")
    parser.add_argument("--hours", type=float, default=8.0, help="begin no row after so long")
    parser.add_argument("--write", type=Path, help="page whose section on the model is replaced")
    options = parser.parse_args()
    rows = read_rows(options.rows)
    end, failed = time.monotonic() + 3600 * options.hours, 0
    for run in runs(options.model, options.split):
        left_out = run.method != DENSE and (
            (options.methods and run.method not in options.methods) or (options.kept and run.kept not in options.kept)
        )
        if left_out or is_whole(rows.get(run.key), options.tasks) or time.monotonic() > end:
            continue
        if run.own_code is not None and options.code is None:
            print(run.key, f"left out: give --code, a folder with {run.own_code.checkout}", file=sys.stderr, flush=True)
            continue
        whole = ((key, row) for key, row in rows.items() if is_whole(row, options.tasks))
        known = [row for key, row in whole if run.same(Run.of(key))]
        found = json.dumps(known[0]) if known else measured(run, options)
        failed += found is None
        if found is not None:
            rows[run.key] = json.loads(found)
            write_rows(options.rows, rows)
        print(run.key, "failed" if found is None else "measured", file=sys.stderr, flush=True)
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        recovered = read_rows(Path(__file__).with_name("recovered.json"))
        options.write.write_text(with_section(page, section(rows, options.model, recovered)), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
