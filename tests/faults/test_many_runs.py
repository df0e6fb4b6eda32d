"""Runs that collide, are killed or fill the disk, at many places: :mod:`.many_runs`, as a test that takes minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_runs_that_collide_are_killed_or_fill_the_disk(tmp_path: Path) -> None:
    small_disks = hasattr(os, "geteuid") and os.geteuid() == 0  # only root may mount one
    command = [sys.executable, "-P", "-m", "fxprune.tests.faults.many_runs", "--concurrent", "200", "--kills", "200"]
    command += ["--full", "50" if small_disks else "0", "--out", str(tmp_path / "found.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fxprune.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["concurrent"]["rounds"] == found["kills, lora"]["runs"] == found["kills, export"]["runs"] == 200
