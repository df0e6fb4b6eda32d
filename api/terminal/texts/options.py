"""The options that name texts, and say how their rows are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--field`` and ``--split``."""
    parser.add_argument(
        "--field",
        metavar="NAME",
        help="the field of the rows to read, such as body or meta.text, or PROMPT,ANSWER (default: text, messages, "
        "conversations, prompt and completion, or instruction and output)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="the split of a `datasets` id or directory, such as test or train[:10%%]"
    )


def texts_of(values: Sequence[str] | None) -> str | list[Path] | None:
    """What an option that may be repeated names: one text by its name, several as a list of paths.

    Args:
        values: as they were given; None when the option was not.
    """
    if not values:
        return None
    return values[0] if len(values) == 1 else [Path(value) for value in values]
