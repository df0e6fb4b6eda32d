"""The options of ``bench`` for a draft, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ....ir.errors import RequestError

OF_DRAFT = ("text", "prompts", "draft_tokens", "allow_overlap")
"""What has an effect beside ``--draft`` only."""

NOT_OF_DRAFT = ("onnx", "baseline", "max_memory")
OF_BOTH = ("prompt", "new", "rounds", "threads", "trust_remote_code", "allow_pickle", "merge_adapter")


def add_draft_options(parser: argparse.ArgumentParser) -> None:
    """Add them to ``bench``."""
    draft = parser.add_argument_group("a draft: greedy assisted generation of transformers, one sequence at a time")
    draft.add_argument(
        "--draft",
        metavar="MODEL",
        help="a model with the same tokens that writes ahead, usually MODEL pruned: compare with MODEL alone",
    )
    draft.add_argument("--text", metavar="FILE", help="held-out text for the prompts (required unless MODEL is demo)")
    draft.add_argument("--prompts", type=int, metavar="N", help="prompts from the text (default: 4)")
    draft.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help="tokens that the draft writes before MODEL reads them (default: 5)",
    )
    draft.add_argument("--allow-overlap", action="store_true", help="allow text that the draft was calibrated on")


def asked(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What :func:`fxprune.bench_draft` is asked for, by name; None without a draft.

    Raises:
        RequestError: options that have no effect together.
    """
    if arguments.draft is None:
        _refuse(arguments, OF_DRAFT, "without --draft")
        return None
    _refuse(arguments, NOT_OF_DRAFT, "beside --draft")
    if len(arguments.models) != 1 or arguments.offload != "auto":
        raise RequestError(
            f"--draft is for one model, all of it in memory, and there are {len(arguments.models)} models, "
            f"--offload {arguments.offload}",
            "give the large model as MODEL and the pruned one to --draft",
        )
    given = {name: getattr(arguments, name) for name in ("draft", *OF_DRAFT, *OF_BOTH)}
    return {"dense": arguments.models[0], **{name: value for name, value in given.items() if value is not None}}


def _refuse(arguments: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """Refuse options that have no effect."""
    for name in names:
        if getattr(arguments, name) not in (None, False):
            flag = "--" + name.replace("_", "-")
            raise RequestError(f"{flag} has no effect {where}", f"leave {flag} out")
