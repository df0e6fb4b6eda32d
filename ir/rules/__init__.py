"""The operator rules, in explicit tables by family. An operator without a rule freezes all its axes."""

from __future__ import annotations

from collections.abc import Mapping

from . import convolution, creation, linear, picking, pointwise, reduce, shape, slicing, whole, writing
from .picking import follow_positions
from .rule import Equations, Resized, Rule

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


RULES = _merge(FAMILIES)

__all__ = ["FAMILIES", "RULES", "Equations", "Resized", "Rule", "follow_positions"]
