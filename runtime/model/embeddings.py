"""The matrix of a language model that holds a row for every token."""

from __future__ import annotations

from typing import Any

from torch import nn


def input_embeddings(model: Any) -> nn.Module | None:
    """The module that embeds token ids; None if there is none.

    A model that brings its own code may not say which one it is. Then it is the first ``Embedding`` with as many rows
    as its configuration counts tokens.
    """
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        config = getattr(model, "config", None)
        count = getattr(config, "vocab_size", None)
        tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
        return next((table for table in tables if table.num_embeddings == count), None)
    return found


def vocabulary(model: Any) -> int:
    """Number of tokens that a language model embeds."""
    held: Any = input_embeddings(model)
    return int(held.weight.shape[0]) if held is not None else int(model.config.get_text_config().vocab_size)
