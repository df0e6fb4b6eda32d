"""``analyze`` of a module that is no model of transformers."""

from __future__ import annotations

from typing import Any

from ..progress import Progress, silent
from .result import Analysis


def analyze_target(model: str, example: str, passes: str, *, progress: Progress = silent, **asked: Any) -> Analysis:
    raise NotImplementedError
