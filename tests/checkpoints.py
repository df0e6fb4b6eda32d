"""Tiny checkpoints on disk, for tests that go from files to files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

WIDTHS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 26, "max_position_embeddings": 64,
}  # fmt: skip

LLAMA = LlamaConfig(**WIDTHS)
TIED = Qwen2Config(**WIDTHS, tie_word_embeddings=True)


def write_checkpoint(
    folder: Path,
    config: PreTrainedConfig = LLAMA,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "5GB",
    seed: int = 0,
) -> Path:
    """A model with random weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder


def contents(folder: Path, *without: str) -> dict[str, str]:
    """Path -> sha256, of every file in a directory and in those below it, but the files named."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
