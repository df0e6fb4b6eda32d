"""Streaming: from files to files with one tensor in memory, and the bytes that the whole model would have given."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    PreTrainedConfig,
)

from fxprune import api
from fxprune.api.pruning import model_run, streamed_model
from fxprune.backends.huggingface import streamed_weights, synthetic_weights, weight_source
from fxprune.backends.huggingface.streamed_weights import SHARD_INDEX, StreamedWeights, obstacle, stored_tensors
from fxprune.backends.huggingface.synthetic_weights import SyntheticWeights, meta_model
from fxprune.ir.errors import FxpruneError
from fxprune.passes.score.random import Random
from fxprune.passes.score.weight_powers import magnitude
from fxprune.runtime.streaming import mapped_files
from fxprune.runtime.streaming.mapped_files import Checkpoint
from fxprune.runtime.streaming.store import InMemory, Store
from fxprune.tracer.model import build_meta

from ...checkpoints import LLAMA, TIED, WIDTHS, contents, write_checkpoint

GPT2 = GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=26, n_positions=64, bos_token_id=0, eos_token_id=0)
EMBEDDING = "model.embed_tokens.weight"


def apply(source: Path, out: Path, passes: str = "magnitude", **options: Any) -> api.Applied:
    return api.apply(source, passes, ratio=0.5, out=out, **options)


@pytest.fixture
def streams_opened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run so far streamed."""
    opened: list[bool] = []

    def spy(*arguments: Any, **how: Any) -> Any:
        stream = streamed_model.open_streamed_model(*arguments, **how)
        opened.append(isinstance(stream, streamed_model.StreamedModel))
        return stream

    monkeypatch.setattr(model_run, "open_streamed_model", spy)
    return opened


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((LLAMA, "magnitude", torch.bfloat16), id="retargeted", marks=pytest.mark.slow),
        pytest.param((TIED, "random,magnitude{p=1}", torch.float16), id="tied, two passes"),
        pytest.param((GPT2, "magnitude", torch.float32), id="free, fused, tied", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_are_those_of_the_model_in_memory(
    case: tuple[PreTrainedConfig, str, torch.dtype],
    tmp_path: Path,
    streams_opened: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, passes, dtype = case
    source = write_checkpoint(tmp_path / "source", config, dtype=dtype, shard_size="20kB")
    assert len(list(source.glob("*.safetensors"))) > 1
    apply(source, tmp_path / "streamed", passes)
    assert streams_opened == [True]
    monkeypatch.setattr(model_run, "open_streamed_model", lambda *_, **__: "")
    apply(source, tmp_path / "held", passes)
    assert contents(tmp_path / "streamed") == contents(tmp_path / "held")


@pytest.mark.parametrize("plain", [True, False])
def test_shards_and_their_index_are_those_of_save_pretrained(plain: bool, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TIED)
    streamed, held = tmp_path / "streamed", tmp_path / "held"
    weights, model = weights_of(source)
    streamed.mkdir()
    digests = weights.write(model, streamed, plain=plain, shard_size="8kB")
    whole = AutoModelForCausalLM.from_pretrained(source)
    whole.save_pretrained(held, max_shard_size="8kB", save_original_format=plain)
    assert contents(streamed) == contents(held, "config.json", "generation_config.json")
    assert digests == contents(streamed, SHARD_INDEX)
    assert len(digests) > 2


def weights_of(source: Path) -> tuple[StreamedWeights, Any]:
    config = json.loads((source / "config.json").read_text())
    classes = {"llama": LLAMA, "qwen2": TIED}
    model = build_meta(classes[config["model_type"]], buffers=True)
    checkpoint = Checkpoint(sorted(source.glob("*.safetensors")))
    assert obstacle(checkpoint, model) == ""
    store = Store(stored_tensors(checkpoint, model), InMemory())
    return StreamedWeights(store, checkpoint.metadata), model


def test_dtypes_and_metadata_are_kept_and_ties_stay_tied(tmp_path: Path, streams_opened: list[bool]) -> None:
    source = write_checkpoint(tmp_path / "source", TIED)
    tensors = load_file(source / "model.safetensors")
    norm = "model.norm.weight"
    tensors[norm] = tensors[norm].float() + 1e-3
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt", "note": "a note"})
    apply(source, tmp_path / "out")
    assert streams_opened == [True]
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as written:
        assert written.metadata() == {"format": "pt", "note": "a note"}
        assert "lm_head.weight" not in written.keys()  # noqa: SIM118
        assert torch.equal(written.get_tensor(norm), tensors[norm])
        assert written.get_tensor(EMBEDDING).dtype is torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_checkpoint_whose_tensors_transformers_renames_is_loaded_as_a_whole(
    tmp_path: Path, streams_opened: list[bool]
) -> None:
    source = write_checkpoint(tmp_path / "source", GPT2, dtype=torch.float32)
    tensors = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    apply(source, tmp_path / "out", form="free")
    assert streams_opened == [False]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_pass_that_needs_the_whole_model_gets_it(
    tmp_path: Path, streams_opened: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Random, "streams", False)
    source = write_checkpoint(tmp_path / "source")
    apply(source, tmp_path / "out", "random")
    assert streams_opened == [False]


OBSTACLES = [
    (lambda t: t | {"extra": torch.zeros(1)}, "extra is no tensor of the model"),
    (lambda t: {k: v for k, v in t.items() if k != EMBEDDING}, f"it holds 0 tensors for {EMBEDDING} = lm_head.weight"),
    (lambda t: t | {"lm_head.weight": t[EMBEDDING].clone()}, f"it holds 2 tensors for {EMBEDDING} = lm_head.weight"),
    (lambda t: t | {EMBEDDING: t[EMBEDDING][:-1].clone()}, f"{EMBEDDING} has another shape than its config says"),
    (lambda t: t | {EMBEDDING: t[EMBEDDING].to(torch.int8)}, "it holds I8"),
]


@pytest.mark.parametrize(("change", "why"), OBSTACLES, ids=[why for _, why in OBSTACLES])
def test_obstacles_to_streaming(change: Any, why: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TIED)
    save_file(change(load_file(source / "model.safetensors")), source / "model.safetensors")
    model = build_meta(TIED, buffers=True)
    assert obstacle(Checkpoint([source / "model.safetensors"]), model) == why


@pytest.mark.slow
def test_above_the_limit_names_and_shapes_are_compared_in_a_fresh_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_source, "LOGITS_LIMIT", 0)
    for config, name in ((TIED, "uniform"), (GPT2, "free")):
        source = write_checkpoint(tmp_path / f"source-{name}", config)
        applied = apply(source, tmp_path / name)
        assert applied.saved is not None
        assert applied.saved.form == name
        assert applied.saved.checks == {
            "described_by": "transformers.AutoModelForCausalLM",
            "logits": "not compared",
            "all_finite": True,
        }


def test_the_shape_check_sees_a_config_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "LOGITS_LIMIT", 0)
    source = write_checkpoint(tmp_path / "source", TIED)
    write = StreamedWeights.write

    def and_spoil(self: Any, model: Any, folder: Path, **how: Any) -> dict[str, str]:
        digests = write(self, model, folder, **how)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
        save_file(tensors, folder / "model.safetensors")
        return digests

    monkeypatch.setattr(StreamedWeights, "write", and_spoil)
    with pytest.raises(FxpruneError, match=r"mismatched keys: model\.norm\.weight"):
        apply(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_is_finite_is_told_from_its_bits(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    finite = torch.tensor(
        [[0.0, -0.0, info.max], [info.min, info.smallest_normal, -info.smallest_normal / 2]], dtype=dtype
    )
    integers = streamed_weights._INTEGERS[dtype.itemsize]
    streamed_weights._check_finite("w", finite.view(integers).numpy(), dtype)
    streamed_weights._check_finite("w", finite[:0].view(integers).numpy(), dtype)
    nan = torch.tensor(float("nan"), dtype=dtype).view(integers)
    lowest = torch.tensor(float("inf"), dtype=dtype).view(integers) + 1  # of all numbers that are none
    odd = [torch.tensor(value, dtype=dtype).view(integers) for value in (float("inf"), float("-inf"))]
    for bits in (*odd, nan, nan | torch.iinfo(integers).min, lowest, lowest | torch.iinfo(integers).min):
        values = finite.view(integers).clone()
        values[1, 2] = bits
        assert not values.view(dtype).isfinite().all()
        with pytest.raises(FxpruneError, match="'w' holds values that are not finite"):
            streamed_weights._check_finite("w", values.numpy(), dtype)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors[EMBEDDING][3, 5] = value
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(FxpruneError) as caught:
        apply(source, tmp_path / "out", "random")
    assert f"'{EMBEDDING}' holds values that are not finite" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_scores_read_from_files_are_those_of_the_module(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", LLAMA, shard_size="8kB")
    weights, model = weights_of(source)
    wanted = {name: frozenset(range(p.dim())) for name, p in model.named_parameters()}
    read: list[str] = []

    def reader(names: Any) -> Any:
        for name, tensor in weights.read(names):
            read.append(name)
            yield name, tensor

    streamed = magnitude(model, wanted, 2, reader)
    held = magnitude(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), wanted, 2)
    assert sorted(read) == sorted(wanted)
    assert streamed.keys() == held.keys()
    assert all(np.array_equal(streamed[key], held[key]) for key in held)


def test_synthetic_weights_tell_8_heads_of_6_from_6_heads_of_8() -> None:
    def model(heads: int, size: int) -> Any:
        widths = WIDTHS | {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": size}
        return meta_model(MistralForCausalLM, MistralConfig(**widths))

    one, other = model(8, 6), model(6, 8)
    assert all(parameter.is_meta for parameter in one.parameters())
    synthetic = SyntheticWeights(one)
    inputs = {"input_ids": torch.arange(10).view(2, 5)}
    first, second = synthetic.logits(one, inputs), synthetic.logits(other, inputs)
    assert torch.equal(first, synthetic.logits(model(8, 6), inputs))
    assert float((first - second).abs().max() / first.abs().max()) > 1e-2


def test_a_mixture_of_experts_is_loaded_as_a_whole(tmp_path: Path) -> None:
    config = MixtralConfig(**WIDTHS, num_local_experts=2)
    source = write_checkpoint(tmp_path / "source", config)
    checkpoint = Checkpoint([source / "model.safetensors"])
    assert "it holds 0 tensors for model.layers.0.mlp" in obstacle(checkpoint, build_meta(config, buffers=True))


def test_memory_is_some_rows_to_write_and_nothing_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "PIECE", 1 << 15)
    config = LlamaConfig(**WIDTHS | {"hidden_size": 128, "intermediate_size": 4096, "num_hidden_layers": 6})
    source = write_checkpoint(tmp_path / "source", config)
    model = build_meta(config, buffers=True)
    checkpoint = Checkpoint([source / "model.safetensors"])
    weights = StreamedWeights(Store(stored_tensors(checkpoint, model), InMemory()), checkpoint.metadata)
    largest = max(found.size for found in weights.store.source.values())

    def peak(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    (tmp_path / "out").mkdir()
    written = peak(lambda: weights.write(model, tmp_path / "out", plain=True, shard_size="1GB"))
    assert written < largest / 2
    scored = peak(lambda: [None for _ in weights.read(weights.store.source)])
    assert scored < largest / 10
    file = str(source / "model.safetensors")
    if (maps := Path("/proc/self/maps")).is_file():
        held = [maps.read_text().count(file) for _ in weights.read(weights.store.source)]
        assert max(held) <= 2  # the last one goes when the next has come
        assert file not in maps.read_text()
    assert contents(tmp_path / "out") == contents(source, "config.json", "generation_config.json")


@pytest.mark.parametrize("piece", [1, 100, 200, 1 << 20])
def test_the_rows_of_a_tensor_are_what_is_left_of_it_whole(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_files, "PIECE", piece)
    tensors = {"a": torch.randn(7, 5, 3), "b": torch.randn(9), "c": torch.tensor(2.0), "d": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors")
    first, middle, last = np.array([0, 4, 5]), np.array([2]), np.array([1, 2])
    cuts: list[tuple[str, dict[int, Any]]] = [
        ("a", {}), ("a", {0: first}), ("a", {1: middle}), ("a", {0: first, 1: middle, 2: last}), ("b", {0: first}),
        ("b", {}), ("c", {}), ("d", {}), ("d", {1: last}),
    ]  # fmt: skip
    for name, slices in cuts:
        expected = tensors[name]
        for dim, kept in slices.items():
            expected = expected.index_select(dim, torch.from_numpy(kept))
        found = Checkpoint([tmp_path / "x.safetensors"]).tensors[name]
        assert torch.equal(mapped_files.require_whole(found, slices), expected)
        rows = [part.copy() for part in mapped_files.RowCutter().rows(found, slices)]
        joined = np.concatenate([part.reshape(-1) for part in rows]) if rows else np.empty(0, np.int32)
        assert np.array_equal(joined, expected.reshape(-1).view(torch.int32).numpy())
        if name == "a":  # 60 bytes a row of the source
            assert len(rows) == ceil(len(expected) / max(1, piece // 60))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    weights, model = weights_of(source)
    os.truncate(source / "model.safetensors", 5000)
    with pytest.raises(FxpruneError, match="ends within"):
        weights.write(model, tmp_path, plain=True, shard_size="1GB")


def test_products_with_large_synthetic_weights_are_sampled_alike_and_still_tell_layouts_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(synthetic_weights, "SAMPLED_SIZE", 1)
    monkeypatch.setattr(synthetic_weights, "SAMPLED_ROWS", 1)
    test_synthetic_weights_tell_8_heads_of_6_from_6_heads_of_8()
    x, weight = torch.randn(3, 100), torch.randn(100, 5)
    with synthetic_weights.sampled_products():
        sampled = x @ weight
        assert torch.equal(torch.nn.functional.linear(x, weight.t().contiguous()), sampled)
        assert torch.equal(torch.nn.functional.linear(x, weight.t(), torch.ones(5)), sampled + 1)
    assert not torch.allclose(sampled, x @ weight)


def test_a_width_that_no_value_of_the_config_gives_is_refused_where_a_plain_config_was_asked_for(
    tmp_path: Path,
) -> None:
    # GPT-2 derives the size of its heads from the width: three of four heads in a width of 32 cannot be said.
    source = write_checkpoint(tmp_path / "source", GPT2)
    api.apply(source, "random", ratio=0.25, out=tmp_path / "free")
    # A pass picks other counts then; a plan that is replayed leaves no choice.
    with pytest.raises(FxpruneError, match="no plain configuration describes the pruned model") as caught:
        api.apply(source, plan=tmp_path / "free", out=tmp_path / "out", form="uniform")
    assert caught.value.exit_code == 2
    assert "--form free" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "source"]
