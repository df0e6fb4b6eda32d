"""The ``generation_config.json`` of a model: what would make every use of the model fail is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ...ir.errors import RequestError, first_line
from ..json_object import check_schema, read_json_object
from ..quiet import quiet

GENERATION = "generation_config.json"

_CORRECT = "correct it, or remove it"

_TokenIds = int | list[int] | None


class GenerationFile(TypedDict, total=False):
    """Entries that transformers turns into tensors, or compares, without looking at their types."""

    bos_token_id: _TokenIds
    eos_token_id: _TokenIds
    pad_token_id: int | None
    decoder_start_token_id: _TokenIds
    forced_bos_token_id: int | None
    forced_eos_token_id: _TokenIds
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    bad_words_ids: list[list[int]] | None
    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    num_beams: int | None
    num_return_sequences: int | None
    top_k: int | None
    temperature: int | float | None
    top_p: int | float | None
    repetition_penalty: int | float | None
    do_sample: bool | None
    use_cache: bool | None


def check_generation(folder: Path) -> None:
    """Build what ``generate`` of transformers takes from the file, and let transformers look at it.

    Args:
        folder: the model directory; it may have no such file.

    Raises:
        RequestError: the file is damaged, has a value of another type, a token that no tensor can hold, or values that
            transformers refuses.
    """
    file = folder / GENERATION
    if not file.is_file():
        return
    raw = read_json_object(file, _CORRECT)  # it goes into what is written
    check_schema(raw, GenerationFile, file, _CORRECT)
    for name, value in raw.items():
        if name.endswith(("_token_id", "_tokens", "_ids")) and (large := _too_large(value)) is not None:
            raise RequestError(f"{file}: {name!r} holds {large}, which is no token", _CORRECT)
    try:
        from transformers import GenerationConfig

        with quiet():  # of sampling values beside greedy decoding, which many models have
            GenerationConfig.from_dict(raw).validate()
    except Exception as error:  # of any class: wrong keys of its parts give a TypeError
        raise RequestError(f"{file} is refused by transformers: {first_line(error)}", _CORRECT) from error


def _too_large(value: Any) -> int | None:
    """The first integer that does not fit into 64 bits."""
    if isinstance(value, list):
        return next((found for item in value if (found := _too_large(item)) is not None), None)
    return value if isinstance(value, int) and not -(2**63) <= value < 2**63 else None
