"""What a contraction multiplies and sums over, said once beside its rule.

What it costs, which dimensions of a weight take units in, which axes two activations are compared along, and which
calls calibration can record as linear maps: all of that is read from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from ..errors import UnsupportedCall
from ..graph import Arg, Op, Value
from .arguments import argument, tensor

Dims = tuple[str, ...]
"""A word for each dimension of a tensor: letters, separated by blanks where a dimension is made of several axes. The
words of dimensions that only broadcast start with a dot."""


@dataclass(frozen=True)
class Product:
    """A sum of products, as einsum writes it.

    Attributes:
        factors: the tensors that are multiplied; None stands for one that the operator keeps to itself.
        result: what is made, likewise.
    """

    factors: tuple[tuple[Value | None, Dims], ...]
    result: tuple[Value | None, Dims]

    def summed(self) -> set[str]:
        """Letters of factors that the result does not have."""
        return {letter for _, dims in self.factors for letter in _letters(dims)} - _letters(self.result[1])

    def multiplications(self) -> int:
        """The product of the extents of all letters, each of which must be a dimension of its own somewhere."""
        extents: dict[str, int] = {}
        for value, dims in self.factors:
            if value is not None:
                for word, extent in zip(dims, value.shape, strict=True):
                    extents[word] = max(extents.get(word, 0), extent)
        made, dims = self.result
        if made is not None:
            extents.update(zip(dims, made.shape, strict=True))
        return math.prod(extents.values())


Read = Callable[[Op], tuple[Product, ...]]


@dataclass(frozen=True)
class Contraction:
    """What the calls of one operator multiply and sum over.

    Attributes:
        arguments: names of the operator's arguments in order, as torch's own functions take them.
        read: the products of a call.
        weight: name of the argument that layers keep as their weight; empty where there is no such place.
        input: name of the argument that the weight is applied to.
        bias: name of the argument that is added to the products; empty where there is none.
        summed: the dimension of the weight that is summed over, where it is the same in every call.
        windows: whether the weight is applied to windows of the input.
        plain: the only values of some arguments at which the call is the linear map ``y = x W + bias``.
        unrecorded: why calibration does not record calls as linear maps; empty where it does.
        count: multiply-accumulates of a call; None where they are read off the products.
    """

    arguments: tuple[str, ...]
    read: Read
    weight: str = ""
    input: str = ""
    bias: str = ""
    summed: int | None = None
    windows: bool = False
    plain: Mapping[str, Arg] = field(default_factory=dict)
    unrecorded: str = ""
    count: Callable[[Op], int] | None = None

    def products(self, op: Op) -> tuple[Product, ...]:
        """The products of a call; none where the call is unusual, and so frozen."""
        try:
            return self.read(op)
        except Exception:  # as for the rule itself: whatever is raised, the call is one that there are no words for
            return ()

    def macs(self, op: Op) -> int:
        """Multiply-accumulates of a call; an unusual one, which nothing is cut from, is not counted."""
        try:
            if self.count is not None:
                return self.count(op)
            return sum(product.multiplications() for product in self.read(op))
        except Exception:  # as above
            return 0

    def weight_of(self, op: Op) -> Value | None:
        """What stands in the weight's place of a call, a parameter or not."""
        if not self.weight:
            return None
        found = argument(op, self.arguments.index(self.weight), self.weight)
        return found if isinstance(found, Value) else None

    def taken_in(self, op: Op, operand: Value | None = None) -> set[int]:
        """The dimensions of an operand that a call sums over; of the weight when None."""
        weight = self.weight_of(op)
        read = weight if operand is None else operand
        if read is None:
            return set()
        if self.summed is not None and read is weight:
            return {self.summed % max(len(read.shape), 1)}
        found: set[int] = set()
        for product in self.products(op):
            summed = product.summed()
            for value, dims in product.factors:
                if value is read:
                    found |= {dim for dim, word in enumerate(dims) if summed & set(word.split())}
        return found


def contraction(
    text: str,
    arguments: str,
    *,
    weight: str = "",
    plain: Mapping[str, Arg] | None = None,
    unrecorded: str = "",
) -> Contraction:
    """A contraction with one product, in the notation of its rule: ``"... k, n k, n? -> ... n"``.

    Operands that may be missing (``n?`` or ``(m n)?``) are added, the others are multiplied. A tensor of one dimension
    has only the letter that is summed over, as a vector has in numpy's ``matmul``.

    Args:
        text: the notation.
        arguments: names of the operator's arguments in order, separated by blanks.
        weight, plain, unrecorded: as in :class:`Contraction`.
    """
    notation = _Notation.parse(text, arguments)
    factors = notation.factors
    others = [name for name in factors if name != weight]
    at = [back for back, word in enumerate(reversed(factors.get(weight, ())), start=1) if word in notation.summed]
    return Contraction(
        notation.names, notation.read, weight, others[0], notation.added, -at[0] if len(at) == 1 else None,
        plain=plain or {}, unrecorded=unrecorded, count=notation.count,
    )  # fmt: skip


@dataclass(frozen=True)
class _Notation:
    """The notation of a rule with one product, taken apart.

    Attributes:
        names: names of the operator's arguments in order.
        factors: name of an operand that is multiplied -> its words.
        added: name of the operand that is added; empty where there is none.
        result: words of the result.
    """

    names: tuple[str, ...]
    factors: dict[str, Dims]
    added: str
    result: Dims

    @classmethod
    def parse(cls, text: str, arguments: str) -> _Notation:
        names = tuple(arguments.split())
        left, _, right = text.partition("->")
        specs = dict(zip(names, left.split(","), strict=False))
        factors = {name: tuple(spec.split()) for name, spec in specs.items() if not spec.strip().endswith("?")}
        added = [name for name in specs if name not in factors]
        return cls(names, factors, added[0] if added else "", tuple(right.split()))

    @cached_property
    def summed(self) -> frozenset[str]:
        """Letters of factors that the result does not have."""
        return frozenset(letter for dims in self.factors.values() for letter in dims) - {*self.result, "..."}

    @cached_property
    def _extents(self) -> tuple[tuple[int, str, int], ...]:
        """Where the extent of every summed letter is read: position and name of a factor, dimension from the end."""
        first = {
            letter: (self.names.index(name), name, dims.index(letter) - len(dims))
            for letter in self.summed
            for name, dims in reversed(self.factors.items())
            if letter in dims
        }
        return tuple(first.values())

    def read(self, op: Op) -> tuple[Product, ...]:
        """The product of a call."""
        factors = []
        for name, spec in self.factors.items():
            value = tensor(op, self.names.index(name), name)
            rank = len(value.shape)
            factors.append((value, spread(tuple(x for x in spec if rank > 1 or x in self.summed), rank)))
        present = {word for _, dims in factors for word in dims}
        kept = tuple(word for word in self.result if word == "..." or word in present)
        return (Product(tuple(factors), (op.result, spread(kept, len(op.result.shape)))),)

    def count(self, op: Op) -> int:
        """As the product says, read off at once: whoever looks for a plan counts a thousand times."""
        found = math.prod(op.result.shape)
        for position, name, dim in self._extents:
            found *= tensor(op, position, name).shape[dim]
        return found


@cache
def spread(spec: Dims, rank: int) -> Dims:
    """Words for all dimensions of a tensor, of a specification in which ``...`` stands for those that are left.

    Raises:
        UnsupportedCall: for a tensor of fewer dimensions, or of more where there is no ``...``.
    """
    named = len(spec) - spec.count("...")
    if rank < named or (rank > named and "..." not in spec):
        raise UnsupportedCall(f"{' '.join(spec)!r} has {named} dimensions, a tensor has {rank}")
    if "..." not in spec:
        return spec
    at = spec.index("...")
    return (*spec[:at], *(f".{back}" for back in range(rank - named, 0, -1)), *spec[at + 1 :])


def _letters(dims: Sequence[str]) -> set[str]:
    return {letter for word in dims for letter in word.split()}
