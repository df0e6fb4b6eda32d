"""Which passes the user asked for; needs neither the model nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError
from ...passes.base import Pass
from ...passes.pipeline import parse_pipeline
from ...passes.registry import all_passes


def asked_passes(
    passes: str | Sequence[str], plan: str | Path | None, shared: Mapping[str, Any], *, uniform: bool = False
) -> tuple[Pass, ...]:
    """The passes that the user gave, with their options checked; with a plan there may be none.

    Args:
        passes, plan, shared: as in :class:`~.request.ApplyRequest`.
        uniform: whether the form is to be uniform.

    Raises:
        RequestError: a mistake in the text, as :func:`~fxprune.passes.pipeline.parse_pipeline` says; nothing to run; a
            shared option for no pass.
    """
    if plan is None and not isinstance(passes, str) and not passes:
        raise RequestError(
            "missing --pass PIPELINE",
            "give one, such as --pass magnitude, or --plan FILE to repeat what another run removed",
        )
    if passes or plan is None:
        return parse_pipeline(passes, all_passes(), shared, uniform=uniform)
    return _none_of(shared)


def _none_of(shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """No passes; refuses options that only a pass could use."""
    for name, value in shared.items():
        if value is not None:
            flag = "--for" if name == "runtime" else "--" + name.replace("_", "-")
            raise RequestError(
                f"{flag} has no effect with --plan alone", f"leave {flag} out, or add the --pass that it is for"
            )
    return ()
