"""What single models need to be called, as data: ``calls.json``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IDS = "input_ids"
"""The argument for the numbers of tokens."""


@functools.cache
def calls() -> Mapping[str, Any]:
    """The contents of ``calls.json``."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "calls.json").read_text(encoding="utf-8"))
    return found
