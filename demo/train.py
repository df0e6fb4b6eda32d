"""Trains the built-in model: ``python -m fxprune.demo.train --out DIR --minutes N``.

A byte-level BPE tokenizer and a small Llama on the ``train`` part of the built-in text. The learning rate depends on
the elapsed time, so that it is small at the end of a run of any length. The number of steps, and so the weights, depend
on the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .text import text

VOCABULARY = 1024
TRAIN_WINDOW = 256
TRAIN_BATCH = 4
PEAK_RATE = 2e-3
WEIGHT_DECAY = 0.1
WARM_UP = 0.03
SEED = 20260101
EVAL_WINDOW = 128
END = "<|endoftext|>"


def train_tokenizer(corpus: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ``VOCABULARY`` entries: any text can be encoded and decoded without loss."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    """A Llama with random weights: grouped queries (8 heads on 4 kv heads of 16), tied embeddings."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=TRAIN_WINDOW,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, part: str) -> torch.Tensor:
    """Token ids ``[tokens]`` int64 of one part of the built-in text."""
    ids: list[int] = tokenizer(text(part), verbose=False)["input_ids"]
    return torch.tensor(ids)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """exp of the mean next-token loss over non-overlapping windows of ``EVAL_WINDOW`` tokens."""
    windows = tokens[: len(tokens) // EVAL_WINDOW * EVAL_WINDOW].view(-1, EVAL_WINDOW)
    losses = [model(input_ids=batch, labels=batch).loss * len(batch) for batch in windows.split(32)]
    return math.exp(torch.stack(losses).sum().item() / len(windows))


def batches(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Endless batches ``[BATCH, WINDOW]``; each epoch cuts the text at another offset and shuffles the windows."""
    while True:
        start = int(torch.randint(TRAIN_WINDOW, ()))
        count = (len(tokens) - start) // TRAIN_WINDOW
        windows = tokens[start : start + count * TRAIN_WINDOW].view(count, TRAIN_WINDOW)
        yield from windows[torch.randperm(count)].split(TRAIN_BATCH)


def rate(progress: float) -> float:
    """Linear warm-up, then cosine to ``PEAK_RATE / 100``; ``progress`` is the elapsed share of the time."""
    if progress < WARM_UP:
        return PEAK_RATE * (progress + 1e-3) / (WARM_UP + 1e-3)
    cosine = 0.5 * (1 + math.cos(math.pi * min((progress - WARM_UP) / (1 - WARM_UP), 1.0)))
    return PEAK_RATE * (0.01 + 0.99 * cosine)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with weight decay for matrices, without it for norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def fit(model: LlamaForCausalLM, tokens: torch.Tensor, watched: torch.Tensor, seconds: float) -> int:
    """Train for ``seconds``, and print the perplexity on ``watched`` at times; returns the number of steps."""
    optimizer = optimizer_of(model)
    began, reported = time.monotonic(), 0.0
    for step, batch in enumerate(batches(tokens)):
        elapsed = time.monotonic() - began
        if elapsed >= seconds:
            return step
        for group in optimizer.param_groups:
            group["lr"] = rate(elapsed / seconds)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if elapsed - reported > seconds / 20:
            reported = elapsed
            print(
                f"{elapsed:6.0f} s  step {step:6d}  calibration perplexity {perplexity(model, watched):.2f}", flush=True
            )
    raise AssertionError("batches() never ends")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a Hugging Face model directory with float16 weights."""
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(out)


def main() -> None:
    """Train, save, and print the perplexity of the saved model."""
    parser = argparse.ArgumentParser(description="Train fxprune's built-in model.")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--minutes", type=float, default=25.0, help="training time in minutes")
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(text("train"))
    train, watched, held_out = (encode(tokenizer, part) for part in ("train", "calibration", "evaluation"))
    model = new_model()
    print(
        f"{model.num_parameters():,} parameters; tokens: {len(train):,} train, {len(held_out):,} evaluation", flush=True
    )

    steps = fit(model, train, watched, options.minutes * 60)
    save(model, tokenizer, options.out)
    saved = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    print(f"{steps} steps, {steps * TRAIN_BATCH * TRAIN_WINDOW / len(train):.1f} epochs")
    for name, tokens in (("train", train[: len(held_out)]), ("calibration", watched), ("evaluation", held_out)):
        print(f"{name} perplexity {perplexity(saved, tokens):.2f}")


if __name__ == "__main__":
    main()
