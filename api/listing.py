"""list_passes and list_formats: every pass and every export format with its options."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.errors import RequestError
from ..ir.options import Option, options_of, write_value
from ..ir.plugins import Origin
from ..passes.base import Pass
from ..passes.named_pipelines import NAMED_PIPELINES
from ..passes.registry import pass_table


@dataclass(frozen=True)
class PassInfo:
    """A pass as ``fxprune passes`` shows it.

    Attributes:
        name: in pipeline text.
        kind: ``score``, ``recover`` or ``analysis``; ``pipeline`` for a name that stands for several passes.
        help: one line.
        needs_weights: whether it can run from a config alone.
        options: what it can be told.
        origin: the package that brings it, with its version; empty for fxprune's own.
    """

    name: str
    kind: str
    help: str
    needs_weights: bool
    options: tuple[Option, ...]
    origin: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "help": self.help,
            **({"from": self.origin} if self.origin else {}),
            "needs_weights": self.needs_weights,
            "options": _options_json(self.options),
        }


@dataclass(frozen=True)
class FormatInfo:
    """An export format as ``fxprune formats`` shows it.

    Attributes:
        name: as ``--format`` takes it.
        help: one line.
        options: what it can be told.
        origin: the package that brings it, with its version; empty for fxprune's own.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    origin: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "help": self.help,
            **({"from": self.origin} if self.origin else {}),
            "options": _options_json(self.options),
        }


def list_passes() -> tuple[PassInfo, ...]:
    """Every pass there is, in the order of the registry; those of installed packages; pipelines that have a name."""
    table = pass_table()
    named = [pipeline for pipeline in NAMED_PIPELINES if pipeline.name not in table]
    return (
        *(_info(cls, table.origins.get(name)) for name, cls in table.items()),
        *(PassInfo(one.name, "pipeline", f"{one.text}: {one.help}", True, ()) for one in named),
    )


def pass_named(name: str, listed: Sequence[PassInfo]) -> PassInfo:
    """The pass of this name.

    Raises:
        RequestError: there is none; with what it may have meant.
    """
    for row in listed:
        if row.name == name:
            return row
    near = difflib.get_close_matches(name, [row.name for row in listed])
    hint = f"did you mean {near[0]}? " if near else ""
    raise RequestError(f"unknown pass {name!r}", f"{hint}passes: {', '.join(row.name for row in listed)}")


def _info(pass_class: type[Pass], origin: Origin | None) -> PassInfo:
    return PassInfo(
        pass_class.name,
        str(pass_class.kind),
        _first_line(pass_class),
        pass_class.needs_weights,
        options_of(pass_class),
        _named(origin),
    )


def list_formats() -> tuple[FormatInfo, ...]:
    """Every format that ``export`` writes; after fxprune's own, those of installed packages."""
    from ..backends.registry import exporter_table

    table = exporter_table()
    return tuple(
        FormatInfo(name, _first_line(cls), options_of(cls), _named(table.origins.get(name)))
        for name, cls in table.items()
    )


def _options_json(options: tuple[Option, ...]) -> list[dict[str, str]]:
    return [{"name": o.name, "type": o.wants, "default": write_value(o.default), "help": o.help} for o in options]


def _first_line(described: type) -> str:
    text = (described.__doc__ or "").strip().splitlines()
    return text[0] if text else ""


def _named(origin: Origin | None) -> str:
    return f"{origin.package} {origin.version}" if origin else ""
