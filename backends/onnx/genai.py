"""``genai_config.json``, which tells onnxruntime-genai how to generate text with an exported graph.

onnxruntime-genai runs all decoder-only model types in the same way, and reads the number and size of the heads of each
layer from the graph (its ``src/models/kv_cache.cpp``). So the one model type in ``genai.json`` works for all
architectures, also when layers differ. The graph appends to its cache instead of writing into a buffer of full length,
so past and present must not share a buffer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import write_json

GENAI_CONFIG = "genai_config.json"

# Ids that begin, end or pad a text; if a model has none, onnxruntime-genai uses its own defaults.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CONTEXT = 2048


def write_genai_config(folder: Path, file_name: str, inputs: Mapping[str, list[int | str]], optimize: str) -> None:
    """Write the file, from ``config.json`` and ``generation_config.json`` in the same directory.

    Args:
        folder: the exported directory, complete except for this file.
        file_name: the file of the graph, relative to ``folder``.
        inputs: the inputs of the graph with their shapes.
        optimize: ``cuda`` selects the CUDA provider, any other value the CPU.
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
    """The config of the decoder: the whole config, with the text part of a multimodal config merged in."""
    text: dict[str, Any] = {**config, **config["text_config"]} if "text_config" in config else config
    return text


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of these names that the config has; architectures name the same quantity differently."""
    return next((values[name] for name in names if values.get(name) is not None), None)
