"""Which passes the user asked for; needs neither the model nor torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...ir.errors import RequestError
from ...passes.base import Pass
from ...passes.pipeline import parse_pipeline
from ...passes.recover.base import Recovery
from ...passes.registry import PASSES, all_passes


def asked_passes(
    passes: str | Sequence[str],
    plan: str | Path | None,
    shared: Mapping[str, Any],
    *,
    data: object = None,
    uniform: bool = False,
) -> tuple[Pass, ...]:
    """The passes that the user gave, with their options checked; with a plan there may be none.

    Args:
        passes, plan, shared: as in :class:`~.request.ApplyRequest`.
        data: what is there to train on.
        uniform: whether the form is to be uniform.

    Raises:
        RequestError: a mistake in the text, as :func:`~fxprune.passes.pipeline.parse_pipeline` says; nothing to run; a
            shared option for no pass; data, and no pass that trains on it.
    """
    if plan is None and not isinstance(passes, str) and not passes:
        raise RequestError(
            "missing --pass PIPELINE",
            "give one, such as --pass magnitude, or --plan FILE to repeat what another run removed",
        )
    if passes or plan is None:
        found = parse_pipeline(passes, all_passes(), shared, uniform=uniform)
    else:
        found = _none_of(shared)
    check_data_trains(found, data)
    return found


def check_data_trains(pipeline: Sequence[Pass], data: object) -> None:
    """Refuse data to train on where no pass trains: whoever gives it believes that one does. What passes of others read
    is not known here.

    Raises:
        RequestError: naming the passes that train.
    """
    if data is not None and not any(isinstance(step, Recovery) or type(step) not in PASSES for step in pipeline):
        trains = ", ".join(one.name for one in all_passes() if issubclass(one, Recovery))
        raise RequestError(
            "--data has no effect: no pass trains on it", f"add one that does ({trains}), or leave --data out"
        )


def check_reads_no_text(pipeline: Sequence[Pass]) -> None:
    """Refuse, for a module, a pass that can only read text.

    Raises:
        RequestError: naming it.
    """
    for step in pipeline:
        if step.reads_text:
            raise RequestError(f"pass {step.name!r} needs a causal language model", "leave it out for other modules")


def _none_of(shared: Mapping[str, Any]) -> tuple[Pass, ...]:
    """No passes; refuses options that only a pass could use."""
    for name, value in shared.items():
        if value is not None:
            flag = "--for" if name == "runtime" else "--" + name.replace("_", "-")
            raise RequestError(
                f"{flag} has no effect with --plan alone", f"leave {flag} out, or add the --pass that it is for"
            )
    return ()
