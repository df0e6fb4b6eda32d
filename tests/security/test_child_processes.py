"""Processes start one way: nothing of the directory that the user works in is imported there."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune
from fxprune.runtime import child_process
from fxprune.runtime.child_process import clean_environment, module_arguments, start_python

PACKAGE = Path(fxprune.__file__).parent
PLANTED = ("torch", "numpy", "transformers", "onnxruntime", "argparse", "json")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules that leave a file when they are imported."""
    here = tmp_path / "download"
    here.mkdir()
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise ImportError")
    monkeypatch.chdir(here)
    return here


def ask(code: str, folder: Path, *arguments: str) -> str:
    with start_python(["-c", code, *arguments], folder) as process:
        out, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return out.strip()


@pytest.mark.usefixtures("real_processes", "hostile")
@pytest.mark.parametrize("paths", ["", ".", "download", f"{os.curdir}{os.pathsep}"])
def test_a_child_imports_nothing_of_the_working_directory(
    paths: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "startup.py"
    startup.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (paths, os.environ.get("PYTHONPATH", "")))))
    monkeypatch.setenv("PYTHONSTARTUP", str(startup))
    clean = tmp_path / "clean"
    clean.mkdir()
    told = ask("import argparse, json, os, sys; print(json.dumps([os.getcwd(), sys.path]))", clean)
    directory, path = json.loads(told)
    assert Path(directory) == clean
    assert not any(entry == "" or Path(entry).resolve() in (clean, tmp_path / "download") for entry in path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("real_processes", "hostile")
def test_a_child_runs_this_copy_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where Python would find no fxprune, or another one."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    arguments = module_arguments("fxprune.backends.digests")
    arguments[1] += "\nimport fxprune.ir.errors; print(fxprune.__file__, fxprune.ir.errors.__file__)"
    with start_python(arguments, tmp_path) as process:
        out, complaint = process.communicate()
    assert process.returncode == 0, complaint
    found = [Path(file) for file in out.split()]
    assert [file.resolve() for file in found] == [
        (PACKAGE / part).resolve() for part in ("__init__.py", "ir/errors.py")
    ]
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", [["bench", ".", "--rounds", "1"], ["trace", "."]], ids=["bench", "trace"])
def test_a_command_in_a_downloaded_directory(command: list[str], tmp_path: Path) -> None:
    """The whole command, as ``python -m`` starts it: what it imports and what its processes import is not from here."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    # Quiet, since a slow machine says meanwhile what it does.
    command = [sys.executable, "-m", "fxprune", *command, "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith(" has no config.json")
    assert not (tmp_path / "ran").exists()


def test_the_environment_of_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "PYTHONPATH": os.pathsep.join(("", ".", "lib", "/opt/lib")),
        "PYTHONINSPECT": "1",
        "PYTHONHOME": "python",
        "HF_HOME": "cache",
        "LANG": "C",
    }
    assert clean_environment(given) == {
        "PYTHONPATH": "/opt/lib",
        "PYTHONSAFEPATH": "1",
        "PYTHONHOME": str(tmp_path / "python"),
        "HF_HOME": str(tmp_path / "cache"),
        "LANG": "C",
    }
    assert clean_environment({"PYTHONPATH": "."}) == {"PYTHONSAFEPATH": "1"}


STARTS = {
    "subprocess", "multiprocessing", "concurrent.futures.process", "pty", "pexpect", "torch.multiprocessing", "asyncio",
}  # fmt: skip
CALLS = re.compile(r"os\.(system|popen|fork\w*|exec\w+|spawn\w+|posix_spawnp?|startfile)|.*ProcessPoolExecutor")


def test_nothing_else_starts_a_process() -> None:
    """Only types may be imported from :mod:`subprocess` elsewhere."""
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if (
            place.startswith(("tests/", "benchmarks/", ".", "build/"))
            or path.resolve() == Path(child_process.__file__).resolve()
        ):
            continue
        tree = ast.parse(path.read_text())
        blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If))
        typed = [block for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
        excused = {id(inner) for block in typed for inner in ast.walk(block)}
        for node in ast.walk(tree):
            if id(node) in excused:
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not STARTS & set(names), f"{place}:{node.lineno} imports {names}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not CALLS.fullmatch(called), f"{place}:{node.lineno} calls {called}"
        checked += 1
    assert checked > 200
