"""The only way in which fxprune starts a process: Python, isolated from the directory that the user works in.

A directory that somebody downloaded may hold a ``torch.py``. So nothing of the working directory can be imported:
Python runs with ``-P``, in an empty directory, and without what the environment adds to its start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

PIPE = subprocess.PIPE

STARTUP = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT")
"""Variables that make Python run something else."""

FOLDERS = (
    "PYTHONHOME", "PYTHONUSERBASE", "HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "XDG_CACHE_HOME", "TORCH_HOME",
    "TMPDIR",
)  # fmt: skip
"""Variables that name a directory, for which a relative path means another one in another working directory."""

PACKAGE = Path(__file__).absolute().parents[1]

_RUN_MODULE = """
import importlib.util, runpy, sys
name, folder, module = sys.argv[1:4]
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules[name] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv[1:4] = []
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def start_python(
    arguments: Sequence[str],
    folder: Path,
    *,
    stderr: int | TextIO = PIPE,
    settings: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> subprocess.Popen[str]:
    """Start Python with pipes to its standard input and output, as text.

    It is offline: what it loads is on this machine.

    Args:
        arguments: a script, or ``-c`` and its text, and what it is given; paths in them are absolute.
        folder: an empty directory, in which it works.
        stderr: where its standard error goes; a pipe by default.
        settings: variables of its environment beside those of this process.
        own_session: whether Ctrl-C reaches this process only.
    """
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdin=PIPE,
        stdout=PIPE,
        stderr=stderr,
        text=True,
        cwd=folder,
        env={**clean_environment(os.environ), "HF_HUB_OFFLINE": "1", **(settings or {})},
        start_new_session=own_session,
    )


def module_arguments(module: str, *arguments: str) -> list[str]:
    """The arguments that run a module of this very copy of the package, wherever Python would find another one."""
    return ["-c", _RUN_MODULE, module.partition(".")[0], str(PACKAGE), module, *arguments]


def clean_environment(given: Mapping[str, str]) -> dict[str, str]:
    """An environment in which nothing depends on the working directory, and Python starts as usual."""
    kept = {name: value for name, value in given.items() if name not in STARTUP}
    for name in FOLDERS:
        if name in kept:
            kept[name] = os.path.abspath(kept[name])
    paths = [path for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    return {**kept, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
