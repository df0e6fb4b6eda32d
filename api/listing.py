"""``passes``: list every pass with its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..passes.base import Pass
from ..passes.options import Option, options_of, write_value
from ..passes.registry import PASSES


@dataclass(frozen=True)
class PassInfo:
    """A pass as ``fxprune passes`` shows it.

    Attributes:
        name: its name in pipeline text.
        kind: ``score``, ``recover`` or ``analysis``.
        help: one line about it.
        needs_weights: whether it needs weights; otherwise a config is enough.
        options: its options.
    """

    name: str
    kind: str
    help: str
    needs_weights: bool
    options: tuple[Option, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "help": self.help,
            "needs_weights": self.needs_weights,
            "options": [
                {"name": o.name, "type": o.wants, "default": write_value(o.default), "help": o.help}
                for o in self.options
            ],
        }


def list_passes() -> tuple[PassInfo, ...]:
    """All passes, in the order of the registry."""
    return tuple(map(_info, PASSES))


def _info(pass_class: type[Pass]) -> PassInfo:
    text = (pass_class.__doc__ or "").strip().splitlines()
    return PassInfo(
        pass_class.name, pass_class.kind, text[0] if text else "", pass_class.needs_weights, options_of(pass_class)
    )
