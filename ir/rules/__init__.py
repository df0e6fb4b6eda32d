"""The operator rules, in explicit tables by family. An operator without a rule freezes all its axes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ..graph import Op
from ..plugins import Table, joined
from . import (
    convolution,
    creation,
    linear,
    matrices,
    picking,
    pointwise,
    quantisation,
    recurrent,
    reduce,
    shape,
    slicing,
    whole,
    writing,
)
from .contraction import Contraction
from .linear import FUSED_ATTENTION, LINEAR
from .picking import compared, compared_with, follow_positions, picked_from
from .rule import AS_IT_IS, Equations, Resized, Rule, pattern
from .shape import source_dims

FAMILIES: Mapping[str, Mapping[str, Rule]] = {
    "pointwise": pointwise.POINTWISE_RULES,
    "linear": linear.LINEAR_RULES,
    "matrices": matrices.MATRIX_RULES,
    "reduce": reduce.REDUCE_RULES,
    "picking": picking.PICKING_RULES,
    "shape": shape.SHAPE_RULES,
    "slicing": slicing.SLICING_RULES,
    "writing": writing.WRITING_RULES,
    "convolution": convolution.CONVOLUTION_RULES,
    "creation": creation.CREATION_RULES,
    "quantisation": quantisation.QUANTISATION_RULES,
    "recurrent": recurrent.RECURRENT_RULES,
    "whole": whole.WHOLE_RULES,
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


def contraction_of(op: Op) -> Contraction | None:
    """What an operator contracts; None for one that contracts nothing, or has no rule."""
    rule = rule_table().get(op.packet)
    return None if rule is None else rule.contracts


__all__ = [
    "AS_IT_IS",
    "FAMILIES",
    "FUSED_ATTENTION",
    "LINEAR",
    "RULES",
    "Contraction",
    "Equations",
    "Resized",
    "Rule",
    "compared",
    "compared_with",
    "contraction_of",
    "follow_positions",
    "pattern",
    "picked_from",
    "rule_table",
    "source_dims",
]
