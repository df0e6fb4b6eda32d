"""What Python prints of a result."""

from __future__ import annotations


class InOneLine:
    """A result with a ``repr`` of one line: its fields hold arrays, modules and whole graphs."""

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary}>"


def sizes(parameters: tuple[int, int]) -> str:
    """Elements of all parameters before and after."""
    before, after = parameters
    return f"{before:,} parameters to {after:,} ({after / before if before else 1:.2%} kept)"
