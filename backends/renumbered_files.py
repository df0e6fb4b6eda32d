"""The files of a model directory that hold tokens or their ids, without tokens that went."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

from ..ir.errors import FxpruneError
from ..runtime.json_object import read_json_object
from ..runtime.model_directory.generation import GENERATION
from ..runtime.model_directory.tokenizer import TOKENIZER_AGAIN, TOKENIZER_CONFIG, TOKENIZER_JSON
from ..runtime.vocabulary.configured import renumbered_data
from ..runtime.vocabulary.kept import Renumbering
from ..runtime.vocabulary.tokens import Tokens

OTHER_FORMS = (
    "vocab*", "*_vocab.json", "merges.txt", "*.model", "*.model.v*", "*.tiktoken", "*.spm", "*.bpe", "*.vocab",
)  # fmt: skip
"""Files that hold the same tokens as ``tokenizer.json`` once more, in other formats."""

WITH_IDS = (GENERATION, "processor_config.json", "preprocessor_config.json")

ADDED_TOKENS = "added_tokens.json"

ADDED_DECODER = "added_tokens_decoder"


def renumber_files(folder: Path, tokenizer: Any, renumbering: Renumbering) -> list[str]:
    """Rewrite the files in a directory that were copied from a model with all its tokens.

    Args:
        folder: the directory.
        tokenizer: of transformers, with all tokens. Where the directory has no ``tokenizer.json``, it says what is in
            there.
        renumbering: of the tokens.

    Returns:
        What was left out, in words.
    """
    file = folder / TOKENIZER_JSON
    data = (
        read_json_object(file, TOKENIZER_AGAIN) if file.is_file() else json.loads(tokenizer.backend_tokenizer.to_str())
    )
    _write(file, Tokens.read(data).cut(renumbering.new))
    if (file := folder / TOKENIZER_CONFIG).is_file():
        raw = renumbered_data(read_json_object(file, TOKENIZER_AGAIN), renumbering.new)
        if isinstance(decoder := raw.get(ADDED_DECODER), dict):
            raw[ADDED_DECODER] = {str(renumbering.new(int(number))): token for number, token in decoder.items()}
        _write(file, raw)
    if (file := folder / ADDED_TOKENS).is_file():
        added = read_json_object(file, TOKENIZER_AGAIN)
        _write(file, {token: renumbering.new(number) for token, number in added.items()})
    for file in (folder / name for name in WITH_IDS):
        if file.is_file():
            _write(file, renumbered_data(read_json_object(file, TOKENIZER_AGAIN), renumbering.new))
    others = [path for path in sorted(folder.iterdir()) if any(fnmatch.fnmatchcase(path.name, p) for p in OTHER_FORMS)]
    for path in others:
        path.unlink()
    return [f"{path.name}, which has all tokens; {TOKENIZER_JSON} has those that stayed" for path in others]


def check_renumbered(before: Any, after: Any, renumbering: Renumbering) -> None:
    """Check that a tokenizer has the tokens that stayed, under their new ids.

    Args:
        before, after: tokenizers of transformers, with all tokens, and as it was written.
        renumbering: of the tokens.

    Raises:
        FxpruneError: it has others, or other ids.
    """
    wanted = {
        token: now for token, number in before.get_vocab().items() if (now := renumbering.new(number)) is not None
    }
    got = after.get_vocab()
    odd = next((token for token in sorted({**wanted, **got}) if wanted.get(token) != got.get(token)), None)
    if odd is not None:
        raise FxpruneError(
            f"{type(after).__name__} reads the smaller tokenizer with the id {got.get(odd)} for {odd!r}, not "
            f"{wanted.get(odd)}",
            "leave the pass vocabulary out for this model, and please report it",
        )


def _write(file: Path, data: Any) -> None:
    file.unlink(missing_ok=True)  # it may be a link to the source
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
