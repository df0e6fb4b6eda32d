"""A working day with fxprune, as docs/working-day.md shows it: commands, and what they print.

    python -m fxprune.benchmarks.working_day.run --folder DAY --write docs/working-day.md

Runs every command of ``steps.STEPS`` in the directory DAY, on the built-in model, and writes the page. What
was printed is kept in DAY, so that a run that broke off goes on; ``--again 9`` runs the commands of line 9 again.
Commands that need torch are forked from a process that has imported it: what they print is the same. Those of which
the start is what is shown are programs of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from . import measures
from .steps import STEPS, TITLES, Step

AS_A_USER = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
"""What a terminal of 80 columns says in the environment."""

HEAD = """# A working day

What a user meets in a day, on the built-in model `demo`: each command, and what it prints. Written by
`python -m fxprune.benchmarks.working_day.run --write docs/working-day.md`, which runs all of it in an empty directory
(two x86-64 cores, busy with other work, torch CPU, {date}). Seconds are left out, and long outputs are cut at `[...]`.
"""
LEFT_OUT = (
    (re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]"), ""),
    (re.compile(r"\b\d+(\.\d+)? s\b"), "N s"),
    (re.compile(r"of \d+(\.\d+)? GB free"), "of N GB free"),
)


def watched(start: Callable[[int, int], int]) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and CPU seconds of a process; its stdout is a terminal.

    Args:
        start: starts it with these two files for its output and its errors; returns its id.
    """
    shown, terminal = pty.openpty()
    told, error = os.pipe()
    before = _cpu_of_children()
    child = start(terminal, error)
    os.close(terminal)
    os.close(error)
    texts = [bytearray(), bytearray()]
    readers = [threading.Thread(target=_drain, args=pair) for pair in zip((shown, told), texts, strict=True)]
    for reader in readers:
        reader.start()
    _, status = os.waitpid(child, 0)
    for reader in readers:
        reader.join()
    used = _cpu_of_children() - before
    out, err = (bytes(text).decode("utf-8", "replace").replace("\r\n", "\n") for text in texts)
    return os.waitstatus_to_exitcode(status), out, err, used


def forked(words: list[str]) -> tuple[int, str, str, float]:
    """What :func:`watched` returns of a command in a forked process."""

    def start(terminal: int, error: int) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.dup2(terminal, 1)
            os.dup2(error, 2)
            os.environ.update(AS_A_USER)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
            from fxprune import cli

            sys.argv = ["fxprune", *words]
            try:
                code = cli.main(words)
            except SystemExit as end:
                code = int(end.code or 0)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    return watched(start)


def _drain(file: int, into: bytearray) -> None:
    while True:
        try:
            found = os.read(file, 65536)
        except OSError:  # a terminal whose other end is closed
            found = b""
        if not found:
            os.close(file)
            return
        into += found


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def started(words: list[str]) -> tuple[int, str, str, float]:
    """The same of a program of its own."""
    command = [sys.executable, "-m", "fxprune", *words]

    kept: list[subprocess.Popen[bytes]] = []  # one that nobody holds is waited for elsewhere

    def start(terminal: int, error: int) -> int:
        kept.append(subprocess.Popen(command, stdout=terminal, stderr=error, env={**os.environ, **AS_A_USER}))
        return kept[-1].pid

    return watched(start)


def run(step: Step) -> dict[str, Any] | None:
    """What a step printed, its exit code and CPU seconds; None where it ended with another exit code than it is to."""
    if step.measure:
        return {"shown": getattr(measures, step.measure)(), "code": 0, "cpu": 0.0}
    if step.prepare:
        getattr(measures, step.prepare)()
    code, out, err, used = (started if step.own_process else forked)(shlex.split(step.command)[1:])
    if code != step.code:
        print(f"{out}{err}error: exit code {code}, and {step.code} was expected", flush=True)
        return None
    kept = [line for line in err.splitlines() if line != "starting"]
    return {"shown": "\n".join([*out.rstrip().splitlines(), *(kept if step.errors else [])]), "code": code, "cpu": used}


def cut(text: str, lines: int) -> Iterator[str]:
    """A text without what differs between runs; of a long one, the beginning and the end."""
    for pattern, instead in LEFT_OUT:
        text = pattern.sub(instead, text)
    found = [line.rstrip() for line in text.rstrip().splitlines()]
    if len(found) <= lines:
        yield from found
        return
    last = lines // 3
    yield from [*found[: lines - last], "[...]", *found[len(found) - last :]]


def page(held: dict[str, dict[str, Any]], folder: str = "") -> str:
    """The page of what has run in a folder."""
    parts = [HEAD.format(date=date.today().isoformat())]
    for number, (title, said) in TITLES.items():
        parts.append(f"## {number}. {title}\n\n{said}\n")
        steps = [step for step in STEPS if step.line == number and step.name in held]
        if not steps:
            parts.append("Not run yet.\n")
        for step in steps:
            found = held[step.name]
            note = f"# {found['cpu']:.1f} CPU s" if step.own_process else ""
            prompt = "$ " if step.command.startswith(("fxprune ", "cat ")) else ""
            printed = found["shown"].replace(f"{folder}/", "")
            block = [f"{prompt}{step.command}  {note}".rstrip(), *cut(printed, step.lines)]
            parts.append("\n".join(["```text", *block, "```\n"]))
    return "\n".join(parts)


def main() -> None:
    """Run what has not run, and write the page."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--folder", type=Path, help="where to run (default: a temporary directory)")
    asked.add_argument("--write", type=Path, help="the page")
    asked.add_argument("--only", type=int, nargs="*", help="lines to run (default: all)")
    asked.add_argument("--again", type=int, nargs="*", default=[], help="lines of which nothing is kept")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="fxprune-day-") as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "printed.json"
        held = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        held = {name: one for name, one in held.items() if int(name.split(".")[0]) not in given.again}
        measures.import_everything()
        failed: list[str] = []
        page_at, back = given.write and given.write.absolute(), Path.cwd()
        os.chdir(folder)
        for step in STEPS:
            if step.name not in held and (given.only is None or step.line in given.only):
                print(f"{step.name}: {step.command}", flush=True)
                found = run(step)
                failed += [step.name] if found is None else []
                held |= {} if found is None else {step.name: found}
                kept.write_text(json.dumps(held, indent=1), encoding="utf-8")
            if page_at:
                page_at.write_text(page(held, str(folder)), encoding="utf-8")
        os.chdir(back)
    if failed:
        sys.exit(f"error: these ended otherwise than they are to: {', '.join(failed)}")


if __name__ == "__main__":
    main()
