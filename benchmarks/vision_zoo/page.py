"""The section of docs/coverage.md on models of timm and diffusers, from measured rows."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from fxprune.benchmarks.vision_zoo.row import FLOAT32_LIMIT, LIMIT, MODELS, WAYS

TITLE = "## Vision and diffusion models"


def section(rows: Mapping[str, Any]) -> str:
    return TITLE


def with_section(page: str, text: str) -> str:
    return page
