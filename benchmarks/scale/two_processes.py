"""How much faster passes are in two processes than in one, each with one thread.

    python -m fxprune.benchmarks.scale.two_processes --model DIR --calib TEXT --out two.json

Every pipeline runs on one process and on two, as ``torchrun`` starts them, round after round, each process bound to a
core of its own where the system can do that. Times are those that the passes themselves report: loading and writing,
which rank 0 does alone, are not in them. Both the time by the clock and the processor time of the busiest rank are
kept: the second does not depend on other work of the machine, and leaves out waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

PIPELINES = [
    "taylor{samples=64,length=128}",
    "fisher{samples=64,length=128}",
    "wanda{samples=64,length=128},compensate{samples=64,length=128}",
    "obs{by=global,target=params:0.8,samples=64,length=128},compensate{samples=64,length=128}",
]

CHILD = """
import json, os, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ.get("RANK", 0)) % os.cpu_count()]})
import torch
torch.set_num_threads(1)
import fxprune
from fxprune.passes.base import Pass
from fxprune.passes import manager
spent, run = [0.0], manager._run

def timed(step, state):
    began = time.process_time()
    try:
        return run(step, state)
    finally:
        spent[0] += time.process_time() - began

manager._run = timed
done = fxprune.apply(**json.loads(sys.argv[1]))
print(json.dumps({"seconds": sum(step.seconds for step in done.steps if not step.is_analysis), "cpu": spent[0]}))
"""


def once(job: dict[str, Any], count: int) -> dict[str, float]:
    """The seconds of the passes on so many processes: by the clock, and of the processor on the busiest rank."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ranks = []
    for rank in range(count):
        alone = {} if count == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        environment = {**os.environ, **alone, "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", CHILD, json.dumps(job)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    found = [process.communicate() for process in ranks]
    for process, (_, errors) in zip(ranks, found, strict=True):
        if process.returncode:
            raise SystemExit(errors)
    times = [json.loads(output.splitlines()[-1]) for output, _ in found]
    return {name: max(rank[name] for rank in times) for name in ("seconds", "cpu")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--calib", required=True, help="calibration text")
    parser.add_argument("--pass", dest="passes", action="append", help="a pipeline; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for passes in options.passes or PIPELINES:
            job = {"model": options.model, "passes": passes, "calib": options.calib, "out": f"{scratch}/out"}
            job |= {"force": True} | ({} if "target" in passes else {"ratio": 0.25})
            rounds = [(once(job, 1), once(job, 2)) for _ in range(options.rounds)]
            row = {
                name: [statistics.median(pair[count][name] for pair in rounds) for count in (0, 1)]
                for name in ("seconds", "cpu")
            }
            rows[passes] = row | {f"{name} ratio": row[name][0] / row[name][1] for name in ("seconds", "cpu")}
            print(passes, rows[passes], flush=True)
            about = {"machine": platform.processor() or platform.machine(), "date": str(date.today())}
            options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
