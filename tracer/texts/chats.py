"""Conversations in the forms that data sets have, as messages with a role and a content, which chat templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.errors import RequestError

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


def read_chat(value: Any, where: str, *, tools: Any = None, system: Any = None) -> Chat:
    """A conversation of a row, in either form.

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
        raise RequestError(f"{where} holds no conversation but {_kind(value)}", _CHAT_HINT)
    messages = [_message(one, f"{where}, message {number}") for number, one in enumerate(value, 1)]
    if isinstance(system, str) and system.strip() and not any(one["role"] == SYSTEM for one in messages):
        messages.insert(0, {"role": SYSTEM, "content": system})
    if not messages:
        raise RequestError(f"{where} holds a conversation without messages", _CHAT_HINT)
    if tools and not isinstance(tools, list):
        raise RequestError(f"{where}: tools is no list but {_kind(tools)}", "give a list of JSON schemas of functions")
    return Chat(tuple(messages), tuple(tools or ()))


def asked_and_answered(question: str, answer: str) -> Chat:
    """A conversation of one question and its answer."""
    return Chat(({"role": USER, "content": question}, {"role": ASSISTANT, "content": answer}))


def _message(given: Any, where: str) -> ChatMessage:
    if not isinstance(given, Mapping):
        raise RequestError(f"{where} is not an object but {_kind(given)}", _CHAT_HINT)
    # Tables give every message the fields that any of them has.
    found = {name: value for name, value in given.items() if value is not None}
    if "role" not in found and "from" in found:
        speaker = found.pop("from")
        if speaker not in SPEAKERS:
            raise RequestError(f"{where} is from {speaker!r}, who is none of {', '.join(SPEAKERS)}", _CHAT_HINT)
        found = {**found, "role": SPEAKERS[speaker], "content": found.pop("value", None)}
    if "role" not in found:
        raise RequestError(f"{where} has no role; its fields: {', '.join(map(str, given)) or 'none'}", _CHAT_HINT)
    if found["role"] not in ROLES:
        raise RequestError(f"{where}: the role {found['role']!r} is none of {', '.join(ROLES)}", _CHAT_HINT)
    calls = found.get("tool_calls")
    found["content"] = _content(found.get("content"), where, required=not calls)
    return {**found, "tool_calls": [_call(one) for one in calls]} if calls else found


def _content(value: Any, where: str, *, required: bool) -> str:
    """The text of a message, which may be given in parts."""
    if value is None and not required:
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
        kinds = [str(part.get("type")) for part in value if not isinstance(part.get("text"), str)]
        if kinds:
            raise RequestError(f"{where} holds {kinds[0]!r}, and only text is read", "leave out what is no text")
        return "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise RequestError(f"{where}: its content is not a string but {_kind(value)}", _CHAT_HINT)
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


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
