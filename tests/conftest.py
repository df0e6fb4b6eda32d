"""What holds for every test: no network, and no failure because a machine was slow."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# How long an example takes depends on what else the machine does; a hang is caught by pytest-timeout.
settings.register_profile("fxprune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fxprune")


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:  # noqa: ARG001
    """Functions by their names: pytest would give their addresses, and worker processes must agree on every name."""
    return getattr(val, "__qualname__", None) if callable(val) else None
