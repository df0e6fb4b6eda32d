"""Sizes that no model has, or that the checkpoint does not bear out, are refused before anything is made of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

import fxprune
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.size_limits import SizeLimit, check_counts
from fxprune.tracer.fitting import check_fit
from fxprune.tracer.model import build_meta, load_config, resolve

from .strangers import config, copied, write_model

SECONDS, BYTES = 20, 1_500_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("sizes") / "model")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes") / "gpt2"
    tiny = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=26, n_positions=16)
    transformers.GPT2LMHeadModel(tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def cheap() -> Iterator[None]:
    """What is refused takes little time, and little memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


HUGE: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1,000,000,000, more than 10,000"),
    ({"num_hidden_layers": 9_999}, "more than 6,200 modules, more than its weights belong to"),
    ({"hidden_size": 10**12, "head_dim": 8}, "more than .* parameters, more than its weights belong to"),
    ({"hidden_size": 10**7, "head_dim": 8}, "more than .* parameters, more than its weights belong to"),
    ({"vocab_size": 10**10}, "more than .* parameters, more than its weights belong to"),
    ({"intermediate_size": 10**15}, "more than .* parameters, more than its weights belong to"),
    ({"num_attention_heads": 10**7}, "'num_attention_heads' is 10,000,000, more than 1,000,000"),
    ({"num_hidden_layers": 10**400}, r"'num_hidden_layers' is about 10\^400, more than"),
    ({"num_labels": 10**9}, "'num_labels' is 1,000,000,000"),
    ({"hidden_size": 2**63}, "cannot build this model|not a valid model configuration"),
]

SENSELESS: list[dict[str, Any]] = [
    {name: value}
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
    for value in (0, -1, True, "8", 2.5, [8], {"a": 1})
]


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("changes", "message"), HUGE, ids=[str(row[0])[:40] for row in HUGE])
def test_a_size_that_the_checkpoint_does_not_bear_out(
    model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copied(model, tmp_path / "model")
    config(**changes)(folder)
    with pytest.raises(RequestError, match=message) as caught:
        check_fit(resolve(folder))
    assert caught.value.hint


@pytest.mark.usefixtures("cheap")
def test_a_benchmark_has_the_limit_too(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    config(num_hidden_layers=9_999)(folder)
    started = time.monotonic()
    with pytest.raises(RequestError, match="more than its weights belong to"):
        fxprune.bench(folder, prompt=2, new=1, rounds=1, threads=1)
    assert time.monotonic() - started < SECONDS


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("changes", SENSELESS, ids=str)
def test_a_size_that_is_none(model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = copied(model, tmp_path / "model")
    config(**changes)(folder)
    with pytest.raises(FxpruneError):
        fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1,000,000,000"),
        ({"hidden_size": 10**12}, "more than .* parameters, more than any known model has"),
        ({"intermediate_size": 10**13}, "more than .* parameters, more than any known model has"),
        ({"vocab_size": 0}, "'vocab_size' is 0, less than 1"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0, less than 1"),
        ({"vocab_size": -5}, "'vocab_size' is -5, less than 1"),
    ],
    ids=str,
)
def test_without_a_checkpoint_there_is_a_bound_too(
    model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = copied(model, tmp_path / "model")
    config(**changes)(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=message):
        fxprune.trace(folder)


@pytest.mark.usefixtures("cheap")
def test_a_context_of_any_length(model: Path, gpt2: Path, tmp_path: Path) -> None:
    """Tables of rotary positions are made as long as a text is; learned positions are parameters."""
    long = copied(model, tmp_path / "long")
    config(max_position_embeddings=10**7)(long)
    check_fit(resolve(long))
    assert fxprune.trace(long).groups
    learned = copied(gpt2, tmp_path / "gpt2")
    config(n_positions=10**12)(learned)
    with pytest.raises(RequestError, match=r"more than .* parameters, more than its weights belong to"):
        check_fit(resolve(learned))


def test_parts_of_a_model_and_lists_are_looked_through() -> None:
    for raw in ({"text_config": {"n_layer": 20_000}}, {"depths": [2, 2, 20_000]}, {"a": [{"num_experts": 10**7}]}):
        with pytest.raises(RequestError, match="more than 1"):
            check_counts(raw, "config.json")
    check_counts(
        {"num_experts": 0, "num_labels": 21_843, "layers_block_type": ["x"], "sliding_window": -1}, "config.json"
    )


def test_a_limit_counts_what_is_built(model: Path) -> None:
    loaded = load_config(resolve(model))
    held = build_meta(loaded)
    modules, parameters = sum(1 for _ in held.modules()) - 1, sum(p.numel() for p in held.parameters())
    assert build_meta(loaded, limit=SizeLimit(modules=modules, parameters=parameters)) is not None
    for limit in (SizeLimit(modules=modules - 1), SizeLimit(parameters=parameters - 1), SizeLimit(buffer=1)):
        with pytest.raises(RequestError, match="more than any known model has"):
            build_meta(loaded, limit=limit)


def test_loading_what_was_written_has_the_limit_too(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    config(vocab_size=10**10)(folder)
    with pytest.raises(RequestError, match="more than its weights belong to"):
        fxprune.load(folder)
