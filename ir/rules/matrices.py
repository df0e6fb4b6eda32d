"""Operators on whole matrices: factorisations, inverses, systems of equations. Batches pass, rows and columns mix."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes import AxisId
from ..errors import UnsupportedCall
from ..graph import Op, Value, values_in
from .arguments import argument, place, tensor, wrapped
from .contraction import Contraction, Dims, Product
from .reduce import NORMALISED
from .rule import Equations, Rule

ALL_AT_ONCE = "computed of all rows and columns at once"

FACTORISATIONS = """
linalg_cholesky linalg_cholesky_ex linalg_cond linalg_det linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
linalg_householder_product linalg_inv linalg_inv_ex linalg_ldl_factor linalg_ldl_factor_ex linalg_lu linalg_lu_factor
linalg_lu_factor_ex linalg_matrix_exp linalg_matrix_power linalg_matrix_rank linalg_pinv linalg_qr linalg_slogdet
linalg_svd linalg_svdvals cholesky cholesky_inverse det inverse logdet matrix_exp matrix_power pinverse qr slogdet svd
"""
"""Operators whose operands and results are matrices, vectors and numbers for each matrix of a batch."""


def _batched(eq: Equations, values: Sequence[Value], batch: Sequence[AxisId]) -> None:
    """Tie the leading dimensions of tensors with those of a batch, and freeze the rest.

    Raises:
        UnsupportedCall: for one with fewer dimensions than the batch.
    """
    for value in values:
        axes = eq.of(value)
        if len(axes) < len(batch):
            raise UnsupportedCall(f"a tensor of {len(axes)} dimensions for a batch of {len(batch)}")
        eq.tie_all(axes[: len(batch)], batch)
        eq.freeze(axes[len(batch) :], ALL_AT_ONCE)


def _factorisation(eq: Equations, op: Op) -> None:
    batch = eq.of(tensor(op, 0))[:-2]
    _batched(eq, [*op.operands, *op.made], batch)


def _system(matrix: int, sides: int) -> Rule:
    """Solutions of ``A X = B`` or, from the right, of ``X A = B``: the other dimension of ``B`` counts systems.

    Args:
        matrix, sides: positions of ``A``, which may be a factor of it, and of ``B``.
    """

    def couple(eq: Equations, op: Op) -> None:
        factor, given = tensor(op, matrix), tensor(op, sides)
        axes, right, solved = eq.of(factor), eq.of(given), eq.of(op.result)
        vectors = len(given.shape) == 1 or (
            op.packet.startswith("aten.linalg_solve") and given.shape == factor.shape[:-1]
        )
        eq.freeze(axes[-2:], ALL_AT_ONCE)
        if vectors:
            eq.freeze((right[-1], solved[-1]), ALL_AT_ONCE)
            batch = solved[:-1]
            eq.broadcast([axes[:-2], right[:-1]], batch)
        else:
            mixed, free = (-2, -1) if argument(op, len(op.args), "left", True) else (-1, -2)
            eq.freeze((right[mixed], solved[mixed]), ALL_AT_ONCE)
            eq.tie(right[free], solved[free])
            batch = solved[:-2]
            eq.broadcast([axes[:-2], right[:-2]], batch)
        others = [value for value in op.operands if value not in (factor, given)]
        _batched(eq, [*others, *(value for value in op.made if value is not op.result)], batch)

    return Rule(couple, text="... n n, ... n k -> ... n k, n frozen")


def _matrix_norm(eq: Equations, op: Op) -> None:
    """A norm of each matrix; zero is neutral, except for a negative order."""
    operand, result = eq.of(tensor(op, 0)), eq.of(op.result)
    order, dims = argument(op, 1, "ord"), argument(op, 2, "dim", (-2, -1))
    listed = dims if isinstance(dims, tuple) else ()
    reduced = {wrapped(op, d, "dim", len(operand)) for d in listed if isinstance(d, int)}
    kept = [axis for d, axis in enumerate(operand) if d not in reduced]
    same = len(result) == len(operand)
    eq.tie_all(kept, [axis for d, axis in enumerate(result) if d not in reduced] if same else result)
    if isinstance(order, int | float) and order < 0:
        eq.mark((operand[d] for d in reduced), NORMALISED)


def _cross(eq: Equations, op: Op) -> None:
    """The cross product along a dimension of three coordinates; without one named, the first that has three."""
    result = eq.of(op.result)
    eq.broadcast([eq.of(tensor(op, 0)), eq.of(tensor(op, 1))], result)
    default = -1 if op.packet == "aten.linalg_cross" else next(d for d, n in enumerate(op.result.shape) if n == 3)
    named = argument(op, 2, "dim") is not None
    eq.freeze(
        [result[place(op, 2, "dim", len(result), default) if named else default]], "coordinates of a cross product"
    )


def _kron(eq: Equations, op: Op) -> None:
    """Every dimension of the result is a product of those of the operands, aligned at the last one."""
    result = eq.of(op.result)
    left, right = (list(eq.of(tensor(op, at))) for at in (0, 1))
    for back in range(1, len(result) + 1):
        factors = [axes[-back] for axes in (left, right) if back <= len(axes)]
        eq.tie(result[-back], eq.axes.product(factors))


def _chain(eq: Equations, op: Op) -> None:
    """A chain of matrix products, in the order that costs least: only the outer dimensions pass."""
    chain = [eq.of(value) for value in values_in(argument(op, 0, "tensors"))]
    outer = ([chain[0][0]] if len(chain[0]) > 1 else []) + ([chain[-1][1]] if len(chain[-1]) > 1 else [])
    eq.tie_all(outer, eq.of(op.result))
    inner = [axis for axes in chain for axis in axes if axis not in outer]
    eq.freeze(inner, "between the factors of a chain of products")


def _vector_products(op: Op) -> tuple[Product, ...]:
    left, right = tensor(op, 0, "x"), tensor(op, 1, "y")
    rank = max(len(left.shape), len(right.shape))
    dim = place(op, 2, "dim", rank, -1)
    words = tuple("k" if d == dim else f".{rank - d}" for d in range(rank))

    def of(value: Value) -> Dims:
        return words[rank - len(value.shape) :]

    kept = tuple(word for word in words if word != "k")
    return (Product(((left, of(left)), (right, of(right))), (op.result, kept)),)


def _vector_product(eq: Equations, op: Op) -> None:
    left, right, result = list(eq.of(tensor(op, 0, "x"))), list(eq.of(tensor(op, 1, "y"))), eq.of(op.result)
    rank = max(len(left), len(right))
    back = place(op, 2, "dim", rank, -1) - rank
    eq.tie(left.pop(back), right.pop(back))
    eq.broadcast([left, right], result)


_FACTORISATION = Rule(_factorisation, text="... n m -> ... and the rest frozen")
_CROSS = Rule(_cross, text="..., ... -> ..., three coordinates frozen")

MATRIX_RULES = {
    **{f"aten.{name}": _FACTORISATION for name in FACTORISATIONS.split()},
    **{
        f"aten.{name}": _system(*at)
        for name, at in {
            "linalg_solve": (0, 1),
            "linalg_solve_ex": (0, 1),
            "linalg_solve_triangular": (0, 1),
            "cholesky_solve": (1, 0),
            "triangular_solve": (1, 0),
        }.items()
    },
    "aten.linalg_matrix_norm": Rule(_matrix_norm, text="reduces two dimensions"),
    "aten.linalg_cross": _CROSS,
    "aten.cross": _CROSS,
    "aten.kron": Rule(_kron, text="m n, p q -> (m * p) (n * q)"),
    "aten.linalg_multi_dot": Rule(_chain, text="m k, ..., l n -> m n, all between frozen"),
    "aten.linalg_vecdot": Rule(
        _vector_product,
        text="... k, ... k -> ...",
        contracts=Contraction(("x", "y"), _vector_products, unrecorded="no operand is a weight"),
    ),
}
