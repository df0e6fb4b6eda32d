"""Conversations in the forms that data sets have, as messages with a role and a content, which chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import RequestError
from .files import VALUE_SHOWN, kind_of, listing

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

ROLES = (SYSTEM, "developer", USER, ASSISTANT, "tool")
"""Roles of OpenAI's messages."""

SPEAKERS = {
    "human": USER, "user": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT, "assistant": ASSISTANT, "model": ASSISTANT,
    "system": SYSTEM, "tool": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
"""Whom ShareGPT names in ``from`` -> role."""

_CHAT_HINT = (
    'write a conversation as [{"role": "user", "content": "..."}, ...], or as [{"from": "human", "value": "..."}, ...]'
)

ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Attributes:
        messages: in order; each has ``role`` and, unless it calls tools alone, ``content``.
        tools: functions that the model may call, as JSON schemas.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Any, ...] = ()


def read_chat(value: Any, where: str, *, tools: Any = None, system: Any = None) -> Chat | None:
    """A conversation of a row, in either form; None where nothing is said in it.

    Args:
        value: a list of messages, or such a list as JSON text.
        where: the row, for messages.
        tools: what the row says besides of tools.
        system: what it says besides as the system message.

    Raises:
        RequestError: it is none, a role is unknown, or a content is no text.
    """
    value, tools = _parsed(value), _parsed(tools)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        raise RequestError(f"{where} holds no conversation but {kind_of(value)}", _CHAT_HINT)
    silent = not any(one.get("content") or one.get("value") for one in value if isinstance(one, Mapping))
    messages = [_message(one, f"{where}, message {at}", nulls=silent) for at, one in enumerate(value, 1)]
    if tools and not isinstance(tools, list):
        raise RequestError(
            f"{where}: tools is no list but {kind_of(tools)}", "give a list of JSON schemas of functions"
        )
    if not any(one["content"].strip() or one.get("tool_calls") for one in messages):
        return None
    if isinstance(system, str) and system.strip() and not any(one["role"] == SYSTEM for one in messages):
        messages.insert(0, {"role": SYSTEM, "content": system})
    return Chat(tuple(messages), tuple(tools or ()))


def asked_and_answered(question: str, answer: str) -> Chat:
    """A conversation of one question and its answer."""
    return Chat(({"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}))


def _message(given: Any, where: str, *, nulls: bool) -> ChatMessage:
    """A message, with a role and a content.

    Args:
        given: in either form.
        where: its place, for messages.
        nulls: whether its content may be null.
    """
    if not isinstance(given, Mapping):
        raise RequestError(f"{where} is not an object but {kind_of(given)}", _CHAT_HINT)
    # Tables give every message the fields that any of them has.
    found = {name: value for name, value in given.items() if value is not None}
    said = "content"
    if "role" not in found and "from" in found:
        said, speaker = "value", found.pop("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise RequestError(f"{where} is from {_name(speaker)}, who is none of {', '.join(SPEAKERS)}", _CHAT_HINT)
        found = {**found, "role": SPEAKERS[speaker], "content": found.pop("value", None)}
    if "role" not in found:
        raise _absent(given, next((name for name in ("role", "from") if name in given), "role"), where)
    if not isinstance(found["role"], str) or found["role"] not in ROLES:
        raise RequestError(f"{where}: the role {_name(found['role'])} is none of {', '.join(ROLES)}", _CHAT_HINT)
    calls = found.get("tool_calls")
    if found.get("content") is None and not calls and not (nulls and said in given):
        raise _absent(given, said, where)
    found["content"] = _content(found.get("content"), said, where)
    return {**found, "tool_calls": [_call(one) for one in calls]} if calls else found


def _absent(given: Mapping[str, Any], name: str, where: str) -> RequestError:
    fault = f": its {name} is null" if name in given else f" has no {name}; its fields: {listing(given)}"
    return RequestError(f"{where}{fault}", _CHAT_HINT)


def _name(value: Any) -> str:
    """A role for messages: by itself where it is short, as names are."""
    return repr(value) if isinstance(value, str) and len(value) <= VALUE_SHOWN else kind_of(value)


def _content(value: Any, name: str, where: str) -> str:
    """The text of a message, which may be given in parts."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        kinds = [str(part.get("type")) for part in value if not isinstance(part.get("text"), str)]
        if kinds:
            raise RequestError(f"{where} holds {kinds[0]!r}, and only text is read", "leave out what is no text")
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise RequestError(f"{where}: its {name} is not a string but {kind_of(value)}", _CHAT_HINT)
    return value


def _call(given: Any) -> Any:
    """A call of a tool, with its arguments as data: OpenAI writes them as JSON text, and chat templates take data."""
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping):
        return given
    return {**given, "function": {**function, "arguments": _parsed(function.get("arguments"))}}


def _parsed(value: Any) -> Any:
    """The data of a JSON text that is a list or an object; anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
