"""Element-wise operators: one rule for all of them."""

from __future__ import annotations

from ..graph import Op
from .rule import Equations, Rule, pattern

NAMES = """
abs acos acosh add addcdiv addcmul alias angle asin asinh atan atan2 atanh bernoulli bitwise_and bitwise_left_shift
bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clip clone complex
contiguous copysign cos cosh deg2rad detach detach_ digamma div divide dropout elu empty_like eq erf erfc erfinv exp
exp2 expm1 fill float_power floor floor_divide fmax fmin fmod frac full_like ge gelu greater greater_equal gt hardshrink
hardsigmoid hardswish hardtanh heaviside hypot i0 isfinite isinf isnan ldexp le leaky_relu lerp less less_equal
lgamma lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not
logical_or logical_xor logit lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative
not_equal ones_like polar positive pow rad2deg rand_like randn_like reciprocal relu relu6 remainder round rrelu
rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_expit special_expm1
special_log1p sqrt square sub subtract tan tanh threshold to true_divide trunc type_as where xlogy zero zeros_like
__and__ __or__ __xor__ __rshift__ __lshift__ conj real imag _to_copy
"""

_FIRST_ONLY = frozenset({"type_as", "to"})
"""Operators whose second operand only gives a dtype."""


def _couple(eq: Equations, op: Op) -> None:
    operands = list(op.operands)
    if op.packet.partition(".")[2] in _FIRST_ONLY:
        operands = operands[:1]
    for result in op.made:
        eq.broadcast([eq.of(value) for value in operands], eq.of(result))


POINTWISE = Rule(_couple, text="..., ... -> ...")
POINTWISE_RULES = {f"aten.{name}": POINTWISE for name in NAMES.split()}
POINTWISE_RULES["aten.native_dropout"] = pattern("... -> ..., ...")
