"""Python processes that start at once: forked from one that has imported torch and transformers, nothing of fxprune.

A process of its own spends seconds on these imports, and a check in it moments. What a process computes, prints and
exits with is the same when it is forked; that the real ones start is what ``backends/test_verify.py``,
``backends/huggingface/test_huggingface.py``, ``backends/pt2/test_save.py`` and ``api/test_cli.py`` hold.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

IMPORTED = (
    "safetensors.torch",
    "torch.export",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations",
)


class Forks:
    """Runs Python as :mod:`subprocess` does; the process to fork from starts when the first one is asked for."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None

    def run(
        self,
        command: Sequence[str],
        *,
        input: str = "",
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        **_as_text: Any,
    ) -> subprocess.CompletedProcess[str]:
        """What ``subprocess.run`` gives with ``capture_output=True, text=True``.

        Args:
            command: ``sys.executable``, ``-P`` or not, then ``-c CODE``, ``-m MODULE`` or a script, and its arguments.
            input: what it reads from standard input.
            env: all of its environment; that of this process when None.
            cwd: where it runs.
        """
        assert command[0] == sys.executable
        with tempfile.TemporaryDirectory(prefix="fxprune-fork-") as scratch:
            files = [Path(scratch, name) for name in ("in", "out", "err")]
            files[0].write_text(input, encoding="utf-8")
            job = {
                "arguments": [str(word) for word in command[1:]],
                "files": [str(file) for file in files],
                "env": dict(os.environ if env is None else env),
                "cwd": str(cwd or Path.cwd()),
            }
            code = self._ask(job)
            out, err = (file.read_text(encoding="utf-8") for file in files[1:])
        return subprocess.CompletedProcess(list(command), code, out, err)

    def _ask(self, job: Mapping[str, Any]) -> int:
        if self._parent is None:
            command = [sys.executable, "-P", __file__]
            self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        try:
            self._parent.stdin.write(json.dumps(job) + "\n")
            self._parent.stdin.flush()
            return int(self._parent.stdout.readline())
        except BaseException:  # a time limit, say: the answer would be taken for that to the next question
            self._parent.kill()
            self._parent = None
            raise

    def close(self) -> None:
        if self._parent is not None:
            self._parent.communicate()

    def popen(self, command: Sequence[str], **options: Any) -> Forked:
        return Forked(self, command, options)

    def module(self) -> SimpleNamespace:
        """Stands in for :mod:`subprocess` in a module of the package."""
        return SimpleNamespace(run=self.run, Popen=self.popen, PIPE=subprocess.PIPE)


class Forked:
    """What ``subprocess.Popen`` gives to one that only calls ``communicate``: the process runs then."""

    def __init__(self, forks: Forks, command: Sequence[str], options: dict[str, Any]) -> None:
        self.forks, self.command, self.options = forks, command, options
        self.returncode: int | None = None

    def communicate(self, text: str) -> tuple[str, str]:
        done = self.forks.run(self.command, input=text, **self.options)
        self.returncode = done.returncode
        return done.stdout, done.stderr

    def kill(self) -> None: ...

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None: ...


# What follows runs in the process to fork from, and in those that are forked.


def serve() -> None:
    """Fork for every line of standard input, and answer with the exit code."""
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    for line in jobs:
        child = os.fork()
        if child == 0:
            os._exit(exit_code(json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def exit_code(job: dict[str, Any]) -> int:
    """Run a command in this process, which is changed for it and must end then."""
    for number, (file, mode) in enumerate(zip(job["files"], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        os.dup2(os.open(file, mode | os.O_CREAT), number)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    for module in [module for name, module in sys.modules.items() if name.startswith("transformers.")]:
        if "HF_MODULES_CACHE" in vars(module):
            module.HF_MODULES_CACHE = job["env"].get("HF_MODULES_CACHE", module.HF_MODULES_CACHE)
    paths = job["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    code = 0
    try:
        execute(job["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def execute(arguments: list[str]) -> None:
    """What Python does with its arguments."""
    isolated = arguments[0] == "-P"
    option, *rest = arguments[isolated:]
    sys.modules["__main__"] = main = ModuleType("__main__")
    if option == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [] if isolated else [""]
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif option == "-m":
        sys.argv, sys.path[:0] = rest, [] if isolated else [str(Path.cwd())]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [option, *rest], [] if isolated else [str(Path(option).parent)]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    serve()
