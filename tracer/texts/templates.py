"""Conversations as texts, by the chat template of a tokenizer, and which parts of them are answers.

A chat template is a program of the sandbox of Jinja: it reads the messages and writes text, and can do nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import RequestError, class_and_first_line, ends_program
from .chats import ASSISTANT, Chat, ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextSpan = tuple[int, int]
"""Characters of a text: the first, and the one behind the last."""

_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where transformers looks for a template, in this order."""

_SYNTAX_ERROR = "TemplateSyntaxError"
"""The class of what Jinja raises for a template that it cannot read."""

_GENERATION = "generation %}"
"""How a template marks what the model writes."""


@dataclass(frozen=True)
class Rendered:
    """A text with the parts that are answers.

    Attributes:
        text: the text.
        answers: spans, ascending; None where the text has no parts.
    """

    text: str
    answers: tuple[TextSpan, ...] | None = None


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def there(self) -> bool:
        """Whether the tokenizer has one."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def render(self, chat: Chat, where: str) -> Rendered:
        """A conversation as text.

        An answer is what the template marks with ``{% generation %}``. Where it marks nothing, it is what a message of
        the assistant adds behind the prompt for it: its text, and the token that ends the turn.

        Args:
            chat: the conversation.
            where: its row, for messages.

        Raises:
            RequestError: there is no template; it refuses the conversation; or it writes an earlier message in another
                way when others follow, so that the answer is not to be found.
        """
        if not self.there:
            raise RequestError(
                f"{where} is a conversation, and the tokenizer of the model has no chat template",
                "put a chat_template.jinja beside tokenizer.json; or give rows with `text`, or with `prompt` and "
                "`completion`",
            )
        if _GENERATION in self._source(chat):
            return self._marked(chat, where)
        text = self._text(chat, chat.messages, where)
        answers = [
            self._answer(chat, at, text, where)
            for at, message in enumerate(chat.messages)
            if message["role"] == ASSISTANT
        ]
        return Rendered(text, tuple(span for span in answers if span[1] > span[0]))

    def _source(self, chat: Chat) -> str:
        return str(self._tokenizer.get_chat_template(tools=list(chat.tools) or None))

    def _marked(self, chat: Chat, where: str) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        def render() -> Rendered:
            texts, spans = render_jinja_template(
                conversations=[list(chat.messages)],
                tools=list(chat.tools) or None,
                chat_template=self._source(chat),
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
            return Rendered(texts[0], tuple((int(start), int(end)) for start, end in spans[0]))

        return self._guarded(render, where)

    def _text(self, chat: Chat, messages: Sequence[ChatMessage], where: str, *, prompt: bool = False) -> str:
        def render() -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=list(chat.tools) or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )

        found: str = self._guarded(render, where)
        return found

    def _answer(self, chat: Chat, at: int, text: str, where: str) -> TextSpan:
        """Where the answer of message ``at`` is in the text of the whole conversation."""
        content = str(chat.messages[at]["content"]).strip()
        prompt, plain = (
            self._text(chat, chat.messages[:at], where, prompt=asks) if at else "" for asks in (True, False)
        )
        if prompt != plain and text.startswith(prompt):
            start = len(prompt)
        elif text.startswith(plain):  # the template writes no prompt: the head of the turn is none of the answer
            start = max(len(plain), text.find(content, len(plain)))
        else:
            raise self._lost(at, where)
        whole = self._text(chat, chat.messages[: at + 1], where)
        if text.startswith(whole):
            return start, self._turn_end(text, len(whole))
        found = text.find(content, start) if content else -1
        if found < 0:
            raise self._lost(at, where)
        return start, self._behind_token(text, found + len(content))

    def _turn_end(self, text: str, end: int) -> int:
        """The end of a turn, without the white space that follows the token that ends it."""
        bare = len(text[:end].rstrip())
        return bare if text[:bare].endswith(self._tokens) else end

    def _behind_token(self, text: str, end: int) -> int:
        """The same, where only the end of the content is known."""
        rest = text[end:].lstrip()
        token = next((one for one in self._tokens if rest.startswith(one)), "")
        return len(text) - len(rest) + len(token) if token else end

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        """Tokens that no text is split into, such as the one that ends a turn; longer ones first."""
        known = {str(token) for token in self._tokenizer.get_added_vocab()} | set(self._tokenizer.all_special_tokens)
        return tuple(sorted(filter(str.strip, known), key=lambda token: (-len(token), token)))

    def _lost(self, at: int, where: str) -> RequestError:
        return RequestError(
            f"{where}: the chat template writes what stands before message {at + 1} in another way when it follows, so "
            "that its answer is not to be found",
            "mark the answers in the template with {% generation %} and {% endgeneration %}",
        )

    def _broken(self, error: BaseException) -> RequestError:
        """What to raise where the template itself is none, whatever the conversation."""
        folder = Path(str(getattr(self._tokenizer, "name_or_path", "")))
        file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
        place, line = file or "the tokenizer of the model", getattr(error, "lineno", 1)
        return RequestError(
            f"the chat template in {place} is broken: {class_and_first_line(error)} (line {line} of the template)",
            "correct it, or copy it again; rows with `text` need none",
        )

    def _guarded(self, work: Any, where: str) -> Any:
        """Run the template; what it raises itself, such as that roles have to alternate, comes as errors of Jinja."""
        try:
            return work()
        except (RequestError, MemoryError):
            raise
        except BaseException as error:
            if ends_program(error):
                raise
            if any(kind.__name__ == _SYNTAX_ERROR for kind in type(error).__mro__):
                raise self._broken(error) from error
            raise RequestError(
                f"{where}: the chat template of the model refuses the conversation: {class_and_first_line(error)}",
                "correct the row: some templates take no system message, or ask that user and assistant alternate",
            ) from error
