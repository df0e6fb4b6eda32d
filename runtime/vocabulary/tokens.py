"""All tokens of a tokenizer: those of its model, and those that were added beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...ir.errors import RequestError
from .models import TokenModel, token_model

NewId = Callable[[int], int | None]
"""An id -> the id that the token has now; None for one that went."""

_WRITE_FAST_FILE = (
    "give the model a tokenizer.json of the library tokenizers; AutoTokenizer writes one where it can convert"
)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer.

    Attributes:
        data: as ``tokenizer.json`` has it.
        model: how words become tokens.
    """

    data: Mapping[str, Any]
    model: TokenModel

    @classmethod
    def of(cls, tokenizer: Any) -> Tokens:
        """Those of a tokenizer of transformers.

        Raises:
            RequestError: it has none of the library ``tokenizers`` in it, or one of a kind that is not known.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RequestError(
                f"vocabulary: {type(tokenizer).__name__} is written in Python, and its code numbers its tokens",
                _WRITE_FAST_FILE,
            )
        return cls.read(json.loads(backend.to_str()))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Tokens:
        """Those of a ``tokenizer.json``.

        Raises:
            RequestError: its model is of a kind that is not known.
        """
        steps = (data.get(name) for name in ("normalizer", "pre_tokenizer", "decoder"))
        return cls(
            data, token_model(data["model"], byte_level="ByteLevel" in {kind for s in steps for kind in _kinds(s)})
        )

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Id -> token."""
        added = {token["id"]: token["content"] for token in self.data.get("added_tokens", ())}
        return {number: token for token, number in self.model.ids.items()} | added

    @cached_property
    def always(self) -> frozenset[int]:
        """The ids that stay whatever is asked for: special and added tokens, bytes, and what text is written with that
        has no longer tokens."""
        added = {token["id"] for token in self.data.get("added_tokens", ())}
        around = set(_ids_around(self.data.get("post_processor")))
        own = {self.model.ids[token] for token in self.model.always()}
        return frozenset(self.with_parts(added | around | own))

    def with_parts(self, ids: Iterable[int]) -> set[int]:
        """Ids, and those of the tokens that they are made from."""
        found = set(ids)
        for number in list(found):
            token = self.names.get(number)
            if token is not None and self.model.ids.get(token) == number:
                found |= {self.model.ids[part] for part in self.model.parts(token)}
        return found

    def text(self, number: int) -> bytes:
        """What a token stands for, in UTF-8."""
        return self.model.text(self.names[number])

    def cut(self, new: NewId) -> dict[str, Any]:
        """The data of the tokenizer without the tokens that went.

        Raises:
            RequestError: it counts its tokens in an order that cannot be kept.
        """
        ids = {token: now for token, number in self.model.ids.items() if (now := new(number)) is not None}
        ids = dict(sorted(ids.items(), key=lambda item: item[1]))
        added = [{**token, "id": new(token["id"])} for token in self.data.get("added_tokens", ())]
        found = {**self.data, "model": self.model.cut(ids), "added_tokens": added}
        found["post_processor"] = _renumbered(self.data.get("post_processor"), new)
        if isinstance(padding := self.data.get("padding"), dict):
            found["padding"] = {**padding, "pad_id": new(padding["pad_id"])}
        return found


def _kinds(step: Any) -> Iterator[str]:
    """The kinds of a step and of those inside it."""
    if isinstance(step, dict):
        yield str(step.get("type"))
        for inner in step.values():
            for one in inner if isinstance(inner, list) else ():
                yield from _kinds(one)


def _ids_around(step: Any) -> Iterator[int]:
    """The ids that a step puts around a text: ``[text, id]`` under ``cls`` or ``sep``, lists under ``ids``."""
    if isinstance(step, dict):
        for key, value in step.items():
            if key in ("cls", "sep") and isinstance(value, list | tuple):
                yield value[1]
            elif key == "ids":
                yield from value
            else:
                yield from _ids_around(value)
    elif isinstance(step, list):
        for inner in step:
            yield from _ids_around(inner)


def _renumbered(step: Any, new: NewId) -> Any:
    if isinstance(step, list):
        return [_renumbered(inner, new) for inner in step]
    if not isinstance(step, dict):
        return step
    found: dict[str, Any] = {}
    for key, value in step.items():
        if key in ("cls", "sep") and isinstance(value, list | tuple):
            found[key] = [value[0], new(value[1])]
        else:
            found[key] = [new(number) for number in value] if key == "ids" else _renumbered(value, new)
    return found
