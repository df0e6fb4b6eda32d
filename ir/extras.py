"""Packages that come with an extra: which one brings what, and the message where one is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

from .errors import RequestError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "lora": ("peft", "accelerate"),
    "data": ("datasets", "pyarrow"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "gguf": ("gguf",),
    "inputs": ("PIL", "soundfile"),
    "eval": ("lm_eval",),
    "report": ("matplotlib", "jinja2"),
}
"""Extra -> the modules that fxprune imports of what it brings. The packages are in ``pyproject.toml``."""


def require(what: str, *modules: str) -> None:
    """Refuse what cannot be done here; nothing is imported for it.

    Args:
        what: the subject of the message, such as ``the pass lora``.
        modules: the modules that it imports.

    Raises:
        RequestError: at least one is not installed. The hint is the command that brings it.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        is_not = "is not" if len(missing) == 1 else "are not"
        raise RequestError(f"{what} needs {names}, which {is_not} installed", install(*missing))


def install(*modules: str) -> str:
    """The command that brings modules."""
    extras = [extra for extra, brought in EXTRAS.items() if set(modules) & set(brought)]
    return f"pip install 'fxprune[{','.join(extras)}]'"


def installed_version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
