"""The terminal: quiet libraries and a progress line during a call; results and errors after it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...ir.errors import FxpruneError, RequestError, printable
from ...ir.plugins import PluginWarning
from ..progress import Progress
from .progress_display import Loudness, shown
from .streams import missing_package, out_of_memory

if TYPE_CHECKING:
    from ..recipes.settings import RecipeValue

_AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
"""How rich prints: names in the results are no markup."""


@contextlib.contextmanager
def working(
    *, debug: bool, speaks: bool = True, loudness: Loudness = Loudness.USUAL, log: str | None = None
) -> Iterator[Progress]:
    """While the block runs, drop what other libraries print, and show on stderr what is going on.

    Args:
        debug: drop nothing, and print every step on stderr.
        speaks: whether this process tells the user anything but errors.
        loudness, log: as in :func:`~.progress_display.shown`.

    Yields:
        A function that is told of every new step.

    Raises:
        RequestError: the log cannot be written to.
    """
    if not speaks:
        loudness, log = Loudness.QUIET, None
    if debug:
        with shown(max(loudness, Loudness.VERBOSE), log, bar=False) as progress:
            yield progress
        return
    with warnings.catch_warnings(), _no_stdout(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if speaks:
            warnings.simplefilter("always", PluginWarning)
            warnings.showwarning = warn
        _no_bars()
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        yield stack.enter_context(shown(loudness, log))


def warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Say on stderr what was left out, or is another thing than it looks."""
    print(f"warning: {printable(str(message))}", file=sys.stderr)


def _no_bars() -> None:
    """Switch off the progress bars of transformers, if it is imported already: importing it takes seconds."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def _no_stdout() -> Iterator[None]:
    """Drop everything that Python or C code writes to stdout, so that only the result appears there."""
    sys.stdout.flush()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def emit(result: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print the result on stdout: a mapping as JSON, a sequence as tables."""
    if isinstance(result, Mapping):
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    from rich.console import Console

    from .cells import Copied

    def show(console: Console) -> None:
        for part in result:
            console.print(part, soft_wrap=isinstance(part, Copied))

    if sys.stdout.isatty():
        show(Console(**_AS_IT_IS))
        return
    # In a file or a pipe, lines are not cut to 80 characters and not padded.
    console = Console(file=io.StringIO(), width=200, **_AS_IT_IS)
    with console.capture() as capture:
        show(console)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def complain(message: str, hint: str) -> None:
    """Print on stderr what is wrong and what to do. Further lines are indented: none can look like one of ours."""
    for title, text in (("error", message), ("hint", hint)):
        if text:
            first, *rest = printable(text, lines=True).split("\n")
            indented = [line if line.startswith(" ") else f"  {line}" for line in rest]
            print("\n".join([f"{title}: {first}", *indented]), file=sys.stderr)


def explain(error: BaseException, *, told: bool = False, origins: Sequence[RecipeValue] = ()) -> int:
    """Print what went wrong, unless the user has been ``told``; returns the exit code.

    Args:
        error: what went wrong.
        told: whether another process says it.
        origins: what a recipe gave.
    """
    if told:
        return error.exit_code if isinstance(error, FxpruneError) else FxpruneError.exit_code
    if isinstance(error, FxpruneError):
        if origins and isinstance(error, RequestError):
            from ..recipes.settings import with_line

            with_line(error, origins)
        complain(error.message, error.hint)
        return error.exit_code
    if (short := out_of_memory(error)) is not None:
        complain(short.message, short.hint)
    elif isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        complain(f"{error.strerror}{where}", "check the disk and the permissions")
    elif (missing := missing_package(error)) is not None:
        complain(missing.message, missing.hint)
    else:
        complain(
            f"unexpected {type(error).__name__}: {error}",
            "this is a bug in fxprune; run again with --debug and report it",
        )
    return FxpruneError.exit_code
