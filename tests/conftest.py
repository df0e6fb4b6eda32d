"""What holds for every test: no network, and no failure because a machine was slow."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# How long an example takes depends on what else the machine does; a hang is caught by pytest-timeout.
settings.register_profile("fxprune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fxprune")
