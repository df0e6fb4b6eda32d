"""Adapters of PEFT beside a model's weights, merged, and then pruned with everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

import fxprune
from fxprune.api.merging import directory
from fxprune.api.sources import open_source
from fxprune.backends.digests import sha256
from fxprune.ir.errors import RequestError
from fxprune.tracer.model import load_model

from ...checkpoints import WIDTHS, contents, write_checkpoint
from .adapted import KINDS, LORA, drawn, logits, with_adapter


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_computes_what_base_and_adapter_compute(
    kind: str, base: Path, tmp_path: Path, temporary: Path
) -> None:
    folder, adapted = with_adapter(base, tmp_path / "adapted", KINDS[kind])
    before = contents(folder)
    with open_source(folder, merge_adapter=True) as source:
        merged = logits(load_model(source))
        assert set(contents(source.directory)) == set(contents(base))
    expected, plain = logits(adapted), logits(AutoModelForCausalLM.from_pretrained(base))
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-2
    assert contents(folder) == before
    assert not list(temporary.iterdir())


def test_the_weights_are_merged_in_their_files_one_layer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "tiny", dtype=torch.bfloat16, shard_size="20KB")
    folder, adapted = with_adapter(source, tmp_path / "adapted", LoraConfig(**LORA), dtype=torch.float32)
    monkeypatch.setattr(directory, "load_model", lambda *_, **__: pytest.fail("the whole model was loaded"))
    with open_source(folder, merge_adapter=True) as merged:
        found = {k: v for file in merged.directory.glob("*.safetensors") for k, v in load_file(file).items()}
        shards = {file.name for file in merged.directory.glob("*.safetensors")}
    plain = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    assert shards == {file.name for file in source.glob("*.safetensors")}
    assert len(shards) > 1
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    assert changed == {name for name in plain if "q_proj" in name or "down_proj" in name}
    once = adapted.merge_and_unload().state_dict()  # merged in float32
    assert all(torch.equal(found[name], once[name].bfloat16()) for name in changed)


def one_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled_shards(folder: Path) -> None:
    tensors = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {"pytorch_model-00001-of-00002.bin": tensors[:5], "pytorch_model-00002-of-00002.bin": tensors[5:]}
    for name, part in parts.items():
        torch.save(dict(part), folder / name)
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in parts.items() for tensor, _ in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("split", [one_shard, pickled_shards])
def test_weights_with_an_index_are_merged(split: Callable[[Path], None], base: Path, tmp_path: Path) -> None:
    folder, adapted = with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))
    split(folder)
    (folder / "optimizer.bin").write_bytes(b"large")
    with open_source(folder, merge_adapter=True, allow_pickle=True) as source:
        torch.testing.assert_close(logits(load_model(source)), logits(adapted), rtol=1e-4, atol=1e-5)
        assert not list(source.directory.glob("*.bin*"))


def test_weights_that_cannot_be_merged_in_their_files_are_loaded(base: Path, tmp_path: Path) -> None:
    folder, adapted = with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with open_source(folder, merge_adapter=True, allow_pickle=True) as source:
        assert {path.name for path in source.directory.iterdir()} >= {"model.safetensors", "config.json"}
        assert not list(source.directory.glob("*.bin"))
        torch.testing.assert_close(logits(load_model(source)), logits(adapted), rtol=1e-4, atol=1e-5)


GPT2 = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=26, n_positions=32, bos_token_id=None, eos_token_id=None)

OTHERS: dict[str, tuple[Any, Any, int]] = {
    "the other way round": (GPT2, LoraConfig(r=4, target_modules=["c_attn"]), 1),
    "with their biases": (GPT2, LoraConfig(r=4, target_modules=["c_attn"], bias="lora_only"), 2),
    "with all biases": (GPT2, LoraConfig(r=4, target_modules=["c_attn"], bias="all"), 8),
    "experts": (
        MixtralConfig(**WIDTHS, num_local_experts=2, num_experts_per_tok=1), LoraConfig(target_modules=["v_proj"]), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_are_merged(kind: str, tmp_path: Path) -> None:
    """Weights that lie the other way round, biases, and a model whose tensors transformers renames; in 16 bits."""
    config, adapter, changed = OTHERS[kind]
    source = write_checkpoint(tmp_path / "other", config, dtype=torch.bfloat16)
    folder, adapted = with_adapter(source, tmp_path / "adapted", adapter)
    with open_source(folder, merge_adapter=True) as merged:
        found, before = (load_file(place / "model.safetensors") for place in (merged.directory, source))
        assert found.keys() == before.keys()
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
        assert sum(not torch.equal(found[name], before[name]) for name in found) == changed
        torch.testing.assert_close(logits(load_model(merged)), logits(adapted), rtol=0.02, atol=0.01)


def test_an_artifact_in_the_free_form_is_merged_without_its_code(base: Path, tmp_path: Path) -> None:
    free = tmp_path / "free"
    fxprune.apply(base, "magnitude{layers=0:1}", ratio=0.25, out=free)
    adapted = drawn(fxprune.load(free), LoraConfig(**LORA))
    adapted.save_pretrained(free)
    with open_source(free, merge_adapter=True) as merged:
        (merged.directory / "modeling_fxprune.py").write_text("raise AssertionError('it ran')")
        torch.testing.assert_close(logits(fxprune.load(merged.directory)), logits(adapted), rtol=1e-4, atol=1e-5)


def test_a_removal_on_the_merged_model_is_that_on_what_peft_merges(base: Path, tmp_path: Path) -> None:
    folder, adapted = with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    made = fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=True)
    fxprune.apply(tmp_path / "merged", "magnitude", ratio=0.25, out=tmp_path / "same")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "same"))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}
    assert all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one)
    assert made.parameters[1] < made.parameters[0]
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_record_names_the_files_of_base_and_adapter(base: Path, tmp_path: Path) -> None:
    folder, _ = with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))
    out, again = tmp_path / "out", tmp_path / "again"
    fxprune.apply(folder, "magnitude", ratio=0.25, out=out, merge_adapter=True)
    record = json.loads((out / "fxprune.json").read_text())
    names = ("adapter_config.json", "adapter_model.safetensors", "model.safetensors")
    source = record["source"]
    assert (source["name"], source["sha256"]) == ("adapted", {name: sha256(folder / name) for name in names})
    assert {"config.json"} <= set(source["files"])
    fxprune.apply(folder, plan=out, out=again, merge_adapter=True)
    assert contents(again, "fxprune.json", "README.md") == contents(out, "fxprune.json", "README.md")
    edited = json.loads((folder / "adapter_config.json").read_text()) | {"lora_alpha": 16}
    (folder / "adapter_config.json").write_text(json.dumps(edited))
    with pytest.raises(RequestError, match=r"has changed since .*: adapter_config\.json"):
        fxprune.apply(folder, plan=out, out=again, force=True, merge_adapter=True)
