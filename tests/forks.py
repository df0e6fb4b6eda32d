"""Python processes that start at once: forked from one that has imported torch and transformers, nothing of fxprune.

A process of its own spends seconds on these imports, and a check in it moments. What a process computes, prints and
exits with is the same when it is forked; that the real ones start is what ``backends/test_verify.py``,
``backends/huggingface/test_huggingface.py``, ``backends/pt2/test_save.py`` and ``api/test_cli.py`` hold.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

IMPORTED = (
    "safetensors.torch",
    "torch.export",
    "transformers.generation.utils",
    "transformers.integrations",
    "transformers.models.auto.modeling_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)


class Forks:
    """Stands in for :mod:`subprocess` where Python is run; the process to fork from starts when it is first needed."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[bytes] | None = None
        self._asking: socket.socket | None = None

    def ask(self, files: Sequence[int]) -> None:
        """Fork a process, with the files of :func:`watch`."""
        if self._asking is None:
            self._asking, asked = socket.socketpair()
            with asked:
                command = [sys.executable, "-P", __file__, str(asked.fileno())]
                self._parent = subprocess.Popen(command, pass_fds=[asked.fileno()])
        socket.send_fds(self._asking, [b"."], files)

    def close(self) -> None:
        if self._asking is not None and self._parent is not None:
            self._asking.close()
            self._parent.wait()

    def popen(self, command: Sequence[str], **options: Any) -> Forked:
        """As ``subprocess.Popen`` with ``text=True``, see :class:`Forked`."""
        return Forked(self, command, **options)

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` with ``capture_output=True, text=True, check=False``."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with Forked(self, command, **{**options, **pipes}) as process:
            out, err = process.communicate()
        return subprocess.CompletedProcess(command, process.wait(), out, err)

    def module(self) -> SimpleNamespace:
        """What a module of the package has in the place of :mod:`subprocess`."""
        return SimpleNamespace(run=self.run, Popen=self.popen, PIPE=subprocess.PIPE)


class Forked:
    """What ``subprocess.Popen`` gives."""

    def __init__(
        self,
        forks: Forks,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        **_as_text: Any,
    ) -> None:
        """Start.

        Args:
            forks: where to fork from.
            command: ``sys.executable``, ``-P`` or not, then ``-c CODE``, ``-m MODULE`` or a script, and its arguments.
            env: all of its environment; that of this process when None.
            cwd: where it runs; where this process runs when None.
            stdin, stdout, stderr: a file, or ``subprocess.PIPE``.
        """
        if command[0] != sys.executable:
            raise ValueError(f"only Python is forked, not {command[0]}")
        self.returncode: int | None = None
        theirs, mine = zip(*map(_ends, (stdin, stdout, stderr), "wrr"), strict=True)
        self.stdin, self.stdout, self.stderr = mine
        answers, told = os.pipe()
        job = {"arguments": command[1:], "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            json.dump(job, file)
            file.flush()
            file.seek(0)
            forks.ask([file.fileno(), told, *theirs])
        for given, end in zip((stdin, stdout, stderr), theirs, strict=True):
            if given == subprocess.PIPE:
                os.close(end)
        os.close(told)
        self._answers = os.fdopen(answers)
        self.pid = int(self._answers.readline())

    def communicate(self, text: str = "") -> tuple[str, str]:
        said: list[str] = []
        reading = threading.Thread(target=lambda: said.append(self.stderr.read()))
        reading.start()
        with contextlib.suppress(BrokenPipeError), self.stdin:
            self.stdin.write(text)
        out = self.stdout.read()
        reading.join()
        self.wait()
        return out, said[0]

    def wait(self, _timeout: float | None = None) -> int:
        if self.returncode is None:
            with self._answers:
                self.returncode = int(self._answers.readline())
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.wait()


def _ends(given: Any, mode: str) -> tuple[int, Any]:
    """The process's end of one of its standard files, and ours where it is a pipe."""
    if given != subprocess.PIPE:
        return given.fileno(), None
    read, write = os.pipe()
    return (read, os.fdopen(write, mode)) if mode == "w" else (write, os.fdopen(read, mode))


# What follows runs in the process to fork from, and in those that are forked.


def serve(asked: socket.socket) -> None:
    """Fork whenever asked to, until nobody can ask any more."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: _reap(os.WNOHANG))
    while True:
        message, files, *_ = socket.recv_fds(asked, 1, 5)
        if not message:
            break
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            watch(*files)
        for file in files:
            os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _reap(0)


def _reap(options: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            pass


def watch(told: int, answers: int, *standard: int) -> None:
    """Fork once more, and tell the number of that process, then its exit code.

    Args:
        told: a file with the command, its environment and its directory.
        answers: what to tell them to.
        standard: standard input, output and error of the process.
    """
    child = os.fork()
    if child == 0:
        os.close(answers)
        os._exit(exit_code(told, standard))
    for file in (told, *standard):
        os.close(file)
    os.write(answers, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def exit_code(told: int, standard: Sequence[int]) -> int:
    """Run a command in this process, which is changed for it and must end then."""
    with os.fdopen(told, encoding="utf-8") as file:
        job = json.load(file)
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
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
    serve(socket.socket(fileno=int(sys.argv[1])))
