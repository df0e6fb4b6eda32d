"""The operator rules: explicit tables by family. An operator without a rule freezes whatever it touches."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import Op
from . import convolution, creation, linear, picking, pointwise, reduce, shape, slicing, whole, writing
from .contraction import Contraction
from .picking import follow_positions, picked_from
from .rule import AS_IT_IS, Equations, Resized, Rule

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
    """All rules in one table.

    Raises:
        ValueError: for an operator that has two.
    """
    table: dict[str, Rule] = {}
    home: dict[str, str] = {}
    for family, rules in families.items():
        for packet, rule in rules.items():
            if packet in table:
                raise ValueError(f"two rules for {packet}: in {home[packet]} and in {family}")
            table[packet], home[packet] = rule, family
    return table


RULES = _merge(FAMILIES)


def contraction_of(op: Op) -> Contraction | None:
    """What an operator contracts; None for one that contracts nothing, or has no rule."""
    rule = RULES.get(op.packet)
    return None if rule is None else rule.contracts


__all__ = [
    "AS_IT_IS",
    "FAMILIES",
    "RULES",
    "Contraction",
    "Equations",
    "Resized",
    "Rule",
    "contraction_of",
    "follow_positions",
    "picked_from",
]
