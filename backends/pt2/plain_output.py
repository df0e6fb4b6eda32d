"""What a module returns, arranged in Python's own classes alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


def plain_output(output: Any) -> Any:
    """The same values in dicts, ordered dicts, lists and tuples.

    An artifact can be loaded without the library that another class is from, such as ModelOutput or a named tuple: what
    it holds is in a dict or a tuple. torch's own immutable classes become those that they stand for.
    """
    if isinstance(output, Mapping):
        kind = OrderedDict if type(output) is OrderedDict else dict
        return kind((key, plain_output(value)) for key, value in output.items())
    if isinstance(output, list | tuple):
        return (list if isinstance(output, list) else tuple)(plain_output(value) for value in output)
    return output
