"""What perplexity hides: answers of a model, whether they are exact, repeat themselves, and agree with another's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

ANSWER, SHORT = 32, 16
"""Tokens that are written at most: after an instruction, and where the exact answer is short."""

AT_ONCE = 25
"""Prompts in a batch, of like length."""

GRAM = 4
"""Tokens of the n-grams by which repetition is counted."""

PROMPTS = Path(__file__).with_name("prompts")


@cache
def instructions() -> tuple[str, ...]:
    """Simple instructions, written for this benchmark."""
    return tuple(json.loads((PROMPTS / "instructions.json").read_text(encoding="utf-8")))


@cache
def exact_prompts() -> tuple[dict[str, str], ...]:
    """``kind``, ``prompt`` with two or three examples, ``answer``: arithmetic, copying, formats."""
    return tuple(json.loads((PROMPTS / "exact.json").read_text(encoding="utf-8")))


def greedy(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """The most probable tokens after each prompt, up to ``new`` of them, or to the end of the text, without its token.

    Args:
        model: of transformers.
        tokenizer: its tokenizer, for the token that ends a text.
        prompts: token ids.
        new: the most tokens that are written.
    """
    end = int(tokenizer.eos_token_id)
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    with torch.inference_mode():
        for start in range(0, len(order), AT_ONCE):
            part = order[start : start + AT_ONCE]
            longest = max(len(prompts[at]) for at in part)
            ids = torch.tensor([[end] * (longest - len(prompts[at])) + list(prompts[at]) for at in part])
            mask = torch.tensor([[0] * (longest - len(prompts[at])) + [1] * len(prompts[at]) for at in part])
            written = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, num_beams=1,
                eos_token_id=end, pad_token_id=end,
            )  # fmt: skip
            for at, row in zip(part, written[:, longest:].tolist(), strict=True):
                found[at] = row[: row.index(end)] if end in row else row
    return [found[at] for at in range(len(prompts))]


def followed(model: Any, tokenizer: Any) -> list[list[int]]:
    """The tokens of the answers to the instructions, in the chat template of the model where it has one."""
    asked: list[str] = list(instructions())
    templated = bool(tokenizer.chat_template)
    if templated:
        turns = [[{"role": "user", "content": text}] for text in asked]
        asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=not templated)["input_ids"] for text in asked]
    return greedy(model, tokenizer, ids, ANSWER)


def exact(model: Any, tokenizer: Any) -> str:
    """A digit for each of the exact prompts, 1 where the first line of what is written is the answer."""
    rows = exact_prompts()
    written = greedy(model, tokenizer, [tokenizer(row["prompt"])["input_ids"] for row in rows], SHORT)
    lines = [tokenizer.decode(tokens).strip(" ").partition("\n")[0].strip() for tokens in written]
    return "".join(str(int(line == row["answer"])) for line, row in zip(lines, rows, strict=True))


def repetition(tokens: Sequence[int]) -> float:
    """The share of n-grams that a text has had already: seq-rep-n with n = 4 (arXiv 1908.04319, section 6.1)."""
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def words(text: str) -> list[str]:
    """Its words in small letters, without punctuation."""
    return re.findall(r"\w+", text.lower())


def agreement(text: str, other: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words (Lin 2004, section 3); 1 where neither has words."""
    one, two = words(text), words(other)
    if not one or not two:
        return float(one == two)
    row = [0] * (len(two) + 1)
    for word in one:
        before = row
        row = [0]
        for at, also in enumerate(two):
            row.append(before[at] + 1 if word == also else max(before[at + 1], row[at]))
    common = row[-1]
    return 2 * common / (len(one) + len(two))


def generated(model: Any, tokenizer: Any, dense: Sequence[str] | None = None) -> dict[str, Any]:
    """What is measured of a model's answers.

    Args:
        model: of transformers, in eval mode.
        tokenizer: its tokenizer.
        dense: the dense model's answers to the instructions, ``answers`` of what this found for it; None for itself.

    Returns:
        ``exact``, a digit for each exact prompt; ``repeated``, the share of repeated 4-grams in each answer to an
        instruction; beside the dense model ``agreement`` with it of each answer, and ``first``, a digit for each
        answer, 1 where the first word is the same; else ``answers``, the texts.
    """
    tokens = followed(model, tokenizer)
    texts = [str(tokenizer.decode(row)) for row in tokens]
    found: dict[str, Any] = {
        "exact": exact(model, tokenizer),
        "repeated": [round(repetition(row), 3) for row in tokens],
    }
    if dense is None:
        return {**found, "answers": texts}
    pairs = list(zip(texts, dense, strict=True))
    same = "".join(str(int(words(one)[:1] == words(two)[:1])) for one, two in pairs)
    return {**found, "agreement": [round(agreement(one, two), 3) for one, two in pairs], "first": same}
