"""list_passes: every pass with its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.options import Option, options_of, write_value
from ..ir.plugins import Origin
from ..passes.base import Pass
from ..passes.registry import pass_table


@dataclass(frozen=True)
class PassInfo:
    """A pass as ``fxprune passes`` shows it.

    Attributes:
        name: in pipeline text.
        kind: ``score``, ``recover`` or ``analysis``.
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
            "options": [
                {"name": o.name, "type": o.wants, "default": write_value(o.default), "help": o.help}
                for o in self.options
            ],
        }


def list_passes() -> tuple[PassInfo, ...]:
    """Every pass there is, in the order of the registry; after them, those of installed packages."""
    table = pass_table()
    return tuple(_info(cls, table.origins.get(name)) for name, cls in table.items())


def _info(pass_class: type[Pass], origin: Origin | None) -> PassInfo:
    text = (pass_class.__doc__ or "").strip().splitlines()
    return PassInfo(
        pass_class.name,
        pass_class.kind,
        text[0] if text else "",
        pass_class.needs_weights,
        options_of(pass_class),
        f"{origin.package} {origin.version}" if origin else "",
    )
