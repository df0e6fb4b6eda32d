"""Every format that a model can be exported to, in one visible list."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..ir.call_text import CallKind, Scanner, bind, having, is_name
from ..ir.errors import RequestError
from ..ir.extras import require
from ..ir.options import options_of
from ..ir.plugins import Table, joined
from .exporter import Exporter
from .gguf.exporter import Gguf
from .onnx.exporter import Onnx

EXPORTERS: tuple[type[Exporter], ...] = (Onnx, Gguf)
"""fxprune's own exporters."""

FORMAT = CallKind(
    "format",
    "formats",
    "a format is name{option=value}, such as onnx{dtype=int8}; see `fxprune formats`",
    "in the format",
    "beside it",
)


@functools.cache
def exporter_table() -> Table[type[Exporter]]:
    """Every exporter by name: fxprune's own, and those that installed packages bring as ``fxprune.exporters``.

    Raises:
        FxpruneError: two exporters of one name.
    """
    return joined("exporter", "fxprune.exporters", {cls.name: cls for cls in EXPORTERS}, _read)


def parse_format(text: str, shared: Mapping[str, Any] | None = None) -> Exporter:
    """The exporter that a text such as ``onnx{dtype=int8}`` stands for, with its options checked.

    Args:
        text: one name with its options.
        shared: option values beside the text; None stands for "not given".

    Raises:
        RequestError: a mistake in the text, an unknown format or option, a value that an option cannot have or that
            contradicts ``shared``, a shared option that the format does not have; a package that it needs is missing.
    """
    if not isinstance(text, str):
        raise RequestError(f"format is of type {type(text).__name__}", "give text, such as 'onnx{dtype=int8}'")
    exporters = exporter_table()
    scanner = Scanner(text, FORMAT)
    call = scanner.call()
    scanner.end("the end of the format", FORMAT.usage)
    given = {name: value for name, value in (shared or {}).items() if value is not None}
    exporter = bind(call, exporters, given, FORMAT)
    for name in given:
        takers = having(name, exporters)
        if exporter.name not in takers:
            others = f"formats that have it: {', '.join(takers)}" if takers else "leave it out"
            raise RequestError(f"format {exporter.name!r} has no option {name!r}", others)
    require(f"the format {exporter.name}", *getattr(exporter, "packages", ()))
    return exporter


def _read(found: Any) -> Mapping[str, type[Exporter]]:
    """The exporter that an entry point stands for, when it can be one."""
    if not isinstance(found, type) or not all(callable(getattr(found, name, None)) for name in ("check", "export")):
        raise TypeError("expected a class that has check and export, as fxprune.backends.exporter.Exporter says")
    if "__dataclass_params__" not in vars(found):
        raise TypeError(f"{found.__name__} is no dataclass: write @dataclass(frozen=True, kw_only=True) above it")
    name = getattr(found, "name", None)
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"{name!r} cannot be the name of a format")
    options_of(found)
    found()  # every option has a default
    return {name: found}
