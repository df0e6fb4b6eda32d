"""A causal language model as lm-eval asks it, at little cost: what choices share is read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from torch import Tensor

TOKENS = 384
"""Tokens in a forward pass, about: enough that a core is busy, few enough that texts of one pass are of like length."""

SHARED = 24
"""A context of so many tokens or more is read once for all its choices, a shorter one with each of them."""

Request = tuple[Any, list[int], list[int]]
"""What lm-eval asks: its own key, the tokens of a context, those of a continuation."""
Scored = tuple[float, bool]
"""The logarithmic probability of a continuation; whether each of its tokens is the most probable one."""


class ScoredModel(TemplateLM):
    """A model of transformers in memory, for tasks that compare probabilities of texts.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before an empty context: as in lm-eval's own class for transformers."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = add_special_tokens is None or add_special_tokens
        found: list[int] = self.tokenizer.encode(string, add_special_tokens=special)
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Scored]:
        """As lm-eval has it, without a bar."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[Scored]:
        found: dict[int, Scored] = {}
        by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, (_key, context, _wanted) in enumerate(requests):
            by_context[tuple(context)].append(at)
        alone = []
        with torch.inference_mode():
            for context, places in by_context.items():
                if len(places) == 1 or len(context) < SHARED:
                    alone += places
                else:
                    found |= zip(places, self._choices(context, [requests[at][2] for at in places]), strict=True)
            for part in _batches(alone, [len(request[1]) + len(request[2]) for request in requests]):
                found |= zip(part, self._texts([requests[at][1:] for at in part]), strict=True)
        return [found[at] for at in range(len(requests))]

    def _choices(self, context: Sequence[int], choices: Sequence[list[int]]) -> list[Scored]:
        """Continuations of one context, which is read once."""
        first = self.model(input_ids=torch.tensor([context]), use_cache=True, logits_to_keep=1)
        longest = max(map(len, choices))
        logits = first.logits.expand(len(choices), -1, -1)
        if longest > 1:
            first.past_key_values.batch_repeat_interleave(len(choices))
            ids = torch.tensor([[*choice[:-1], *[0] * (longest - len(choice))] for choice in choices])
            rest = self.model(input_ids=ids, past_key_values=first.past_key_values, use_cache=True)
            logits = torch.cat([logits, rest.logits], 1)
        return [_scored(row[: len(choice)], choice) for row, choice in zip(logits, choices, strict=True)]

    def _texts(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        """Continuations of contexts. What is behind a token has no effect on it: texts are filled up on the right."""
        texts = [[*context, *wanted] for context, wanted in pairs]
        longest = max(map(len, texts)) - 1
        from_here = min(len(context) for context, _ in pairs) - 1
        ids = torch.tensor([[*text[:-1], *[0] * (longest - len(text) + 1)] for text in texts])
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=longest - from_here).logits
        return [
            _scored(row[len(context) - 1 - from_here :][: len(wanted)], wanted)
            for row, (context, wanted) in zip(logits, pairs, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no task here asks for it")

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError("no task here asks for it")


def _scored(logits: Tensor, wanted: Sequence[int]) -> Scored:
    targets = torch.tensor(wanted)
    chosen = logits.float().log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.double().sum()), bool((logits.argmax(-1) == targets).all())


def _batches(places: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like length, the longest first, as many in a batch as TOKENS allows."""
    batch: list[int] = []
    for at in sorted(places, key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
