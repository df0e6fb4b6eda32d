"""Whether something comes from transformers, which takes a second to import and is not needed for other modules."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.pytorch_utils import Conv1D


def is_config(value: object) -> TypeGuard[PreTrainedConfig]:
    """Whether a value is a configuration of transformers."""
    return _is("transformers", "PreTrainedConfig", value)


def is_pretrained(model: object) -> TypeGuard[PreTrainedModel]:
    """Whether a model is one of transformers."""
    return _is("transformers", "PreTrainedModel", model)


def is_conv1d(module: object) -> TypeGuard[Conv1D]:
    """Whether a module is transformers' linear layer with a transposed weight."""
    return _is("transformers.pytorch_utils", "Conv1D", module)


def _is(module: str, name: str, value: object) -> bool:
    imported: Any = sys.modules.get(module)  # nothing is of a class that nobody has imported
    return imported is not None and isinstance(value, getattr(imported, name))
