"""How to load what was written, as Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...backends.huggingface.save import SavedModel


def loading(saved: SavedModel) -> list[str]:
    """Lines of Python that load an artifact."""
    from ...backends.huggingface.model_card import loading_code

    return loading_code(saved.checks, str(saved.path), code=bool(saved.code))
