"""What is named is imported from the working directory, and nothing else is, for the rest of the process."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import fxprune
from fxprune.ir.errors import RequestError
from fxprune.tracer.module import resolve_function, resolve_module

RUNS = "import pathlib\npathlib.Path({file!r}).open('a').write(__name__ + ' ')\n"
OPTIONAL = ("triton", "torch_xla", "numba", "cupy", "apex", "xformers", "fxprune_optional")
"""Packages that libraries look for, and do without."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module for each name that somebody may import later."""
    folder = tmp_path / "download"
    folder.mkdir()
    for name in (*OPTIONAL, "json", "colorsys", "torch"):
        (folder / f"{name}.py").write_text(RUNS.format(file=str(tmp_path / "ran")) + "raise ImportError('planted')\n")
    (folder / "planted_sibling.py").write_text("from torch import nn\nwidth = 3\n")
    (folder / "planted_net.py").write_text(
        "from planted_sibling import nn, width\n"
        "def net(): return nn.Linear(2, width)\n"
        "def later():\n    from planted_late import made\n    return made\n"
    )
    (folder / "planted_late.py").write_text("from torch import nn\nmade = nn.Linear(1, 1)\n")
    (folder / "planted_package").mkdir()
    (folder / "planted_package" / "__init__.py").write_text("")
    (folder / "planted_package" / "inner.py").write_text("from .part import net\nimport planted_sibling\n")
    (folder / "planted_package" / "part.py").write_text("from torch import nn\ndef net(): return nn.Linear(2, 2)\n")
    monkeypatch.chdir(folder)
    before, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    yield folder
    assert sys.path == path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - before:
        if name.startswith(("planted", *OPTIONAL)):
            del sys.modules[name]


def test_what_is_named_is_found_with_what_it_imports() -> None:
    assert isinstance(resolve_module("planted_net:net"), nn.Linear)
    assert isinstance(resolve_module("planted_net:later"), nn.Linear)
    assert isinstance(resolve_module("planted_package.inner:net"), nn.Linear)


@pytest.mark.parametrize("named", ["torch.nn:Identity", "planted_net:net"])
def test_nothing_else_is_taken_from_there(named: str, tmp_path: Path) -> None:
    resolve_module(named)
    for name in OPTIONAL:
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    assert not (tmp_path / "ran").exists()


def test_a_library_in_the_working_directory_is_no_part_of_it(here: Path, tmp_path: Path) -> None:
    """A virtual environment often lies in the directory of the project."""
    library = here / "venv"
    library.mkdir()
    (library / "planted_library.py").write_text(
        "from torch import nn\ntry:\n    import triton\nexcept ModuleNotFoundError:\n    pass\nmade = nn.Identity()\n"
    )
    resolve_module("planted_net:net")
    sys.path.append(str(library))
    try:
        assert isinstance(resolve_module("planted_library:made"), nn.Identity)
    finally:
        sys.path.remove(str(library))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["json:dumps", "colorsys:rgb_to_hls"])
def test_what_is_installed_comes_first(name: str, tmp_path: Path) -> None:
    """Also where nobody has imported it yet."""
    sys.modules.pop("colorsys", None)
    assert callable(resolve_function(name))
    assert not (tmp_path / "ran").exists()


def test_a_module_that_is_neither_here_nor_installed() -> None:
    with pytest.raises(RequestError, match="'planted_absent' cannot be imported") as caught:
        resolve_module("planted_absent:x")
    assert "directory that holds the package" in (caught.value.hint or "")


def test_a_whole_command_runs_what_was_named_only(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    words = ["trace", "planted_net:net", "--example", "float32[3,2]"]
    command = [sys.executable, "-P", "-m", "fxprune", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
