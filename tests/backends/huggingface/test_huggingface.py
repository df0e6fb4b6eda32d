"""Hugging Face artifacts: written, reloaded by transformers alone, used by the programs that users use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from fxprune.backends.artifact import read_plan
from fxprune.backends.digests import sha256
from fxprune.backends.huggingface import weight_source
from fxprune.backends.huggingface.load import load
from fxprune.backends.huggingface.model_class import auto_class_of
from fxprune.backends.huggingface.save import SavedModel, SaveRequest, save
from fxprune.backends.verify import Job, Reference, VerificationError, verify
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.ir.plan import Plan
from fxprune.passes.shrink.module import shrink_module
from fxprune.runtime.consent import Consent
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference
from fxprune.tests.cuts import CUTS, Cut, example, llama_mha, llama_range, llama_residual, logits, shrunk

FORMS = {
    "llama_mha": ("uniform", "mistral"),
    "llama_gqa": ("uniform", "mistral"),
    "llama_queries": ("uniform", "llama"),
    "llama_range": ("free", "llama"),
    "llama_residual": ("uniform", "llama"),
    "qwen3": ("uniform", "qwen3"),
    "gpt2": ("free", "gpt2"),
    "gpt_neox": ("free", "gpt_neox"),
    "opt": ("free", "opt"),
    "phi3": ("uniform", "phi3"),
    "phi3_free": ("free", "phi3"),
    "falcon_multi_query": ("free", "falcon"),
    "falcon_grouped": ("free", "falcon"),
}


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the fresh process where a test is about something else."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {"skipped": True})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SavedModel, Reference]]:
    """One artifact per family; a single fresh process checks them all."""
    root = tmp_path_factory.mktemp("artifacts")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", lambda *_: {"skipped": True})
        for name, (form, _) in FORMS.items():
            make = CUTS.get(name.removesuffix("_free"), llama_residual)
            cut, details = shrunk(make)
            wanted = form if name.endswith("_free") else "auto"
            made[name] = (
                save(SaveRequest(model=cut.model, out=root / name, form=wanted, **details)),
                details["reference"],
            )
    return made


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Load as a user of the free form does."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    # What was imported from there would be looked into for the code of other models.
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.mark.usefixtures("real_processes")
def test_every_family_loads_in_a_fresh_process(artifacts: dict[str, tuple[SavedModel, Reference]]) -> None:
    forms = {name: (saved.form, saved.model_type) for name, (saved, _) in artifacts.items()}
    assert forms == FORMS
    jobs = [
        Job(Consent.of_written(saved.path, saved.code), reference, "AutoModelForCausalLM")
        for saved, reference in artifacts.values()
    ]
    for checks in verify(jobs):
        assert checks["logits_worst_difference"] <= LOGITS_TOLERANCE
        assert checks["cached_generate_equals_uncached"]


@pytest.mark.parametrize("name", FORMS)
def test_load(artifacts: dict[str, tuple[SavedModel, Reference]], name: str) -> None:
    saved, reference = artifacts[name]
    model = load(saved.path)
    assert relative_difference(logits(model.eval()), reference.logits) <= LOGITS_TOLERANCE
    plan = read_plan(saved.path)
    weights = load_file(saved.path / "model.safetensors")
    assert plan
    assert all(weights[tensor].shape[dim] == len(kept) for (tensor, dim), kept in plan.items())


@pytest.mark.parametrize("name", FORMS)
def test_every_safetensors_file_holds_weights(artifacts: dict[str, tuple[SavedModel, Reference]], name: str) -> None:
    """Runtimes such as vLLM read all of them, whatever an index says."""
    path = artifacts[name][0].path
    held = [tensor for file in path.glob("*.safetensors") for tensor in load_file(file)]
    assert held
    assert set(held) <= set(load(path).state_dict())
    assert len(held) == len(set(held))


def test_the_reports_say_why(artifacts: dict[str, tuple[SavedModel, Reference]]) -> None:
    assert artifacts["llama_mha"][0].retargeted.startswith("llama to mistral: LlamaConfig rejects")
    assert artifacts["llama_queries"][0].retargeted == ""
    assert artifacts["llama_gqa"][0].config_changes == {
        "intermediate_size": (96, 72),
        "num_attention_heads": (8, 6),
        "num_key_value_heads": (4, 3),
    }
    assert artifacts["phi3"][0].config_changes["head_dim"] == (None, 16)
    assert artifacts["llama_range"][0].why_free.startswith("widths differ between layers: model.layers.*.")
    assert "embed_dim" in artifacts["gpt2"][0].why_free
    assert artifacts["phi3_free"][0].why_free == "asked for"


@pytest.mark.parametrize("name", ["llama_range", "gpt2", "phi3_free"])
def test_the_free_form_survives_save_pretrained(
    artifacts: dict[str, tuple[SavedModel, Reference]], name: str, trusted: Callable[[Path], Any], tmp_path: Path
) -> None:
    saved, reference = artifacts[name]
    trusted(saved.path).save_pretrained(tmp_path / "again")
    again = trusted(tmp_path / "again").eval()
    assert relative_difference(logits(again), reference.logits) <= LOGITS_TOLERANCE
    again.set_attn_implementation("eager")
    assert relative_difference(logits(again), reference.logits) <= LOGITS_TOLERANCE
    assert relative_difference(logits(load(tmp_path / "again").eval()), reference.logits) <= LOGITS_TOLERANCE


def test_the_free_form_needs_the_flag(artifacts: dict[str, tuple[SavedModel, Reference]]) -> None:
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(artifacts["llama_range"][0].path)


def test_the_modelling_file_is_short_and_knows_no_fxprune(artifacts: dict[str, tuple[SavedModel, Reference]]) -> None:
    code = (artifacts["gpt2"][0].path / "modeling_fxprune.py").read_text()
    assert len(code.splitlines()) < 105  # two classes: the model, and the model without its head
    assert "Apache License" in code
    assert "import fxprune" not in code
    assert max(map(len, code.splitlines())) <= 120


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # read by peft
@pytest.mark.parametrize("name", ["llama_range", "gpt2"])
def test_lora_and_the_trainer_work_on_the_free_form(
    artifacts: dict[str, tuple[SavedModel, Reference]], name: str, trusted: Callable[[Path], Any], tmp_path: Path
) -> None:
    model = peft.get_peft_model(
        trusted(artifacts[name][0].path),
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", fan_in_fan_out=name == "gpt2"),
    )
    rows = [{"input_ids": row, "labels": row} for row in example()["input_ids"]]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False, learning_rate=0.1,
    )  # fmt: skip
    result = transformers.Trainer(model, arguments, train_dataset=rows).train()
    assert np.isfinite(result.training_loss)
    merged = model.merge_and_unload().eval()
    assert relative_difference(logits(merged), artifacts[name][1].logits) > 1e-3
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(trusted(tmp_path / "merged").eval()), logits(merged))


def source_directory(path: Path) -> Path:
    path.mkdir()
    llama_mha().model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "optimizer.pt"):
        (path / name).write_text(name)
    (path / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.5, "do_sample": true}')
    return path


READ_BESIDE = (
    "config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


@pytest.mark.usefixtures("unverified")
def test_the_record_and_the_companions(tmp_path: Path) -> None:
    source = source_directory(tmp_path / "source")
    cut, details = shrunk(llama_mha)
    save(SaveRequest(model=cut.model, out=tmp_path / "out", **{**details, "source": source}))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE", "README.md", "chat_template.jinja", "config.json", "fxprune.json", "fxprune.plan",
        "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5
    record = json.loads((out / "fxprune.json").read_text())
    assert record["source"] == {
        "name": "source",
        "sha256": {"model.safetensors": sha256(source / "model.safetensors")},
        "files": {name: sha256(source / name) for name in READ_BESIDE},
    }
    assert record["pipeline"] == "by hand"
    assert record["retargeted"].startswith("llama to mistral")
    assert record["config_changes"]["num_attention_heads"] == [4, 3]
    assert record["files"] == {path.name: sha256(path) for path in sorted(out.iterdir()) if path.name != "fxprune.json"}
    assert str(tmp_path) not in (out / "fxprune.json").read_text() + (out / "config.json").read_text()


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("make", [llama_mha, llama_range])
def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, make: Callable[[], Cut]) -> None:
    for name in ("one", "two"):
        cut, details = shrunk(make)
        save(SaveRequest(model=cut.model, out=tmp_path / name, **details))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("make", [llama_mha, llama_range])
def test_shards_and_a_half_precision(tmp_path: Path, make: Callable[[], Cut]) -> None:
    cut, details = shrunk(make)
    cut.model.to(torch.bfloat16)
    save(SaveRequest(model=cut.model, out=tmp_path / "out", **details, shard_size="30KB"))
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    model = load(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, cut.model.get_parameter(name))


@pytest.mark.usefixtures("unverified")
def test_a_free_artifact_is_cut_again(tmp_path: Path, artifacts: dict[str, tuple[SavedModel, Reference]]) -> None:
    model = load(artifacts["gpt2"][0].path).eval()
    cut = Cut(model)
    keep = list(range(96))
    for layer in range(2):
        cut.rows(1, keep, f"transformer.h.{layer}.mlp.c_fc.weight")
        cut.rows(0, keep, f"transformer.h.{layer}.mlp.c_fc.bias", f"transformer.h.{layer}.mlp.c_proj.weight")
    extents = cut.extents()
    repairs = shrink_module(model, cut.plan(), extents, example())
    reference = Reference(example(), logits(model))
    details = {"plan": cut.plan(), "repairs": repairs, "quantities": extents[""], "reference": reference}
    saved = save(SaveRequest(model=model, out=tmp_path / "out", source=artifacts["gpt2"][0].path, report={}, **details))
    assert saved.form == "free"
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["fxprune"]
    assert entry["attributes"]["transformer.h.1.mlp.c_fc"] == {"nf": [256, 96]}
    assert entry["attributes"]["transformer.h.1.attn"]["split_size"] == [64, 48]
    assert torch.equal(logits(load(tmp_path / "out").eval()), reference.logits)


def test_a_wrong_reference_is_refused_and_the_old_directory_stays(tmp_path: Path) -> None:
    cut, details = shrunk(llama_mha)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "old"}')
    wrong = details["reference"].logits.clone()
    wrong[0, 0, 0] += 3 * LOGITS_TOLERANCE * wrong.abs().max()
    details["reference"] = Reference(example(), wrong)
    with pytest.raises(
        VerificationError, match=r"logits differ from the graph's by 3e-05 of their scale \(allowed 1e-05"
    ):
        save(SaveRequest(model=cut.model, out=out, force=True, **details))
    assert (out / "config.json").read_text() == '{"model_type": "old"}'
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("unverified")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, details = shrunk(llama_mha)

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", full)
    with pytest.raises(FxpruneError, match="the disk is full"):
        save(SaveRequest(model=cut.model, out=tmp_path / "out", **details))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("LlamaForCausalLM", "AutoModelForCausalLM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("WhisperForConditionalGeneration", "AutoModelForSpeechSeq2Seq"),
        ("Wav2Vec2ForCTC", "AutoModelForCTC"),
        ("DetrForObjectDetection", "AutoModelForObjectDetection"),
        ("CLIPModel", "AutoModel"),
        ("GPT2DoubleHeadsModel", "GPT2DoubleHeadsModel"),  # none loads it
    ],
)
def test_the_auto_class_of_a_task(name: str, auto: str) -> None:
    assert auto_class_of(getattr(transformers, name)) == auto


def test_requests_that_are_refused(tmp_path: Path) -> None:
    cut, details = shrunk(llama_range)
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError, match="there already exists"):
        save(SaveRequest(model=cut.model, out=tmp_path / "there", **details))
    with pytest.raises(RequestError, match="unknown --form 'flat'"):
        save(SaveRequest(model=cut.model, out=tmp_path / "out", form="flat", **details))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"no plain configuration describes .*: widths differ between layers"):
        save(SaveRequest(model=cut.model, out=tmp_path / "out", form="uniform", **details))
    with pytest.raises(RequestError, match="Linear is neither a class of transformers nor"):
        save(SaveRequest(model=nn.Linear(2, 2), out=tmp_path / "out", **details))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no Auto class of transformers loads PreTrainedModel"):
        auto_class_of(transformers.PreTrainedModel)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.rotary_emb.inv_freq",
            "units were removed from 'model.rotary_emb.inv_freq', which checkpoints do not store",
        ),
        ("extra", "LlamaForCausalLM do not have the same tensors: 'extra.weight'"),
    ],
)
def test_what_the_free_form_cannot_hold(tmp_path: Path, name: str, message: str) -> None:
    cut, details = shrunk(llama_range)
    if name == "extra":
        cut.model.extra = nn.Linear(2, 2, bias=False)
    else:
        details["plan"] = Plan(slices={**cut.slices, (name, 0): np.array([0])})
    with pytest.raises(FxpruneError, match=message):
        save(SaveRequest(model=cut.model, out=tmp_path / "out", form="free", **details))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, RequestError, "config.json does not exist"),
        ({"config.json": "{"}, RequestError, "config.json is damaged"),
        (
            {"config.json": '{"model_type": "llama"}'},
            RequestError,
            "'architectures' is None, which",
        ),
        (
            {"config.json": '{"model_type": "llama", "architectures": ["Mine"]}'},
            RequestError,
            r"'architectures' is \['Mine'\], which transformers",
        ),
    ],
)
def test_directories_that_do_not_load(
    tmp_path: Path, files: dict[str, str], error: type[FxpruneError], message: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        load(tmp_path)


@pytest.mark.usefixtures("unverified")
def test_weights_that_do_not_fit_do_not_load(tmp_path: Path) -> None:
    cut, details = shrunk(llama_mha)
    out = save(SaveRequest(model=cut.model, out=tmp_path / "out", **details)).path
    weights = load_file(out / "model.safetensors")
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FxpruneError, match=r"out has missing keys: model.norm.weight"):
        load(out)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(FxpruneError, match=r"cannot load .*out: "):
        load(out)
