"""A model as lm-eval asks it. Imported only where tasks are measured, since lm-eval is an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lm_eval.api.model import TemplateLM

from ...ir.errors import RequestError
from ...passes.model.forward import logits_of
from ...runtime.reporting import counted
from ...runtime.streaming.block_runner import BlockRunner
from ..runnable import Runnable

AT_ONCE = 8
"""Texts in one forward pass."""

TokenRequest = tuple[Any, list[int], list[int]]
"""What lm-eval asks: its own key, the tokens of a context, and those of a continuation."""


class MeasuredModel(TemplateLM):
    """A causal language model of any format, for tasks that compare probabilities of texts.

    Args:
        runnable: the model.
        tokenizer: its tokenizer.
        context: tokens that it can read.
    """

    def __init__(self, runnable: Runnable, tokenizer: Any, context: int) -> None:
        super().__init__()
        self._logits, self.tokenizer, self._context = runnable.logits, tokenizer, context

    @property
    def eot_token_id(self) -> int:
        """The token that stands before an empty context: the end of a text, else its begin."""
        found = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, 0)
        return next(int(token) for token in found if token is not None)

    @property
    def prefix_token_id(self) -> int:
        """The same the other way around, as lm-eval's own class for transformers has it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; with the special tokens of the tokenizer, unless the text begins with one."""
        begin = self.tokenizer.decode(self.prefix_token_id)
        special = not string.startswith(begin) if add_special_tokens is None else add_special_tokens
        found: list[int] = self.tokenizer.encode(string, add_special_tokens=special, verbose=False)
        return found

    def _loglikelihood_tokens(self, requests: Sequence[TokenRequest], **_: Any) -> list[tuple[float, bool]]:
        """Of every continuation: its logarithmic probability, and whether each of its tokens is the most probable."""
        order = sorted(range(len(requests)), key=lambda at: -len(requests[at][1]) - len(requests[at][2]))
        parts = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
        feeds = [partial(self._scored, [requests[at][1:] for at in part]) for part in parts]
        if isinstance(self._logits, BlockRunner):
            found = self._logits.run(feeds)
        else:
            found = [feed(self._logits) for feed in counted(feeds, "batches")]
        answers = dict(zip(order, [one for part in found for one in part], strict=True))
        return [answers[at] for at in range(len(requests))]

    def _scored(
        self, pairs: Sequence[tuple[list[int], list[int]]], model: Callable[..., Any]
    ) -> list[tuple[float, bool]]:
        """What is behind a token has no effect on it, so that shorter texts are filled up on the right."""
        texts = [[*context, *wanted][-self._context - 1 :] for context, wanted in pairs]
        longest = max(map(len, texts)) - 1
        ids = torch.tensor([[*text[:-1], *[0] * (longest - len(text) + 1)] for text in texts])
        logits = logits_of(model, ids)
        found = []
        for row, text, (_, wanted) in zip(logits, texts, pairs, strict=True):
            count = min(len(wanted), len(text) - 1)
            scores = row[len(text) - 1 - count : len(text) - 1].float().log_softmax(-1)
            targets = torch.tensor(text[len(text) - count :], device=scores.device)
            chosen = scores.gather(1, targets[:, None]).double().sum()
            found.append((float(chosen), bool((scores.argmax(-1) == targets).all())))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        del requests, disable_tqdm
        raise _unsupported("the perplexity of texts", "give the text with --text")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        del requests, disable_tqdm
        raise _unsupported("text that the model writes", "give tasks of multiple choice; or run lm-eval on the model")


def _unsupported(what: str, hint: str) -> RequestError:
    return RequestError(f"one of the tasks asks for {what}, which eval does not measure", hint)


@contextmanager
def silenced(harness: Any, templates: Any) -> Iterator[None]:
    """Inside, lm-eval shows no bars, and the templates of its tasks run in a sandbox.

    Args:
        harness: the package ``lm_eval``.
        templates: the environment of Jinja that it renders templates with.
    """
    import logging

    def plain(items: Any, *_: Any, **__: Any) -> Any:
        return items

    logger, replaced = logging.getLogger("lm_eval"), []
    level = logger.level
    for module, name, value in (
        (harness.api.task, "tqdm", plain), (harness.api.model, "tqdm", plain), (harness.utils, "env", templates),
    ):  # fmt: skip
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, name, value in replaced:
            setattr(module, name, value)
