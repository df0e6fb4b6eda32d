"""``make dist``: build the wheel and the source distribution, check them, and try the wheel where nothing else is.

The wheel in dist/ is built from the source distribution, and compared with one that is built from the checkout. It is
then installed into an empty environment and run from an empty folder, both outside of the checkout. ``TORCH`` in the
environment is the torch to install first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
OUTSIDE = ("tests/", "benchmarks/", "docs/", ".ci/")
"""Folders of the repository that are no part of the wheel."""

TRIED = (
    (0, "--version"),
    (0, "passes"),
    (0, "apply demo --pass magnitude --ratio 0.25 --out smaller"),
    (0, "eval smaller demo --windows 2"),
    (2, "export smaller --out onnx"),
)
"""Exit code and arguments of what is run with the core alone; the last one needs an extra, and says so."""


def run(*command: str | Path, cwd: Path = ROOT, expected: int = 0) -> str:
    """The output of a command; its errors are shown, and another exit code ends everything."""
    print("$", *command, flush=True)
    done = subprocess.run([str(word) for word in command], cwd=cwd, text=True, capture_output=True, check=False)
    if done.returncode != expected:
        sys.exit(f"{done.stdout}{done.stderr}error: exit code {done.returncode}, and {expected} was expected")
    return done.stdout + done.stderr


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution in dist/, the first built from the second."""
    for left in (DIST, ROOT / "build"):  # what setuptools left there would get into the wheel
        shutil.rmtree(left, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder)
    shutil.rmtree(ROOT / "build")
    (wheel,), (source,), (other,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz"), folder.glob("*.whl")
    contents, others = contents_of(wheel), contents_of(other)
    if contents != others:
        differing = sorted(name for name in contents.keys() | others.keys() if contents.get(name) != others.get(name))
        sys.exit(f"error: the source distribution builds another wheel: {', '.join(differing)}")
    if outside := [name for name in contents if name.removeprefix("fxprune/").startswith(OUTSIDE)]:
        sys.exit(f"error: the wheel holds {', '.join(outside)}")
    return wheel, source


def contents_of(wheel: Path) -> dict[str, bytes]:
    """File -> content."""
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def try_wheel(wheel: Path, folder: Path) -> None:
    """Install the core of a wheel into an empty environment, and run it in an empty folder."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "-c", ROOT / "constraints.txt")
    run(*pip, os.environ.get("TORCH", "torch"))
    run(*pip, wheel)
    (folder / "elsewhere").mkdir()
    for code, line in TRIED:
        print(run(python.with_name("fxprune"), *line.split(), cwd=folder / "elsewhere", expected=code))


def main() -> None:
    """Build, check, try."""
    with tempfile.TemporaryDirectory(prefix="fxprune-dist-") as name:
        wheel, source = build(Path(name))
        print(run(sys.executable, "-m", "twine", "check", "--strict", wheel, source))
        try_wheel(wheel, Path(name))
    for path in (source, wheel):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
