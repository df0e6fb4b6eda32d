"""Replacements for removed parts of layers, as data and as code for any architecture."""

from __future__ import annotations

from typing import Any


class Absence:
    """The forward that replaces a removed module; a mixin for ``torch.nn.Module``.

    It returns zeros with the shape of its first input tensor, so that it adds nothing to the residual stream. The
    structure of the outputs is that of the removed module. If the module filled a layer of the cache, this still adds
    one number per position, because models count the positions in the cache.

    Attributes:
        absence: ``outputs``: length of the returned tuple, 0 for a single tensor; ``cache``: index of the cache layer
            to fill, or None.
    """

    def __init__(self, absence: dict[str, Any]) -> None:
        super().__init__()
        self.absence = absence

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros ``[..., width]`` for the first input tensor ``[..., width]``."""
        given = [*args, *kwargs.values()]
        hidden = next(value for value in given if hasattr(value, "new_zeros"))
        cache = next((value for value in given if hasattr(value, "get_seq_length")), None)
        if cache is not None and self.absence["cache"] is not None:
            positions = hidden[:, None, :, :1] * 0
            cache.update(positions, positions, self.absence["cache"])
        others = (None,) * (self.absence["outputs"] - 1)
        return (hidden * 0, *others) if self.absence["outputs"] else hidden * 0


def absences(model: Any) -> dict[str, dict[str, Any]]:
    """Module path -> description of the replacement, for every removed module of a ``torch.nn.Module``."""
    found = ((path, getattr(module, "absence", None)) for path, module in model.named_modules())
    return {path: absence for path, absence in found if isinstance(absence, dict)}
