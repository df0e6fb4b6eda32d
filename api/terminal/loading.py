"""How to load what was written, as Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

TOKENIZERS = ("tokenizer*", "vocab*", "*.model*", "*.tiktoken", "merges.txt")
"""Files of which a directory with a tokenizer has one."""

if TYPE_CHECKING:
    from ...backends.huggingface.save import SavedModel


def loading(saved: SavedModel) -> list[str]:
    """Lines of Python that load an artifact."""
    from ...backends.huggingface.model_card import loading_code

    return loading_code(saved.checks, str(saved.path), code=bool(saved.code))


def tokenizer_left_out(saved: SavedModel, call: str) -> list[str]:
    """A line where a model that reads tokens has no tokenizer beside it.

    Args:
        saved: the artifact.
        call: the inputs of the model, with their shapes.
    """
    if "input_ids" not in call or any(any(saved.path.glob(pattern)) for pattern in TOKENIZERS):
        return []
    return ["no tokenizer in it, since there is none beside the model: copy that of the model there to use texts"]
