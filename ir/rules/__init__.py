"""The operator rules: explicit tables by family. An operator without a rule freezes whatever it touches."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..plugins import Table, joined
from . import convolution, creation, linear, picking, pointwise, reduce, shape, slicing, whole, writing
from .picking import follow_positions
from .rule import Equations, Resized, Rule, pattern

FAMILIES: Mapping[str, Mapping[str, Rule]] = {
    "pointwise": pointwise.TABLE,
    "linear": linear.TABLE,
    "reduce": reduce.TABLE,
    "picking": picking.TABLE,
    "shape": shape.TABLE,
    "slicing": slicing.TABLE,
    "writing": writing.TABLE,
    "convolution": convolution.TABLE,
    "creation": creation.TABLE,
    "whole": whole.TABLE,
}


def _merge(families: Mapping[str, Mapping[str, Rule]]) -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for family, rules in families.items():
        for packet, rule in rules.items():
            if packet in table:
                raise AssertionError(f"two rules for {packet}, the second in {family}")
            table[packet] = rule
    return table


RULES: Mapping[str, Rule] = _merge(FAMILIES)
"""fxprune's own rules."""


@functools.cache
def rule_table() -> Table[Rule]:
    """Every operator rule: fxprune's own, and the tables that installed packages bring as ``fxprune.rules``.

    Raises:
        FxpruneError: two rules for one operator.
    """
    return joined("rule", "fxprune.rules", RULES, _read)


def _read(found: Any) -> Mapping[str, Rule]:
    """The rules in what an entry point stands for: a table such as ``TABLE`` in every file of this folder."""
    if not isinstance(found, Mapping):
        raise TypeError(f"expected a mapping of operator names to rules, got {type(found).__name__}")
    for packet, rule in found.items():
        if not isinstance(packet, str) or packet.count(".") != 1:
            raise ValueError(f"an operator is named namespace.name, without its overload, not {packet!r}")
        if not isinstance(rule, Rule):
            raise TypeError(f"{packet} has no Rule but {type(rule).__name__}")
    return found


__all__ = ["FAMILIES", "RULES", "Equations", "Resized", "Rule", "follow_positions", "pattern", "rule_table"]
