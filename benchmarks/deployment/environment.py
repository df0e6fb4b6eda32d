"""A virtual environment for runtimes that fxprune does not need, made once and kept where the user says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAMP = "installed.txt"
"""In the environment: what was asked of pip, one line each, once all of it is done."""


class NotInstalledError(Exception):
    """pip could not install what a runtime needs; the message ends with what it said."""


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        folder: where it is, or will be.
        needs: requirements, as pip takes them.
        constrained: whether versions are those of constraints.txt.
        without: packages that pip installs for the others, and that are uninstalled again.
    """

    folder: Path
    needs: Sequence[str]
    constrained: bool = True
    without: Sequence[str] = ()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def ready(self) -> bool:
        """Whether all that is needed was installed, and what it is made without was uninstalled."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8").splitlines() == self._asked()

    def _asked(self) -> list[str]:
        return [*self.needs, *(f"without {name}" for name in self.without)]

    def make(self) -> None:
        """Install what is needed, and uninstall what it is made without, unless that was done.

        Raises:
            NotInstalledError: with what pip said at the end.
        """
        if self.ready():
            return
        constraints = ["-c", str(ROOT / "constraints.txt")] if self.constrained else []
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "-q"]
        commands = [
            [sys.executable, "-m", "venv", str(self.folder)],
            [*pip, "install", *constraints, *self.needs],
            *([[*pip, "uninstall", "-y", *self.without]] if self.without else []),
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
                raise NotInstalledError(
                    f"{' '.join(self.needs)} cannot be installed in {self.folder}: {said[-1]}\n"
                    "hint: pip needs the network, or a folder of wheels (PIP_FIND_LINKS)"
                )
        (self.folder / STAMP).write_text("".join(f"{line}\n" for line in self._asked()), encoding="utf-8")
