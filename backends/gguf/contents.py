"""What a GGUF file of a model holds: the tensors under llama.cpp's names, and the metadata that describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ...ir.errors import RequestError
from .architectures import OTHER_FORMAT, Architecture, setting
from .blocks import ModelTensors, fused, read_blocks
from .forms import WidthForm, choose_form, rotate_neighbours
from .rotation import FACTORS, read_rotation
from .vocabulary import fitting_name
from .written_file import Contents


@dataclass(frozen=True)
class Described:
    """A model as a file.

    Attributes:
        contents: what is written.
        form: how its widths are said.
        context: positions at which the file gives what the model gives.
        shortened: why that are fewer than the model has; "" when they are not.
    """

    contents: Contents
    form: WidthForm
    context: int
    shortened: str = ""


def describe(
    model: Any, row: Architecture, vocabulary: Mapping[str, Any], gguf: ModuleType, *, padded: bool, name: str
) -> Described:
    """The file of a model.

    Args:
        model: a ``PreTrainedModel`` with its weights, in float32 on the CPU.
        row: its architecture.
        vocabulary: the metadata of its tokenizer.
        gguf: the package.
        padded: whether zeros may take the place of what was removed.
        name: the model, for messages.

    Raises:
        RequestError: llama.cpp does not compute such a model.
    """
    config = model.config.get_text_config()
    blocks = read_blocks(model, row, gguf)
    size = next((widths.key for widths in blocks.widths if widths.heads), 0)
    rotation = read_rotation(model, row, size, name)
    form = choose_form(blocks, row, padded=padded, name=name)
    if row.permuted:
        rotate_neighbours(blocks, rotation.channels)
    context, shortened = _context(config, row, name)
    settings = {**_settings(config, row, blocks, form), **rotation.settings}
    metadata = {
        "general.type": "model",
        "general.name": fitting_name(str(name).rstrip("/").rpartition("/")[2], vocabulary),
        f"{form.name}.context_length": context,
        **{f"{form.name}.{key}": value for key, value in settings.items()},
        **vocabulary,
    }
    fused(blocks, row)
    tensors = dict(blocks.named())
    if rotation.factors is not None:
        tensors[FACTORS] = rotation.factors
    return Described(Contents(form.name, metadata, tensors), form, context, shortened)


def _settings(config: Any, row: Architecture, blocks: ModelTensors, form: WidthForm) -> dict[str, Any]:
    """Key without the architecture -> value: what the shapes say, then what the configuration says."""
    widths = blocks.widths
    size = next(one for one in widths if one.heads)

    def each(values: list[int]) -> int | list[int]:
        return values if form.per_layer else values[0]

    settings: dict[str, Any] = {
        "vocab_size": blocks.vocabulary,
        "embedding_length": blocks.width,
        "block_count": len(blocks.layers),
        "feed_forward_length": each([one.ffn for one in widths]),
        "attention.head_count": each([one.heads for one in widths]),
        "attention.head_count_kv": each([one.kv_heads for one in widths]),
        "attention.key_length": size.key,
        "attention.value_length": size.value,
    }
    for key, source in row.settings.items():
        if (value := setting(config, source)) is not None:
            settings[key] = value
    return settings


def _context(config: Any, row: Architecture, name: str) -> tuple[int, str]:
    """The positions that the file may be used with, and why these are fewer than the model has."""
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int):
        raise RequestError(f"{name} does not say how many positions it has", OTHER_FORMAT)
    window = getattr(config, "sliding_window", None)
    if "attention.sliding_window" in row.settings or not isinstance(window, int) or window >= longest:
        return longest, ""
    return window, f"llama.cpp's {row.name} has no sliding window, so the file has the {window} positions of one"
