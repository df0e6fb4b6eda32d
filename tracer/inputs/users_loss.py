"""A loss function of the user's, whose mistakes are told as such."""

from __future__ import annotations

from collections.abc import Callable
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
        return guarded(lambda: loss(*arguments), RequestError, message, takes, class_and_first_line)

    return called


def named_losses(loss: str | Callable[..., Any] | None) -> tuple[Callable[..., Any], ...]:
    """A loss of the user's as :func:`users_loss`, also by its name ``package.module:function``; none for None.

    Raises:
        RequestError: the name leads to no function.
    """
    if loss is None:
        return ()
    return (users_loss(resolve_function(loss) if isinstance(loss, str) else loss),)
