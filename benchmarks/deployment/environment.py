"""A virtual environment for runtimes that fxprune does not need, made once and kept where the user says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAMP = "installed.txt"
"""In the environment: what was asked of pip, one requirement a line, once all of it is there."""


class NotInstalledError(Exception):
    """pip could not install what a runtime needs; the message ends with what it said."""


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        folder: where it is, or will be.
        needs: requirements, as pip takes them.
        constrained: whether versions are those of constraints.txt.
    """

    folder: Path
    needs: Sequence[str]
    constrained: bool = True

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def ready(self) -> bool:
        """Whether all that is needed was installed."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8").splitlines() == list(self.needs)

    def make(self) -> None:
        """Install what is needed, unless that was done.

        Raises:
            NotInstalledError: with what pip said at the end.
        """
        if self.ready():
            return
        constraints = ["-c", str(ROOT / "constraints.txt")] if self.constrained else []
        install = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "-q"]
        for command in ([sys.executable, "-m", "venv", str(self.folder)], [*install, *constraints, *self.needs]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
                raise NotInstalledError(
                    f"{' '.join(self.needs)} cannot be installed in {self.folder}: {said[-1]}\n"
                    "hint: pip needs the network, or a folder of wheels (PIP_FIND_LINKS)"
                )
        (self.folder / STAMP).write_text("".join(f"{line}\n" for line in self.needs), encoding="utf-8")
