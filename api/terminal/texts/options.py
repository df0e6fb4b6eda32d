"""The options that name texts, and say how their rows are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def add_reading_options(parser: argparse._ActionsContainer, *, several: bool) -> None:
    """Add ``--field`` and ``--split``."""
    both = "; calib=NAME or data=NAME is for one of the two" if several else ""
    parser.add_argument(
        "--field",
        action="append",
        metavar="NAME",
        help="the field of the rows to read, such as body or meta.text, or PROMPT,ANSWER (default: the first of these "
        "that the first row has: messages; conversations; text; prompt and completion; prompt and response; "
        f"instruction and output){both}",
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help=f"the split of a `datasets` id or directory, such as test or train[:10%%]{both}",
    )


EVALUATION = (
    "field", "split", "window", "windows", "baseline", "tasks", "tasks_dir", "limit", "trust_task_code",
    "generate", "new", "speed", "allow_overlap", "trust_remote_code", "allow_pickle", "merge_adapter",
)  # fmt: skip
"""Arguments of ``eval`` that :func:`fxprune.compare` takes by the same names."""


def add_json_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, with or without a file."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="print the result on stdout as one JSON object; with FILE.json write it there, and print the tables",
    )


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``eval`` measures on."""
    text = parser.add_argument_group("texts, in the forms that --calib of apply takes")
    text.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="held-out text (required unless a model is demo, or there are tasks or prompts); may be repeated",
    )
    add_reading_options(text, several=False)
    text.add_argument("--window", type=int, default=128, metavar="N", help="tokens in a window (default: 128)")
    text.add_argument("--windows", type=int, metavar="N", help="measure on the first N windows only (default: all)")
    text.add_argument(
        "--allow-overlap", action="store_true", help="allow text that a model was calibrated or trained on"
    )
    tasks = parser.add_argument_group("tasks of lm-eval (pip install 'fxprune[eval]')")
    tasks.add_argument(
        "--tasks", action="append", default=[], metavar="NAME,NAME", help="tasks of single items; may be repeated"
    )
    tasks.add_argument(
        "--tasks-dir",
        metavar="DIR",
        help="look for them in DIR first: NAME.jsonl (or .parquet) with the fields ctx, choices, label; sentence, "
        "choices, label; good, bad; or text; or NAME.yaml as lm-eval has it",
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="the first N items of each task (default: all)")
    tasks.add_argument(
        "--trust-task-code", action="store_true", help="allow code that the tasks in --tasks-dir name to run"
    )
    more = parser.add_argument_group("further")
    more.add_argument(
        "--generate",
        action="append",
        default=[],
        metavar="PROMPT",
        help="show what the models write after PROMPT, always the most probable token; may be repeated",
    )
    more.add_argument("--new", type=int, default=32, metavar="N", help="tokens to write after a prompt (default: 32)")
    more.add_argument("--no-speed", dest="speed", action="store_false", help="measure no tokens per second")
    more.add_argument(
        "--baseline", metavar="MODEL", help="the one that the others are compared with (default: the largest)"
    )


def texts_of(values: Sequence[str] | None) -> str | list[Path] | None:
    """What an option that may be repeated names: one text by its name, several as a list of paths.

    Args:
        values: as they were given; None when the option was not.
    """
    if not values:
        return None
    return values[0] if len(values) == 1 else [Path(value) for value in values]
