"""Explains trace errors: the place in the model's own code that caused one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parent.parent / "tracer")


def explained(error: BaseException, model: nn.Module) -> str:
    """``module (file:line)`` of the innermost frame of the model's own code in the traceback; "" for none."""
    paths = {id(module): path or "its root module" for path, module in model.named_modules()}
    found = ""
    for frame, line in _frames(error):
        file = frame.f_code.co_filename
        first = frame.f_code.co_varnames[:1] if frame.f_code.co_argcount else ()  # whatever it calls itself
        module = frame.f_locals.get(*first) if first else None
        if file.startswith((_TORCH, _OWN)) or id(module) not in paths:
            continue
        found = f"{paths[id(module)]} ({'/'.join(Path(file).parts[-2:])}:{line})"
    return found


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames of an error, outermost first, then those of its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield from traceback.walk_tb(current.__traceback__)
        current = current.__cause__ or current.__context__
