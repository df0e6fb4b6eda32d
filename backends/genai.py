"""``genai_config.json``, from which onnxruntime-genai learns what an exported graph is and how to generate with it.

It runs the decoder-only model types alike, and reads the heads and head sizes of each layer's cache from the graph
(its ``src/models/kv_cache.cpp``): so one type, in ``genai.json``, serves all architectures, and models whose layers
differ need nothing more. The graph concatenates its cache instead of writing into a buffer of full length, so past and
present must not share one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artifact import write_json

GENAI_CONFIG = "genai_config.json"

# Ids that stop or pad a text; where a model has none, onnxruntime-genai has defaults of its own.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CONTEXT = 2048


def write_genai_config(folder: Path, file_name: str, inputs: Mapping[str, list[int | str]], optimize: str) -> None:
    """Write the file beside the ``config.json`` and ``generation_config.json`` that it is filled from.

    Args:
        folder: the export, complete but for this file.
        file_name: of the graph, relative to ``folder``.
        inputs: the graph's inputs with their shapes.
        optimize: ``cuda`` asks for that provider, anything else for the CPU.
    """
    values = _text_values(_read(folder / "config.json"))
    generation = _read(folder / "generation_config.json")
    past = [shape for name, shape in inputs.items() if name.startswith("past_key_values.") and name.endswith(".key")]
    context = int(_first(values, ("max_position_embeddings", "n_positions", "seq_length")) or _CONTEXT)
    heads, size = int(past[0][1]), int(past[0][3])
    queries = int(_first(values, ("num_attention_heads", "n_head")) or heads)

    config = json.loads((Path(__file__).parent / "genai.json").read_text(encoding="utf-8"))
    model, decoder = config["model"], config["model"]["decoder"]
    for name in _TOKENS:
        found = generation.get(name)
        found = values.get(name) if found is None else found
        if found is not None:
            model[name] = found
    model.update(context_length=context, vocab_size=int(values["vocab_size"]))
    decoder.update(
        filename=file_name,
        head_size=size,
        hidden_size=int(_first(values, ("hidden_size", "n_embd")) or queries * size),
        num_attention_heads=queries,
        num_hidden_layers=len(past),
        num_key_value_heads=heads,
    )
    decoder["inputs"] = {key: name for key, name in decoder["inputs"].items() if "%d" in name or name in inputs}
    if optimize == "cuda":
        decoder["session_options"]["provider_options"] = [{"cuda": {}}]
    config["search"]["max_length"] = context
    write_json(folder / GENAI_CONFIG, config)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _text_values(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the decoder: all of it, but in models that see or hear too."""
    text: dict[str, Any] = {**config, **config["text_config"]} if "text_config" in config else config
    return text


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of several names of one quantity that a config has."""
    return next((values[name] for name in names if values.get(name) is not None), None)
