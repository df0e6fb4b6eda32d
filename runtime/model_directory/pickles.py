"""Pickles that the class of a model reads besides its weights, such as the voices of a model that speaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ...ir.errors import RequestError


@contextmanager
def pickles_read(allowed: bool) -> Iterator[None]:
    """Inside, torch reads pickles only if they are allowed, whatever class of transformers asks for one.

    Raises:
        RequestError: one is asked for, and they are not.
    """
    import torch

    def refuse(file: Any, *_: object, **__: object) -> NoReturn:
        raise RequestError(
            f"{file} is a pickle, which the class of the model reads besides the weights",
            "pass --allow-pickle if you trust it",
        )

    kept = torch.load
    if not allowed:
        torch.load = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = kept
