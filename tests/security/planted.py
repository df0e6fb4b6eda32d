"""Model directories in which somebody has planted code. What runs leaves a file, whose name says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ..corpora import word_tokenizer

GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 26, "n_positions": 64}
AUTO = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}

EVIL = """
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

Path({ran!r}).write_text(__name__)


class EvilConfig(GPT2Config):
    model_type = {model_type!r}


class Evil(GPT2LMHeadModel):
    config_class = EvilConfig


class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


def plant(folder: Path, ran: Path, **changes: Any) -> Path:
    """A GPT-2 with code: ``auto_map`` and ``evil.py``; ``changes`` are entries of its configuration."""
    torch.manual_seed(0)
    config = GPT2Config(**{**GPT2, **{name: value for name, value in changes.items() if name in GPT2}})
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer("abcdefghijklmnopqrstuvwxyz").save_pretrained(folder)
    write_into(folder / "config.json", **{"auto_map": AUTO, **changes})
    write_code(folder / "evil.py", ran, changes.get("model_type", "gpt2"))
    return folder


def write_code(path: Path, ran: Path, model_type: str = "gpt2") -> None:
    """Code that leaves the file ``ran`` when it runs."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(EVIL.format(ran=str(ran), model_type=model_type))


def write_into(path: Path, **entries: Any) -> None:
    """Change entries of a JSON file."""
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **entries}))
