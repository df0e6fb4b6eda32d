"""A tiny model directory, and what a stranger may do to its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from ..checkpoints import LLAMA
from ..corpora import word_tokenizer

WORDS = ("a", "b", "c")
TEXT = "a b c a c b " * 300

Damage = Callable[[Path], None]


def write_model(folder: Path, *, shards: bool = False) -> Path:
    """A Llama of two layers in bfloat16, with a tokenizer, and a text of its words beside it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LLAMA).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="9kB" if shards else "5GB")
    word_tokenizer(WORDS).save_pretrained(folder)
    (folder.parent / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, to))


def config(**changes: Any) -> Damage:
    """Other values in config.json."""
    return entry("config.json", **changes)


def entry(name: str, **changes: Any) -> Damage:
    """Other values in a JSON file."""

    def damage(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return damage


def content(name: str, data: str | bytes) -> Damage:
    """Another content of a file."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    """Other tensors in the file of weights."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, {"format": "pt"})

    return damage
