"""Runs that break off: sources, and a run that left a stage, shared by the tests of --resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from fxprune import api
from fxprune.api.pruning import model_run

from ...checkpoints import WIDTHS, write_checkpoint
from ...corpora import word_tokenizer

VOCABULARY = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
GPT2 = GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=26, n_positions=64, bos_token_id=0, eos_token_id=0)
TAYLOR, COMPENSATE = "taylor{samples=4,length=8}", "compensate{samples=8,length=8}"
LORA = "lora{steps=2,batch=2,length=8}"


def write_source(folder: Path, config: Any = None, *, words: Any = None, **options: Any) -> Path:
    source = write_checkpoint(folder, config or LlamaConfig(**WIDTHS | {"num_hidden_layers": 3}), **options)
    (words or word_tokenizer(VOCABULARY)).save_pretrained(source)
    return source


class Broken(Exception):
    """What breaks a run off."""


def broken(owner: type, method: str, run: Callable[[], object]) -> None:
    """Run with a method of a class that raises."""

    def raises(*_: Any, **__: Any) -> None:
        raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, raises)
        with pytest.raises(Broken):
            run()


def again(folder: Path, passes: str = "random", **options: Any) -> api.Applied:
    return api.apply(folder / "source", passes, **{"ratio": 0.5, "out": folder / "out", "resume": True} | options)


def kept_after(folder: Path, **options: Any) -> bool:
    """Whether a run that broke off while it wrote left a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_run.ModelRun, "save", lambda *_, **__: (_ for _ in ()).throw(Broken))
        with pytest.raises(Broken):
            again(folder, **options)
    return any(folder.glob(".out.stages*"))
