"""What stands where part of a layer was taken out, as data and as code that needs no architecture."""

from __future__ import annotations

from typing import Any


class Absence:
    """The forward of a module that was taken out; mixed into a ``torch.nn.Module``.

    It returns zeros of the shape of the first tensor it is given, so that nothing is added to the stream, in the
    structure that the module itself returned. A layer of the cache that the module filled is filled on, one number per
    position, because models count the positions in it.

    Attributes:
        absence: ``outputs``, the length of the tuple that is returned, 0 for a bare tensor; ``cache``, the layer of the
            cache that is filled, or None.
    """

    def __init__(self, absence: dict[str, Any]) -> None:
        super().__init__()
        self.absence = absence

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros ``[..., width]`` for the first tensor ``[..., width]``."""
        given = [*args, *kwargs.values()]
        hidden = next(value for value in given if hasattr(value, "new_zeros"))
        cache = next((value for value in given if hasattr(value, "get_seq_length")), None)
        if cache is not None and self.absence["cache"] is not None:
            positions = hidden[:, None, :, :1] * 0
            cache.update(positions, positions, self.absence["cache"])
        others = (None,) * (self.absence["outputs"] - 1)
        return (hidden * 0, *others) if self.absence["outputs"] else hidden * 0


def absences(model: Any) -> dict[str, dict[str, Any]]:
    """Module path -> what stands there, for every module of a ``torch.nn.Module`` that was taken out."""
    found = ((path, getattr(module, "absence", None)) for path, module in model.named_modules())
    return {path: absence for path, absence in found if isinstance(absence, dict)}
