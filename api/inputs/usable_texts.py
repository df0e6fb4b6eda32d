"""Whether the texts of a run will do for all of its passes, asked before the first of them works for hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...ir.errors import RequestError
from ...passes.base import Pass
from ...passes.data import Calibration
from ...passes.recover.base import Recovery
from ...passes.state import Data
from ...tracer.texts.corpus import Text
from ...tracer.texts.fingerprints import TrackedText
from .reading import ARGUMENTS
from .seen_texts import Remembering


def check_texts(pipeline: Sequence[Pass], data: Data) -> None:
    """Refuse texts that some pass cannot use: none, too short a one, one without answers where these are trained on.

    Passes behind one that writes another text, or that changes the tokens, are not asked: nobody knows yet what they
    will read.

    Args:
        pipeline: the passes, for a causal language model.
        data: what they read.

    Raises:
        RequestError: as the pass would.
    """
    for step in pipeline:
        if isinstance(step, Recovery):
            if data.recovery is None:
                raise RequestError(f"{step.name} has no text to train on", "give --data FILE")
            if (text := _text(data.recovery)) is not None:
                text.check_examples(step.length, step.train_on)
        elif (samples := getattr(step, "samples", 0)) and step.needs_weights and not step.streams:
            data.text(f"{step.name} needs")
            if (text := _text(data.calibration)) is not None:
                text.windows(step.length, samples)  # type: ignore[attr-defined]
        if step.writes_text:
            return


def unread(given: Mapping[str, object], found: Mapping[str, Remembering | None]) -> tuple[str, ...]:
    """The arguments whose data no pass read.

    Args:
        given: all data as it was given, by what it is for.
        found: what was opened of it.
    """
    read = {part for part, data in found.items() if data is not None and data.fingerprint(part, "") is not None}
    return tuple(ARGUMENTS[part] for part, data in given.items() if data is not None and part not in read)


def _text(data: Calibration | None) -> Text | None:
    """The text itself, of which what is read here is not remembered as read."""
    return data.text if isinstance(data, TrackedText) else None
