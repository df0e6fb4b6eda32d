"""Models with an adapter of PEFT beside their weights."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

IDS = torch.arange(1, 25).reshape(2, 12)

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def drawn(model: Any, config: Any) -> PeftModel:
    """A model with an adapter whose values are all random: PEFT begins with adapters that change nothing."""
    torch.manual_seed(1)
    with warnings.catch_warnings():  # about training
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    return adapted


def with_adapter(source: Path, folder: Path, config: Any, *, dtype: torch.dtype = torch.float32) -> tuple[Path, Any]:
    """A copy of a model directory with an adapter beside the weights; and what PEFT makes of the two."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    adapted = drawn(model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells which embeddings it writes
        adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder, adapted


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


KINDS: dict[str, Any] = {
    "lora": LoraConfig(**LORA, task_type="CAUSAL_LM"),
    "dora": LoraConfig(**LORA, use_dora=True),
    "ranks": LoraConfig(**LORA, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}, use_rslora=True),
    "whole modules": LoraConfig(**LORA, modules_to_save=["lm_head", "norm"]),
    "embeddings": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "tokens": LoraConfig(**LORA, trainable_token_indices=[1, 5]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=4, alpha=64, target_modules=["v_proj", "down_proj"]),
    "lokr": LoKrConfig(r=4, alpha=64, target_modules=["v_proj", "down_proj"]),
}


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder
