"""What the package gguf finds in a written file: names, shapes, types, values and metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.backends.gguf.check import read_back
from fxprune.backends.gguf.written_file import TYPES, Contents, write_contents
from fxprune.backends.verify import VerificationError

from .models import VOCABULARY, decoder, described, gguf

HALF_STEP = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place, relative to the value."""


def values(file: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape([*reversed(tensor.shape)])
        for tensor in gguf.GGUFReader(file).tensors
    }


def test_metadata_and_names_of_a_uniform_model(tmp_path: Path) -> None:
    model = decoder("qwen3")
    file = tmp_path / "model.gguf"
    write_contents(file, described(model).contents, "float32", gguf)
    found = {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}
    assert found["general.architecture"] == "qwen3"
    assert {key.removeprefix("qwen3."): value for key, value in found.items() if key.startswith("qwen3.")} == {
        "context_length": 64, "vocab_size": VOCABULARY, "embedding_length": 48, "block_count": 2,
        "feed_forward_length": 44, "attention.head_count": 6, "attention.head_count_kv": 3,
        "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
        "rope.freq_base": 10000.0, "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }  # fmt: skip
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (1, 2)
    held = values(file)
    assert torch.equal(torch.from_numpy(held["token_embd.weight"].copy()), model.model.embed_tokens.weight)
    attention = model.model.layers[1].self_attn
    assert torch.equal(torch.from_numpy(held["blk.1.attn_q.weight"].copy()), attention.q_proj.weight)
    assert torch.equal(torch.from_numpy(held["blk.1.attn_k_norm.weight"].copy()), attention.k_norm.weight)


def test_neighbours_rotate_together_in_each_head(tmp_path: Path) -> None:
    model = decoder("llama")
    file = tmp_path / "model.gguf"
    write_contents(file, described(model).contents, "float32", gguf)
    source = model.model.layers[0].self_attn.k_proj.weight.detach().numpy()
    order = [head * 16 + half * 8 + pair for head in range(3) for pair in range(8) for half in range(2)]
    assert np.array_equal(values(file)["blk.0.attn_k.weight"], source[order])


@pytest.mark.parametrize("dtype", TYPES)
def test_types(dtype: str, tmp_path: Path) -> None:
    model = decoder("qwen3", intermediate_size=64, hidden_size=96)
    contents = described(model).contents
    file = tmp_path / "model.gguf"
    read_back(file, contents, write_contents(file, contents, dtype, gguf))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["blk.0.ffn_down.weight"] == kinds["token_embd.weight"] == TYPES[dtype]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    for name, found in values(file).items():
        wanted = contents.tensors[name].detach().numpy()
        if dtype == "q8_0" and wanted.ndim > 1:
            steps = np.abs(wanted.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
            bound = np.repeat(steps * 0.5 + 128 * steps * 2.0**-11, 32, axis=1).reshape(wanted.shape)
        else:
            bound = np.abs(wanted) * (HALF_STEP[dtype] if wanted.ndim > 1 else 0.0) + 2.0**-25 * (dtype == "float16")
        assert (np.abs(found - wanted) <= bound).all(), name


def test_rows_that_no_block_divides_are_float16(tmp_path: Path) -> None:
    contents = described(decoder("qwen3")).contents
    entries = write_contents(tmp_path / "model.gguf", contents, "q8_0", gguf)
    assert entries["blk.0.ffn_down.weight"].type == "F16"  # rows of 44
    assert entries["blk.0.attn_output.weight"].type == "Q8_0"  # rows of 96


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_contents(tmp_path / name, described(decoder("gpt2")).contents, "q8_0", gguf)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("what", ["value", "metadata", "name"])
def test_a_file_that_differs_is_found(what: str, tmp_path: Path) -> None:
    contents = described(decoder("qwen3")).contents
    file = tmp_path / "model.gguf"
    entries = write_contents(file, contents, "float32", gguf)
    if what == "value":
        damaged = bytearray(file.read_bytes())
        damaged[-5] ^= 1
        file.write_bytes(damaged)
        message = "blk.1"
    elif what == "metadata":
        contents = Contents(contents.name, {**contents.metadata, "qwen3.block_count": 3}, contents.tensors)
        message = "another qwen3.block_count"
    else:
        entries["blk.2.attn_q.weight"] = entries["blk.1.attn_q.weight"]
        message = "blk.2.attn_q.weight as None"
    with pytest.raises(VerificationError, match=message):
        read_back(file, contents, entries)
