"""A loss function of the user's, whose mistakes are told as such."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError, class_and_first_line, guarded
from ..module import resolve_function

_TAKES = "it takes the module and returns a scalar"


def users_loss(loss: Callable[..., Any], *, batches: bool = False) -> Callable[..., Any]:
    """A loss function that raises ``RequestError`` where the given one raises anything.

    Args:
        loss: of the user's.
        batches: whether it is called with a batch of calibration data too.
    """
    name = f"{getattr(loss, '__module__', '')}:{getattr(loss, '__qualname__', type(loss).__name__)}"
    takes = "it is called with the module and a batch of calib, and returns a scalar" if batches else _TAKES
    message = f"the loss {name.removeprefix(':')} fails"

    def called(*arguments: Any) -> Any:
        try:
            return guarded(lambda: loss(*arguments), RequestError, message, takes, partial(_where, loss))
        except SystemExit as error:  # of the user's code: no wish to end this program
            raise RequestError(f"{message}: SystemExit: {error}", takes) from error

    return called


def _where(loss: Callable[..., Any], error: BaseException) -> str:
    """What an error says, with the line of the function that it comes from, where that is known."""
    file = getattr(getattr(loss, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return class_and_first_line(error) + (f" ({Path(file).name}, line {lines[-1]})" if file and lines else "")


def named_losses(loss: str | Callable[..., Any] | None) -> tuple[Callable[..., Any], ...]:
    """A loss of the user's as :func:`users_loss`, also by its name ``package.module:function``; none for None.

    Raises:
        RequestError: the name leads to no function.
    """
    if loss is None:
        return ()
    return (users_loss(resolve_function(loss) if isinstance(loss, str) else loss),)
