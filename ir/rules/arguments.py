"""Reading and replacing the arguments of a call; one that is not as it should be is an unsupported call."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UnsupportedCall
from ..graph import Arg, Op, Value


def with_args(op: Op, args: Mapping[int, Arg], kwargs: Mapping[str, Arg] | None = None) -> Op:
    """The same operator with some positional arguments replaced."""
    positional = list(op.args)
    for position, arg in args.items():
        positional[position] = arg
    return Op(op.target, tuple(positional), {**op.kwargs, **(kwargs or {})}, op.results, op.source)


def argument(op: Op, position: int, name: str, default: Arg = None) -> Arg:
    """An argument, given by position or by name."""
    return op.args[position] if position < len(op.args) else op.kwargs.get(name, default)


def tensor(op: Op, position: int, name: str = "") -> Value:
    """An operand that must be a tensor.

    Raises:
        UnsupportedCall: when it is none.
    """
    value = argument(op, position, name)
    if not isinstance(value, Value):
        raise UnsupportedCall(f"{op.target} argument {name or position} is no tensor")
    return value


def integer(op: Op, position: int, name: str, default: int = 0) -> int:
    """An argument that must be an integer.

    Raises:
        UnsupportedCall: when it is none.
    """
    value = argument(op, position, name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnsupportedCall(f"{op.target} argument {name} is no integer")
    return value


def integers(op: Op, position: int, name: str) -> tuple[int, ...]:
    """An argument that must be a list of integers.

    Raises:
        UnsupportedCall: when it is none.
    """
    value = argument(op, position, name)
    found = tuple(item for item in value if isinstance(item, int)) if isinstance(value, tuple) else ()
    if not isinstance(value, tuple) or len(found) < len(value):
        raise UnsupportedCall(f"{op.target} argument {name} is no list of integers")
    return found


def place(op: Op, position: int, name: str, extent: int, default: int = 0) -> int:
    """An argument that names one of ``extent`` dimensions, or positions of a dimension; negative ones count from the
    end.

    Returns:
        ``0 <= place < extent``.

    Raises:
        UnsupportedCall: when it is no integer or names none of them.
    """
    return wrapped(op, integer(op, position, name, default), name, extent)


def wrapped(op: Op, value: int, name: str, extent: int) -> int:
    """As :func:`place`, of a value that was read already."""
    if not -extent <= value < extent:
        raise UnsupportedCall(f"{op.target} argument {name} is {value}, of {extent}")
    return value % extent
