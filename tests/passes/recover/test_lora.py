"""LoRA recovery: it learns, merges to what was trained, and leaves a plain model behind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.model.forward import logits_of
from fxprune.passes.recover import adapters, trainer
from fxprune.passes.recover.adapters import Adapter, projection_modules
from fxprune.passes.recover.lora import Lora
from fxprune.passes.recover.training import pad

from ...corpora import RepeatedTokens, UnequalRows
from ...decoders import gpt2, llama
from ...states import state_of

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"lr": 0.02, "batch": 4, "micro_batch": 2, "length": 12, "steps": 12}


def recover(model: torch.nn.Module, data: Any = None, **options: Any) -> dict[str, Any]:
    state = state_of(None, model, recovery=data or RepeatedTokens())
    Lora(**OPTIONS | options).run(state)
    assert state.subject.model is model
    report: dict[str, Any] = state.ledger.report["lora"]
    return report


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("build", [llama, gpt2])
def test_training_lowers_the_loss_and_leaves_a_plain_model(build: Any) -> None:
    model = build()
    before = weights(model)
    modules = {name: module for name, module in model.named_modules()}
    flags = {name: index % 2 == 0 for index, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])

    report = recover(model)

    assert len(report["loss"]) == report["steps"] == 12
    assert report["loss"][-1] < 0.7 * report["loss"][0]
    assert report["tokens"] == 6 * 7 * 12  # an epoch is two steps: of four windows, and of the three left
    assert report["seconds"] > 0
    assert dict(model.named_modules()) == modules  # the same objects, no wrapper left
    assert not hasattr(model, "peft_config")
    assert not model.training
    assert model.config.use_cache
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    after = model.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {f"{name}.weight" for name in report["projections"]}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own, called from here
@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_merged_model_is_the_one_that_was_trained(build: Any) -> None:
    """The kept adapter, put by PEFT on an untouched copy of the model, gives the merged model's logits."""
    model, original = build(), build()
    report = recover(model, keep_adapter=True)
    adapter = report["adapter"]
    assert isinstance(adapter, Adapter)
    adapted = peft.get_peft_model(original, peft.LoraConfig.from_peft_type(**adapter.config))
    result = peft.set_peft_model_state_dict(adapted, adapter.tensors)
    assert not result.unexpected_keys
    ids = torch.arange(20)[None]
    with torch.no_grad():
        untrained, trained, merged = build()(ids).logits, adapted.eval()(ids).logits, model(ids).logits
    assert (trained - merged).abs().max() < 1e-4
    assert (untrained - merged).abs().max() > 0.1
    assert report["merge_difference"] < 1e-4


def test_the_adapter_is_kept_only_if_asked_for() -> None:
    assert "adapter" not in recover(llama(), steps=1)


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)  # whatever the process has drawn before
        model = llama()
        recover(model, steps=3, seed=seed)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_the_random_state_of_the_process_is_left_alone() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    model = llama()
    torch.set_rng_state(torch.tensor(states[2], dtype=torch.uint8))
    recover(model, steps=1)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_nothing_is_printed_or_left_on_disk(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recover(llama(), steps=2)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_half_precision_weights_are_trained_in_float32_and_stay_half() -> None:
    model = llama(tied=True).half()
    before = weights(model)
    report = recover(model)
    after = model.state_dict()
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert report["merge_difference"] < 1e-4
    assert report["loss"][-1] < 0.7 * report["loss"][0]
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bfloat16_arithmetic_keeps_the_weights_dtype() -> None:
    model = llama()
    report = recover(model, dtype="bfloat16")
    assert report["loss"][-1] < 0.7 * report["loss"][0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_rows_of_unequal_length_train_over_epochs() -> None:
    report = recover(llama(), UnequalRows(), steps=0, epochs=3, batch=4)
    assert report["steps"] == 3 * 2
    assert report["tokens"] == 3 * sum(len(row["input_ids"]) for row in UnequalRows().examples(12))


def test_padding_is_hidden_and_not_learned() -> None:
    batch = pad([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, -100]]
    model = llama()
    with torch.no_grad():
        padded = model(**pad([{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3, 4, 5], "labels": [3, 4, 5]}]))
        alone = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in ([1, 2], [3, 4, 5])]
    assert padded.loss.item() == pytest.approx((alone[0] + 2 * alone[1]).item() / 3, rel=1e-5)


def test_accumulation_equals_one_large_batch() -> None:
    results = []
    for micro_batch in (1, 4):
        model = llama()
        recover(model, UnequalRows(), steps=4, micro_batch=micro_batch, dropout=0.0)
        results.append(weights(model))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=0, atol=1e-5)


class Shared(torch.nn.Module):
    """Two projections over one matrix, one of their own, one of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(6, 4)
        self.tied = torch.nn.Linear(4, 6)
        self.tied.weight = self.embedding.weight
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = torch.nn.LayerNorm(4)
        self.plain, self.transposed = torch.nn.Linear(4, 5), Conv1D(5, 4)


def test_projections_are_every_matrix_of_its_own_but_the_embeddings() -> None:
    assert projection_modules(Shared()) == ["plain", "transposed"]
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    expected = [f"model.layers.{layer}.{kind}" for layer in range(2) for kind in kinds]
    assert projection_modules(llama()) == projection_modules(llama(tied=True)) == expected
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert projection_modules(gpt2()) == [f"transformer.h.{layer}.{kind}" for layer in range(2) for kind in kinds]


def test_only_the_named_projections_are_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT matches names as suffixes; a projection whose name ends like another's must not be hit."""
    model = llama()
    layers = model.model.layers
    model.add_module("layers", torch.nn.ModuleList([torch.nn.Module()]))
    model.layers[0].q_proj = torch.nn.Linear(2, 2)
    layers[0].self_attn.layers = torch.nn.ModuleList([torch.nn.Module()])
    layers[0].self_attn.layers[0].q_proj = torch.nn.Linear(2, 2)
    before = weights(model)
    monkeypatch.setattr(adapters, "projection_modules", lambda _: ["model.layers.0.mlp.up_proj", "layers.0.q_proj"])
    config = adapters._config(Lora(), model, ["model.layers.0.mlp.up_proj", "layers.0.q_proj"])
    assert isinstance(config.target_modules, str)
    recover(model, steps=2)
    after = model.state_dict()
    assert {n for n in after if not torch.equal(after[n], before[n])} == {"model.layers.0.mlp.up_proj.weight"}


def test_a_loss_that_is_not_finite_stops_the_training_and_restores_the_model() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    before = weights(model)
    with pytest.raises(FxpruneError, match="recovery training failed: loss is nan at step 1") as caught:
        recover(model)
    assert caught.value.exit_code == 1
    assert_untouched(model, before)


def test_a_last_step_that_breaks_the_adapters_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    before = weights(model)

    def sabotage(adapted: peft.PeftModel, *_: object) -> None:
        trainable = next(p for p in adapted.parameters() if p.requires_grad)
        trainable.data[0, 0] = float("inf")

    monkeypatch.setattr(trainer, "train", sabotage)
    with pytest.raises(FxpruneError, match=r"'.*lora_A.*' is not finite after the last step"):
        recover(model)
    assert_untouched(model, before)


def test_an_interruption_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    before = weights(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recover(model)
    assert_untouched(model, before)


def assert_untouched(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert not hasattr(model, "peft_config")


def test_a_wrong_merge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = peft.PeftModel.merge_and_unload if hasattr(peft.PeftModel, "merge_and_unload") else None
    assert merge is None  # it lives on the tuner, which is what is broken here
    from peft.tuners.lora import LoraModel

    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(FxpruneError, match=r"the merged model.layers.0.\S+ differs from the trained one by"):
        recover(llama())


def test_a_model_that_enlarges_roundings_is_merged_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections are compared, each on its own inputs, and not what a whole model makes of their last digits."""
    calls = iter(range(100))
    monkeypatch.setattr(adapters, "logits_of", lambda model, ids: logits_of(model, ids) + next(calls))
    assert recover(llama(), steps=2)["merge_difference"] == pytest.approx(1, abs=1e-3)


def test_what_peft_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "projection_modules", lambda _: ["model.norm"])
    with pytest.raises(FxpruneError, match=r"PEFT cannot adapt this LlamaForCausalLM: Target module"):
        recover(llama())


def test_no_data_is_an_error() -> None:
    with pytest.raises(RequestError, match="lora has no text to train on") as caught:
        Lora().run(state_of(None, llama()))
    assert "--data" in caught.value.hint


def test_a_module_that_is_no_causal_lm_is_an_error() -> None:
    with pytest.raises(RequestError, match="lora cannot train a Linear"):
        recover(torch.nn.Linear(2, 2))


def test_a_model_without_projections_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "projection_modules", lambda _: [])
    with pytest.raises(RequestError, match="LlamaForCausalLM has no projection that lora could adapt"):
        recover(llama())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "lora: r=0 is below 1"),
        ({"alpha": 0}, "lora: alpha=0 is below 1"),
        ({"epochs": 0}, "lora: epochs=0 is below 1"),
        ({"batch": 0}, "lora: batch=0 is below 1"),
        ({"micro_batch": 0}, "lora: micro_batch=0 is below 1"),
        ({"length": 1}, "lora: length=1 is below 2"),
        ({"steps": -1}, "lora: steps=-1 is below 0"),
        ({"warmup": -1}, "lora: warmup=-1 is below 0"),
        ({"seed": -1}, "lora: seed=-1 is outside [0, 4294967296)"),
        ({"seed": 2**32}, "lora: seed=4294967296 is outside [0, 4294967296)"),
        ({"dropout": 1.0}, "lora: dropout=1 is outside [0, 1)"),
        ({"lr": 0.0}, "lora: lr=0 is not above 0"),
        ({"lr": float("nan")}, "lora: lr=nan is not finite"),
        ({"dtype": "float16"}, "lora: dtype=float16 is not supported"),
        ({"batch": 6}, "lora: batch=6 is not a multiple of micro_batch=4"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Lora(**options).check()
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("r", 0, 1), ("alpha", 0, 1), ("epochs", 0, 1), ("batch", 0, 1), ("micro_batch", 0, 1), ("length", 1, 2),
        ("steps", -1, 0), ("warmup", -1, 0), ("seed", -1, 0), ("seed", 2**32, 2**32 - 1), ("dropout", -0.01, 0.0),
        ("dropout", 1.0, 0.99), ("lr", 0.0, 5e-324), ("lr", float("inf"), 1e308), ("dtype", "float16", "bfloat16"),
        ("batch", 6, 8),
    ],
)  # fmt: skip
def test_the_next_sensible_value_is_taken(name: str, wrong: Any, right: Any) -> None:
    assert (refuses(**{name: wrong}), refuses(**{name: right}), refuses()) == (True, False, False)


def refuses(**options: Any) -> bool:
    try:
        Lora(**options).check()
    except RequestError:
        return True
    return False


def test_a_batch_below_a_micro_batch_is_read_at_once() -> None:
    report = recover(llama(), batch=2, micro_batch=4, steps=3)
    assert report["tokens"] == 3 * 2 * 12
