"""Whether a block passes on more than what it returns: through what it is given, or its own attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor)


class PassesOnMoreError(Exception):
    """A block's outputs are not all that it passes on, so that it cannot run by itself.

    Attributes:
        path: module path of the block.
    """

    def __init__(self, path: str, how: str) -> None:
        super().__init__(f"{path} {how}")
        self.path = path


class SideEffects:
    """What a call of a block may write to besides its outputs, as it was before the call.

    Args:
        block: the block.
        arguments: what it is about to be called with.
    """

    def __init__(self, block: nn.Module, arguments: Any) -> None:
        self._block, self._arguments = block, arguments
        self._before = set(self._seen())
        # A freed tensor's id() may be used again.
        self._alive = [value for _, _, value in self._tensors()]

    @property
    def found(self) -> bool:
        """Whether the call has put a tensor anywhere."""
        return any(entry not in self._before for entry in self._seen())

    def _seen(self) -> Iterator[tuple[int, str, int]]:
        for owner, name, value in self._tensors():
            yield owner, name, id(value)

    def _tensors(self) -> Iterator[tuple[int, str, Tensor]]:
        for at, leaf in enumerate(pytree.tree_leaves(self._arguments)):
            if isinstance(leaf, Tensor):
                yield 0, str(at), leaf
            elif not isinstance(leaf, PLAIN):
                yield from _held(leaf)
        for module in self._block.modules():
            yield from _held(module)


def _held(owner: Any, depth: int = 3) -> Iterator[tuple[int, str, Tensor]]:
    """The tensors among the attributes of an object, also in lists, dicts and objects; not the parameters of a
    module."""
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if name in ("_parameters", "_modules") or (isinstance(value, PLAIN) and not isinstance(value, Tensor)):
            continue
        for at, leaf in enumerate(pytree.tree_leaves(value)):
            if isinstance(leaf, Tensor):
                yield id(owner), f"{name} {at}", leaf
            elif depth and not isinstance(leaf, (*PLAIN, type, nn.Module)) and not callable(leaf):
                yield from _held(leaf, depth - 1)
