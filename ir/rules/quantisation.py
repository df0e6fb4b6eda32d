"""Fake quantisation: values rounded as an integer type would hold them, with steps for all or for each channel."""

from __future__ import annotations

from ..graph import Op
from .arguments import argument, place, tensor
from .reduce import NORMALISED
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


def _observed(eq: Equations, op: Op) -> None:
    """Fake quantisation with the step of a range that is observed at the same time: of all values, or of each channel.

    What goes no longer counts for the range, as it would in a maximum.
    """
    operand = eq.of(tensor(op, 0))
    rounded, clipped, *ranges = op.results
    for made in (rounded, clipped):
        if made is not None:
            eq.tie_all(operand, eq.of(made))
    by_channel = bool(argument(op, 11, "per_row_fake_quant", False))
    channel = place(op, 10, "ch_axis", len(operand)) if by_channel else None
    for value in (*(tensor(op, at) for at in range(3, 7)), *(value for value in ranges if value is not None)):
        if channel is None:
            eq.freeze(eq.of(value), "one step for all values")
        else:
            eq.tie_all(eq.of(value), [operand[channel]])
    eq.mark((axis for dim, axis in enumerate(operand) if dim != channel), NORMALISED)


QUANTISATION_RULES = {
    "aten.fake_quantize_per_tensor_affine": Rule(_one_step, text="... -> ..."),
    "aten._fused_moving_avg_obs_fq_helper_functional": Rule(
        _observed,
        text="... c ..., ., ., c, c, c, c -> ... c ..., ... c ..., c, c, c, c; without channels, each c is one",
    ),
    "aten.fake_quantize_per_channel_affine": Rule(_step_by_channel, text="... c ..., c, c -> ... c ..."),
}
