"""Directories of models that bring their own code, as their makers put them on the Hub."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..corpora import word_tokenizer

MODELS = Path(__file__).parent / "models"
WORDS = "abcdefghijklmnopqrstuvwxyz"
TEXT = " ".join(WORDS[number * number % 23] for number in range(400))


@dataclass(frozen=True)
class OwnModel:
    """A model in ``models``, and how its makers name its parts.

    Attributes:
        name: of its folder, and in the names of its files.
        config: the class of its configuration.
        heads: Auto class -> class of the model.
        architecture: what ``architectures`` says, where that is not the class that the weights are for.
        auto: the Auto class that loads it with all of its weights.
    """

    name: str
    config: str
    heads: dict[str, str]
    architecture: str = ""
    auto: str = "AutoModelForCausalLM"

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token."""
        return self.auto == "AutoModelForCausalLM"

    @property
    def auto_map(self) -> dict[str, str]:
        """As in its ``config.json``."""
        models = {auto: f"modeling_{self.name}.{model}" for auto, model in self.heads.items()}
        return {"AutoConfig": f"configuration_{self.name}.{self.config}", **models}

    def write(self, folder: Path, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
        """Its directory with random weights, none of which is 0 or 1; ``fields`` are for its configuration."""
        package = f"{__package__}.models.{self.name}"
        config_class = getattr(importlib.import_module(f"{package}.configuration_{self.name}"), self.config)
        model_class = getattr(importlib.import_module(f"{package}.modeling_{self.name}"), self.heads[self.auto])
        torch.manual_seed(0)
        model = model_class(config_class(**fields))
        folder.mkdir(parents=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.25) if parameter.dim() > 1 else parameter.normal_(1, 0.2)
        return self._files(folder, model, dtype)

    def _files(self, folder: Path, model: Any, dtype: torch.dtype) -> Path:
        held = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
        for tied in getattr(model, "_tied_weights_keys", None) or {}:
            if getattr(model.config, "tie_word_embeddings", False):
                del held[tied]
        save_file({name: t.contiguous() for name, t in held.items()}, folder / "model.safetensors", {"format": "pt"})
        data = model.config.to_dict()
        data |= {
            "auto_map": self.auto_map,
            "architectures": [self.architecture or self.heads[self.auto]],
            "dtype": str(dtype).removeprefix("torch."),
        }
        (folder / "config.json").write_text(json.dumps(data, indent=2))
        for file in sorted((MODELS / self.name).glob("*.py")):
            shutil.copyfile(file, folder / file.name)
        word_tokenizer(WORDS).save_pretrained(folder)
        return folder


OWN = {
    model.name: model
    for model in (
        OwnModel("packed", "PackedConfig", {"AutoModelForCausalLM": "PackedForCausalLM"}),
        OwnModel(
            "interleaved",
            "InterleavedConfig",
            {"AutoModelForCausalLM": "InterleavedForCausalLM", "AutoModel": "InterleavedModel"},
        ),
        OwnModel(
            "planar",
            "PlanarConfig",
            {
                "AutoModelForCausalLM": "PlanarForConditionalGeneration",
                "AutoModel": "PlanarForConditionalGeneration",
            },
            architecture="PlanarModel",
        ),
        OwnModel("mixture", "MixtureConfig", {"AutoModelForCausalLM": "MixtureForCausalLM"}),
        OwnModel(
            "reader",
            "ReaderConfig",
            {"AutoModel": "ReaderModel", "AutoModelForSequenceClassification": "ReaderForSequenceClassification"},
            auto="AutoModelForSequenceClassification",
        ),
    )
}
"""Fused queries, keys and values; interleaved ones in groups; two-dimensional rotary positions and no cache; a mixture
with a shared expert; an encoder."""
