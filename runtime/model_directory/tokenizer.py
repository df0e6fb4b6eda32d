"""What the files of a tokenizer may say: values and tokens, and no name of a file.

transformers passes every entry of ``tokenizer_config.json`` to the class that it names, and every entry of
``special_tokens_map.json`` too. Some of these classes open what they are given as a vocabulary or as merges. So an
entry has a name that is known and a value of its type, or a value that can be no path of anything here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from typing_extensions import TypedDict

from ...ir.errors import RequestError, first_line, guarded
from ..json_object import check_schema, read_json_object

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENS_MAP = "special_tokens_map.json"
TOKENIZER_JSON = "tokenizer.json"

SUBFOLDERS = ("question_encoder_tokenizer", "generator_tokenizer")
"""Folders of the two tokenizers of a retrieval model."""

TOKENIZER_AGAIN = "copy or download the tokenizer again"

LEFT_BEHIND = ("tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file")
"""Where files were when an older transformers saved the tokenizer. It takes those of the directory instead; versions
before 5 do not, so they are not in a copy."""

OPENED = ("vocab", "merges", "tokenizer", "post_processor", "generator", "question_encoder", "source_spm", "target_spm")
"""Entries whose values are opened, or are objects that no file can hold."""

OPENED_ENDINGS = ("_file", "_files", "_path", "_paths", "_dir", "_object", "_vocab", "_kwargs")


class _AddedToken(TypedDict, total=False):
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


Token = str | _AddedToken | None
TokenList = list[str | _AddedToken] | dict[str, Token] | None


class _SentencePiece(TypedDict, total=False):
    """What ``SentencePieceProcessor`` is told besides its model."""

    enable_sampling: bool
    nbest_size: int
    alpha: float
    add_bos: bool
    add_eos: bool
    reverse: bool


class _Mecab(TypedDict, total=False):
    do_lower_case: bool
    normalize_text: bool
    never_split: list[str] | None
    mecab_dic: Literal["ipadic", "unidic_lite", "unidic"] | None


class _Template(TypedDict):
    name: str
    template: str


class TokenizerConfig(TypedDict, total=False):
    """The entries of ``tokenizer_config.json`` that are texts, lists or objects, and those that must be numbers.
    TokenList are not among them: an entry ``*_token`` is one whatever comes before it."""

    added_tokens_decoder: dict[str, _AddedToken]
    additional_special_tokens: TokenList
    extra_special_tokens: TokenList
    model_specific_special_tokens: dict[str, Token] | None
    chat_control_tokens: list[str] | None
    auto_map: dict[str, Any] | list[str | None] | None
    backend: str | None
    chat_template: str | list[_Template] | dict[str, str] | None
    response_template: Any
    response_schema: Any
    device_map: str | None
    dtype: str | None
    torch_dtype: str | None
    errors: str | None
    feature_extractor_type: str | None
    files_loaded: list[str] | None
    id2lang: dict[str, str] | None
    init_inputs: list[Any]
    lang2id: dict[str, int] | None
    lang_codes: str | None
    language: str | None
    language_codes: str | None
    langs: list[str] | None
    mask_token_sent: Token
    mecab_kwargs: _Mecab | None
    model_input_names: list[str] | None
    model_max_length: int | float | None
    max_len: int | float | None
    name_or_path: str | None
    never_split: list[str] | None
    pad_side: str | None
    pad_token_side: str | None
    padding: str | bool | None
    padding_side: str | None
    phonemizer_backend: str | None
    phonemizer_lang: str | None
    processor_class: str | None
    replace_word_delimiter_char: str | None
    return_tensors: str | None
    sp_model_kwargs: _SentencePiece | None
    source_lang: str | None
    special_tokens_pattern: str | None
    src_lang: str | None
    subword_tokenizer_type: str | None
    tags_dict: dict[str, int] | None
    target_lang: str | None
    task: str | None
    tgt_lang: str | None
    token_type_ids_pattern: str | None
    tokenizer_class: str | None
    tokenizer_type: str | None
    transformers_version: str | None
    truncation: str | bool | None
    truncation_side: str | None
    truncation_strategy: str | None
    word_tokenizer_type: str | None
    wordpieces_prefix: str | None


CLOSED = {"sp_model_kwargs": _SentencePiece, "mecab_kwargs": _Mecab}
"""Entries that go to another library, which may open what they name: nothing but these."""


class _Words(TypedDict, total=False):
    vocab: dict[str, Any] | list[Any]
    merges: list[Any]


class _TokenizerJson(TypedDict, total=False):
    """Of ``tokenizer.json`` what transformers hands to a class that takes a path there too."""

    model: _Words


def check_tokenizer(folder: Path, *, own_code: bool) -> None:
    """Refuse a tokenizer that may read a file outside of its directory, or one that nobody has checked.

    Args:
        folder: the model directory; it may have no tokenizer.
        own_code: whether the user trusts the code of the directory. A tokenizer that is such code takes what it likes.

    Raises:
        RequestError: a file of the tokenizer is damaged, or has an entry that may be the name of a file. The message
            names it.
    """
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        if (file := place / TOKENIZER_CONFIG).is_file():
            raw = read_json_object(file, TOKENIZER_AGAIN)
            check_schema(raw, TokenizerConfig, file, TOKENIZER_AGAIN)
            if not (own_code and raw.get("auto_map")):
                _check_entries(raw, file)
        if (file := place / TOKENS_MAP).is_file():
            _check_special_tokens(read_json_object(file, TOKENIZER_AGAIN), file)
        if (file := place / TOKENIZER_JSON).is_file():
            check_schema(read_json_object(file, TOKENIZER_AGAIN), _TokenizerJson, file, TOKENIZER_AGAIN)


def read_tokenizer(folder: Path, hint: str, **allowed: Any) -> Any:
    """The tokenizer of a directory that has been checked.

    Args:
        folder: the model directory.
        hint: what to do where it has none.
        allowed: what transformers is told of its code.

    Raises:
        RequestError: it has none, or none that can be read.
    """
    from transformers import AutoTokenizer

    return guarded(
        lambda: AutoTokenizer.from_pretrained(folder, **allowed),
        RequestError, f"{folder} has no readable tokenizer", hint, partial(_why, folder),
    )  # fmt: skip


def _why(folder: Path, error: BaseException) -> str:
    """The reason of transformers; ours where its first line begins a list of what there might have been."""
    line = first_line(error)
    listed = line.endswith(",") and not (folder / TOKENIZER_JSON).is_file()
    return f"there is no {TOKENIZER_JSON} in it, and no other file that makes one" if listed else line


def without_paths(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a tokenizer or of a processor as it may be copied, and the entries that are not in it:
    those that say where a file was on another machine."""
    gone = [name for name, value in raw.items() if _leads_away(name, value)]
    return {name: value for name, value in raw.items() if name not in gone}, gone


def _check_entries(raw: Mapping[str, Any], file: Path) -> None:
    for name, value in raw.items():
        if name in LEFT_BEHIND:
            allowed = isinstance(value, str | None)
        elif name in CLOSED:
            allowed = set(value or ()) <= set(CLOSED[name].__annotations__)
        elif name in TokenizerConfig.__annotations__:
            allowed = name != "init_inputs" or not value
        elif name in OPENED or name.endswith(OPENED_ENDINGS):
            allowed = value is None
        else:
            allowed = _is_plain(value) or _is_token(name, value, file) or _opens_nothing(value)
        if not allowed:
            raise RequestError(
                f"{file} has {name!r}, which may be the name of a file",
                f"take {name} out of it: the files of a tokenizer are found by their own names",
            )


def _check_special_tokens(raw: Mapping[str, Any], file: Path) -> None:
    for name, value in raw.items():
        if not _is_token(name, value, file):
            raise RequestError(f"{file} has {name!r}, which is no token", f"take {name} out of it")


def _is_token(name: str, value: Any, file: Path) -> bool:
    """Whether an entry has the name of a token, or of tokens.

    Raises:
        RequestError: it has, and its value is none.
    """
    if not name.endswith(("_token", "_tokens")):
        return False
    check_schema({name: value}, dict[str, Token | TokenList], file, TOKENIZER_AGAIN)
    return True


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, or numbers: nothing that can be a path."""
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(item, int | float | None) for item in numbers)


def _opens_nothing(value: Any) -> bool:
    """Whether a value is a text, or a list of texts, that is neither the path of something here nor an address."""
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) and "://" not in text and not _exists(text) for text in texts)


def _exists(text: str) -> bool:
    try:
        return os.path.lexists(text) or os.path.lexists(os.path.expanduser(text))
    except (OSError, ValueError):  # too long for a name, or with a character that no path has
        return False


def _leads_away(name: str, value: Any) -> bool:
    if not isinstance(value, str) or not name.endswith(("_file", "_path", "_dir")) or name == "name_or_path":
        return False
    return name in LEFT_BEHIND or any(_is_elsewhere(kind(value)) for kind in (PurePosixPath, PureWindowsPath))


def _is_elsewhere(path: PurePosixPath | PureWindowsPath) -> bool:
    return path.is_absolute() or ".." in path.parts
