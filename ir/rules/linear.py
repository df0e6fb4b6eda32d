"""Contractions: linear maps, matrix products, einsum, attention; and table look-ups."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..axes import AxisId
from ..errors import UnsupportedCall
from ..graph import Op, Value
from .arguments import argument, tensor, with_args
from .contraction import Contraction, Dims, Product, spread
from .reduce import NORMALISED
from .rule import Equations, Resized, Rule, contracting, pattern


def _matmul(eq: Equations, op: Op) -> None:
    """``... m k, ... k n -> ... m n``; vectors as in numpy."""
    left, right = list(eq.of(tensor(op, 0))), list(eq.of(tensor(op, 1)))
    result = list(eq.of(op.result))
    if len(right) == 1:
        eq.tie(left[-1], right[0])
        eq.broadcast([left[:-1]], result)
        return
    eq.tie(left[-1], right[-2])
    if len(left) == 1:
        eq.broadcast([right[:-2]], result[:-1])
        eq.tie(right[-1], result[-1])
        return
    eq.tie_all((left[-2], right[-1]), (result[-2], result[-1]))
    eq.broadcast([left[:-2], right[:-2]], result[:-2])


def _add_matmul(eq: Equations, op: Op) -> None:
    """``beta * bias + alpha * (left @ right)``; the bias broadcasts."""
    left, right = eq.of(tensor(op, 1)), eq.of(tensor(op, 2))
    result = eq.of(op.result)
    eq.tie(left[-1], right[-2])
    eq.tie_all((left[-2], right[-1]), (result[-2], result[-1]))
    eq.broadcast([eq.of(tensor(op, 0))], result)
    eq.broadcast([left[:-2], right[:-2]], result[:-2])


def _equation(op: Op) -> tuple[list[str], str]:
    """The dimensions of the operands and of the result, as an einsum has them."""
    equation = argument(op, 0, "equation")
    if not isinstance(equation, str):
        raise UnsupportedCall(f"{op.target} argument equation is no string")
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = sorted(c for c in set(inputs) if c.isalpha() and inputs.count(c) == 1)
        output = ("..." if "..." in inputs else "") + "".join(letters)
    specs = inputs.split(",")
    if len(specs) != len(list(op.operands)):
        raise UnsupportedCall(f"{equation!r} of {len(list(op.operands))} tensors")
    return specs, output


def _einsum(eq: Equations, op: Op) -> None:
    specs, output = _equation(op)
    operands = list(op.operands)
    bound: dict[str, AxisId] = {}
    leading: list[Sequence[AxisId]] = []
    for spec, value in zip([*specs, output], [*operands, op.result], strict=True):
        axes = list(eq.of(value))
        head, dots, tail = spec.partition("...")
        names = list(head) + list(tail)
        named = axes[: len(head)] + axes[len(axes) - len(tail) :] if dots else axes
        for name, axis in zip(names, named, strict=True):
            if name not in bound or eq.axes.size(bound[name]) == 1:
                bound[name] = axis
            eq.tie(bound[name], axis)
        rest = axes[len(head) : len(axes) - len(tail)] if dots else []
        if value is op.result:
            eq.broadcast(leading, rest)
        elif dots:
            leading.append(rest)


def _einsum_products(op: Op) -> tuple[Product, ...]:
    specs, output = _equation(op)

    def dims(spec: str, value: Value) -> Dims:
        head, dots, tail = spec.partition("...")
        return spread((*head, *([dots] if dots else ()), *tail), len(value.shape))

    factors = tuple((value, dims(spec, value)) for spec, value in zip(specs, op.operands, strict=True))
    return (Product(factors, (op.result, dims(output, op.result))),)


def _attention(eq: Equations, op: Op) -> None:
    """``... l e, ... s e, ... s v, (... l s)? -> ... l v``; the dimension before ``l`` holds the heads."""
    query, key, value = (eq.of(tensor(op, i)) for i in range(3))
    result = eq.of(op.result)
    eq.tie(query[-1], key[-1])
    eq.tie(key[-2], value[-2])
    eq.tie_all((query[-2], value[-1]), (result[-2], result[-1]))
    eq.broadcast([query[:-2]], result[:-2])
    if argument(op, 7, "enable_gqa", False):
        groups = eq.axes.fresh(eq.axes.size(query[-3]) // eq.axes.size(key[-3]))
        for shared in (key, value):
            eq.tie(eq.axes.product((shared[-3], groups)), query[-3])
        eq.broadcast([key[:-3], value[:-3]], result[:-3])
    else:
        eq.broadcast([key[:-2], value[:-2]], result[:-2])
    mask = argument(op, 3, "attn_mask")
    if isinstance(mask, Value):
        axes = eq.of(mask)
        eq.tie(axes[-1], key[-2])
        eq.broadcast([axes[:-1]], result[:-1])
    eq.mark([key[-2]], NORMALISED)
    if argument(op, 5, "is_causal", False):
        eq.freeze((query[-2], key[-2]), "a causal mask compares positions")
    eq.mark(query[1:-2] or query[:-2], "heads")
    eq.mark((query[-1], value[-1]), "head_dim")


def _pin_scale(op: Op, new: Resized) -> Op:
    """Keep the scale of the dense head size; the default of the operator would depend on the new size."""
    del new
    if argument(op, 6, "scale") is not None:
        return op
    return with_args(op, {}, {"scale": tensor(op, 0).shape[-1] ** -0.5})


def _attention_products(op: Op) -> tuple[Product, ...]:
    """Scores of every query with every key, then the values weighted with them."""
    query, key, value = (tensor(op, i) for i in range(3))
    scores = spread(("...", "l", "s"), len(query.shape))
    compared = (query, spread(("...", "l", "e"), len(query.shape))), (key, spread(("...", "s", "e"), len(key.shape)))
    mixed = (None, scores), (value, spread(("...", "s", "v"), len(value.shape)))
    return (
        Product(compared, (None, scores)),
        Product(mixed, (op.result, spread(("...", "l", "v"), len(op.result.shape)))),
    )


def _attention_macs(op: Op) -> int:
    """As the products say, read off at once."""
    query, key, value = (tensor(op, i).shape for i in range(3))
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_ROWS = pattern("v d, ... -> ... d")


def _look_up(eq: Equations, op: Op) -> None:
    """The rows are addressed by an index, which may hold positions of an axis, such as token ids."""
    _ROWS.couple(eq, op)
    eq.address(eq.of(tensor(op, 0))[0], argument(op, 1, "indices"))


def _embedding_bag(eq: Equations, op: Op) -> None:
    """Looks up rows and sums them; the other results are indices of the rows."""
    table, (bags, *others) = eq.of(tensor(op, 0)), op.made
    eq.tie(table[1], eq.of(bags)[1])
    others += list(op.operands)[1:]
    eq.freeze((table[0], eq.of(bags)[0], *(axis for value in others for axis in eq.of(value))), "addressed by an index")


_MATMUL = Rule(_matmul, text="... m k, ... k n -> ... m n")
_ONE_VECTOR = "the product is with one vector, not with one for each sample"
_CDIST = pattern("... p m, ... r m -> ... p r")
_BAGS = Rule(_embedding_bag, text="v d, ... -> n d, v and n frozen")
_ADD_MATMUL = Rule(_add_matmul, text="(... m n)?, ... m k, ... k n -> ... m n")
_ATTENTION = Rule(
    _attention,
    _pin_scale,
    text="... l e, ... s e, ... s v, (... l s)? -> ... l v",
    contracts=Contraction(
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
        _attention_products,
        unrecorded="no operand is a weight",
        count=_attention_macs,
    ),
)
_EINSUM = Rule(
    _einsum,
    text="the equation it is given",
    contracts=Contraction(
        ("equation", "operands"),
        _einsum_products,
        unrecorded="which operand is the weight, and which dimension of it is which, differs with the equation",
    ),
)

LINEAR = "aten.linear"
"""What a linear layer calls."""

FUSED_ATTENTION = "aten.scaled_dot_product_attention"
"""Attention in one call: the scores, their softmax, and the values that it weighs."""

LINEAR_RULES = {
    LINEAR: contracting(pattern("... k, n k, n? -> ... n"), "input weight bias", weight="weight"),
    "aten.addmm": contracting(_ADD_MATMUL, "input mat1 mat2", weight="mat2", plain={"alpha": 1, "beta": 1}),
    "aten.mm": contracting(pattern("m k, k n -> m n"), "input mat2", weight="mat2"),
    "aten.bmm": contracting(pattern("... m k, ... k n -> ... m n"), "input mat2", weight="mat2"),
    "aten.baddbmm": contracting(
        _ADD_MATMUL,
        "input batch1 batch2",
        weight="batch2",
        unrecorded="what it adds is a matrix for each sample, no bias of a map",
    ),
    "aten.bilinear": contracting(
        pattern("... i, ... j, n i j, n? -> ... n"),
        "input1 input2 weight bias",
        weight="weight",
        unrecorded="the outputs are linear in the product of two inputs, not in one input",
    ),
    "aten.mv": contracting(pattern("m k, k -> m"), "input vec", unrecorded=_ONE_VECTOR),
    "aten.addmv": contracting(pattern("m?, m k, k -> m"), "input mat vec", unrecorded=_ONE_VECTOR),
    **{
        f"aten.{name}": contracting(pattern("k, k -> "), arguments, unrecorded=_ONE_VECTOR)
        for name, arguments in {"dot": "input tensor", "vdot": "input other"}.items()
    },
    **{f"aten.{name}": pattern("m, n -> m n") for name in ("outer", "ger")},
    "aten.addr": pattern("m n, m, n -> m n"),
    "aten.embedding": Rule(_look_up, text=_ROWS.text),
    **{f"aten.{name}": _BAGS for name in ("embedding_bag", "_embedding_bag")},
    **{f"aten.{name}": _CDIST for name in ("cdist", "_cdist_forward")},
    "aten.matmul": contracting(_MATMUL, "input other", weight="other"),
    "aten.linalg_matmul": contracting(_MATMUL, "input other", weight="other", unrecorded="layers call it matmul"),
    "aten.einsum": _EINSUM,
    FUSED_ATTENTION: _ATTENTION,
}
