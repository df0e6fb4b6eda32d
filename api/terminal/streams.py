"""The process that the command line was given: its standard files, its directory, and how much memory it may use."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile

from ...ir.errors import FxpruneError, RequestError, lacks_memory

NEARLY = 0.5
"""The share of the limit on the address space from which a failure is one of memory: what was asked for did not fit."""


def complete_streams() -> None:
    """Open what of the standard files is closed, on the null device: the next file that is opened would get its number,
    and what is printed would be written into it. What an encoding has no bytes for is printed escaped.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            if null != number:
                os.dup2(null, number, inheritable=True)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # it cannot be told where it stands
                stream.reconfigure(errors="backslashreplace")


def require_directories() -> None:
    """Check that the current directory is there: libraries that find it gone end the process; and one for temporary
    files.

    Raises:
        RequestError: it was removed, or cannot be read; or there is none for temporary files.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise RequestError(f"the current directory cannot be used: {error.strerror}", "cd to one that exists") from None
    try:
        tempfile.gettempdir()
    except OSError:
        raise RequestError(
            "no temporary directory can be used", "set TMPDIR to one that exists and can be written"
        ) from None


def missing_package(error: BaseException) -> FxpruneError | None:
    """An error with advice, where a library lacks a package that it imports; None for other errors."""
    if not isinstance(error, ImportError):
        return None
    missing = [one for one in _causes(error) if isinstance(one, ModuleNotFoundError) and one.name]
    if not missing or str(missing[-1].name).partition(".")[0] == "fxprune":
        return None
    name = str(missing[-1].name).partition(".")[0]
    return FxpruneError(
        f"the package {name!r} is not installed, and one that fxprune uses imports it",
        f"pip install {name}; an installation without its dependencies (--no-deps) leaves such gaps",
    )


def out_of_memory(error: BaseException) -> FxpruneError | None:
    """An error with advice, where memory was short; None for other errors."""
    found = _causes(error)
    says = any(lacks_memory(one) for one in found)
    limit = _limit()
    if not says and not limit:
        return None
    return FxpruneError(
        f"out of memory{limit}",
        "give more memory (ulimit -v, the job's limit), fewer or shorter samples, or --offload disk",
    )


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the first cause last."""
    chain, found = error, [error]
    while (chain := chain.__cause__ or chain.__context__) is not None and chain not in found:  # type: ignore[assignment]
        found.append(chain)
    return found


def _limit() -> str:
    """The limit on the address space, where the process has come close to it; "" otherwise."""
    with contextlib.suppress(ImportError, OSError, ValueError, StopIteration, MemoryError):
        import resource  # not on every system

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            peak = int(next(line for line in file if line.startswith("VmPeak")).split()[1]) * 1024
        if limit != resource.RLIM_INFINITY and peak > NEARLY * limit:
            return f": the process may use {limit / 1e6:,.0f} MB, and came to {peak / 1e6:,.0f} MB"
    return ""
