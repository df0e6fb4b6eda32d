"""Trains a small mixture of experts to compare scores of experts on: 8 experts, of which every token uses two.

python benchmarks/mixtures/train.py --text ../shared/text --out out/mixture --cpu-minutes 13

A Mixtral with 5.6 million parameters and a byte-level BPE tokenizer, on the ``-recover`` texts of TinyStories (three
times) and WikiText-2 (once). The learning rate depends on the CPU time used, so that it is small at the end of a run of
any length; the number of steps, and so the weights, depend on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from fxprune.demo.train import optimizer_of, rate

VOCABULARY = 2048
WINDOW, BATCH = 128, 8
HIGHER = 1.5
"""The learning rate beside that of the demo's model, which is larger: 3e-3 at most."""
SEED = 20261129
END = "<|endoftext|>"


def new_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ``VOCABULARY`` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def new_model() -> MixtralForCausalLM:
    """Random weights. The balancing loss of the router keeps experts from dying early."""
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=256, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=3, head_dim=32, num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.01,
        output_router_logits=True, max_position_embeddings=512, tie_word_embeddings=True, sliding_window=None,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.04,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def batches(parts: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Endless batches ``[BATCH, WINDOW]``; each epoch cuts the texts at other offsets and shuffles their windows."""
    while True:
        cut = []
        for tokens in parts:
            start = int(torch.randint(WINDOW, ()))
            cut.append(tokens[start : start + (len(tokens) - start) // WINDOW * WINDOW].view(-1, WINDOW))
        windows = torch.cat(cut)
        yield from windows[torch.randperm(len(windows))].split(BATCH)


def fit(model: MixtralForCausalLM, parts: list[torch.Tensor], seconds: float) -> int:
    """Train for some seconds of CPU time; returns the number of steps."""
    optimizer = optimizer_of(model)
    began, mean, reported = time.process_time(), 0.0, 0.0
    for step, batch in enumerate(batches(parts)):
        elapsed = time.process_time() - began
        if elapsed >= seconds:
            return step
        for group in optimizer.param_groups:
            group["lr"] = HIGHER * rate(elapsed / seconds)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if elapsed - reported > seconds / 20:
            reported = elapsed
            print(f"{elapsed:6.0f} CPU s  step {step:6d}  loss {mean:.3f}", flush=True)
    raise AssertionError("batches() never ends")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description="Train a small mixture of experts.")
    parser.add_argument("--text", type=Path, required=True, help="folder with the -recover texts")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--cpu-minutes", type=float, default=13.0, help="CPU time of the training")
    parser.add_argument("--experts", default="grouped_mm", help="transformers' implementation of the experts")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    stories, articles = (
        (options.text / f"{name}-recover.txt").read_text(encoding="utf-8") for name in ("tinystories", "wikitext2")
    )
    tokenizer = new_tokenizer(stories + articles[: len(stories)])
    ids = [torch.tensor(tokenizer(text, verbose=False)["input_ids"]) for text in (stories, articles)]
    model = new_model()
    model.set_experts_implementation(options.experts)
    print(f"{model.num_parameters():,} parameters, {[len(part) for part in ids]} tokens", flush=True)
    steps = fit(model, [ids[0]] * 3 + [ids[1]], options.cpu_minutes * 60)
    print(f"{steps} steps, {steps * BATCH * WINDOW:,} tokens")
    model.config.output_router_logits = False
    model.config.router_aux_loss_coef = 0.001
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(options.out)


if __name__ == "__main__":
    main()
