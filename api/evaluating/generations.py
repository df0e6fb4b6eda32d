"""What a model writes after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ...ir.errors import RequestError
from ...passes.model.forward import decoded
from ...passes.model.measure import Step
from ...runtime.streaming.block_runner import BlockRunner
from ..runnable import Runnable
from .measures import Continuation


def generations(
    runnable: Runnable, tokenizer: Any, prompts: Sequence[str], *, new: int, context: int
) -> tuple[Continuation, ...]:
    """What a model writes after each prompt: always the most probable token, until the end of the text.

    Args:
        runnable: the model.
        tokenizer: its tokenizer.
        prompts: texts.
        new: the most tokens that are written.
        context: tokens that the model can read.

    Raises:
        RequestError: a prompt holds no token, or leaves no room in the context.
    """
    found = []
    for prompt in prompts:
        ids = list(tokenizer.encode(prompt, verbose=False))
        if not ids or len(ids) >= context:
            raise RequestError(
                f"--generate {prompt[:40]!r} has {len(ids)} tokens, and the context of the model {context}",
                "give a prompt of at least one token that leaves room in the context",
            )
        room = context - len(ids)
        tokens = _written(runnable.step, ids, min(new, room), tokenizer.eos_token_id)
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        full = len(tokens) == room < new and tokens[-1] != tokenizer.eos_token_id
        found.append(Continuation(prompt, tuple(tokens), text, full))
    return tuple(found)


def _written(step: Step | BlockRunner, ids: list[int], new: int, end: int | None) -> list[int]:
    if not isinstance(step, BlockRunner):
        return _greedy(step, ids, new, end)

    def write() -> list[int]:
        with step.session() as model:
            return _greedy(partial(decoded, model), ids, new, end)

    return step.again(write)


def _greedy(step: Callable[..., Any], ids: list[int], new: int, end: int | None) -> list[int]:
    logits, cache = step(torch.tensor([ids]), None)
    found: list[int] = []
    while True:
        token = int(logits[0, -1].argmax())
        found.append(token)
        if token == end or len(found) == new:
            return found
        logits, cache = step(torch.tensor([[token]]), cache)
