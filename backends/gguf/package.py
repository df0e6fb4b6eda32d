"""The package ``gguf``, which is an extra: it is imported when a file is written, and named when it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from ...ir.errors import RequestError

EXTRA = "fxprune[gguf]"


def load_gguf() -> ModuleType:
    """The package.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise RequestError(
            f"the format gguf needs the package gguf, which cannot be imported: {error}",
            f"install it: pip install '{EXTRA}'",
        ) from error
