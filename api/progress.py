"""How a long call reports what it is doing."""

from __future__ import annotations

import os
from collections.abc import Callable

Progress = Callable[[str], None]
"""A function that is called with a short message whenever a new step begins."""


def silent(message: str) -> None:
    """Report nothing."""
    del message


# Other libraries read these when they are imported. Their progress bars and advice are not output of this program.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def silence() -> None:
    """Make other libraries quiet. To be called before they are imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
