"""Fake quantisation: values rounded as an integer type would hold them, with steps for all or for each channel."""

from __future__ import annotations

from ..graph import Op
from .arguments import place, tensor
from .rule import Equations, Rule


def _one_step(eq: Equations, op: Op) -> None:
    """The step and the zero point are single numbers, also where they are tensors."""
    eq.tie_all(eq.of(tensor(op, 0)), eq.of(op.result))
    eq.freeze((axis for value in list(op.operands)[1:] for axis in eq.of(value)), "one step for all values")


def _step_by_channel(eq: Equations, op: Op) -> None:
    operand = eq.of(tensor(op, 0))
    eq.tie_all(operand, eq.of(op.result))
    channel = operand[place(op, 3, "axis", len(operand))]
    for steps in (tensor(op, 1, "scale"), tensor(op, 2, "zero_point")):
        eq.tie(eq.of(steps)[0], channel)


QUANTISATION_RULES = {
    "aten.fake_quantize_per_tensor_affine": Rule(_one_step, text="... -> ..."),
    "aten.fake_quantize_per_channel_affine": Rule(_step_by_channel, text="... c ..., c, c -> ... c ..."),
}
