"""How many examples a property test draws: the same ones in every usual run, new and more of them at night."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

USUAL, NIGHTLY = "usual", "nightly"
"""Profiles of hypothesis: ``--hypothesis-profile=nightly`` chooses the other one, as ``make nightly`` does."""

TIMES = 10
"""How many times as many examples a nightly run draws."""


def register() -> None:
    """Make both profiles known and take the usual one, before the command line is looked at and tests are imported.

    How long an example takes depends on what else the machine does: a hang is caught by pytest-timeout.
    """
    alike = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile(USUAL, alike, derandomize=True)
    settings.register_profile(NIGHTLY, alike, max_examples=TIMES * alike.max_examples, print_blob=True)
    settings.load_profile(USUAL)


def draws(count: int) -> settings:
    """For a test whose examples are dear: as many in a usual run, ``TIMES`` as many in a nightly one."""
    nightly = settings.get_current_profile_name() == NIGHTLY
    return settings(max_examples=TIMES * count if nightly else count)
