"""Adapters of PEFT beside a model's weights: named, and refused where they cannot be merged."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import fxprune
from fxprune.api.benchmarking.process import TimingJob, serve
from fxprune.api.merging import directory
from fxprune.api.sources import open_source
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.model import load_model, resolve

from ...checkpoints import TIED, contents, write_checkpoint
from .adapted import KINDS, LORA, drawn, logits, pickled, with_adapter


def bench_in_this_process(model: Path) -> None:
    """What the process of a model does, and what becomes of its answer."""
    answers = io.StringIO()
    job = TimingJob(str(model), Consent.nothing(model)).to_json()
    serve(json.dumps({"job": job, "conditions": {"threads": 1, "prompt": 4, "new": 1}}), io.StringIO(), answers)
    told = json.loads(answers.getvalue())
    assert told["request"]
    raise RequestError(told["error"], told["hint"])


CALLS: dict[str, Callable[[Path, Path], object]] = {
    "trace": lambda model, _: fxprune.trace(model),
    "apply": lambda model, out: fxprune.apply(model, "magnitude", ratio=0.25, out=out),
    "a dry run": lambda model, _: fxprune.apply(model, "magnitude", ratio=0.25, dry_run=True),
    "export": fxprune.export,
    "eval": lambda model, _: fxprune.evaluate(model, ["some text"]),
    "bench": lambda model, _: bench_in_this_process(model),
    "load": lambda model, _: fxprune.load(model),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_adapter_beside_the_weights_is_named_and_refused(call: str, base: Path, tmp_path: Path) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    with pytest.raises(RequestError) as caught:
        CALLS[call](folder, tmp_path / "out")
    assert f"{folder} holds a model and an adapter (adapter_config.json: 'LORA', for " in caught.value.message
    assert caught.value.hint.startswith("merge ")
    assert ("--merge-adapter" in caught.value.hint) == (call != "load")
    assert not (tmp_path / "out").exists()


def test_what_transformers_would_load_by_itself_is_what_is_refused(base: Path, tmp_path: Path) -> None:
    """Why this matters: without a word transformers gives base plus adapter, and names no missing tensor."""
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded._hf_peft_config_loaded
    elsewhere = base / "adapter"  # as lora{keep_adapter} leaves one beside the model that it is merged into
    shutil.copytree(folder, elsewhere, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    try:
        assert not getattr(AutoModelForCausalLM.from_pretrained(base), "_hf_peft_config_loaded", False)
        assert resolve(base).directory == base
    finally:
        shutil.rmtree(elsewhere)


LONE = {
    "alone": (("config.json", "model.safetensors"), "but no config.json"),
    "with a configuration": (("model.safetensors",), "but no weights of a model"),
}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("case", LONE)
def test_an_adapter_without_its_base_says_so(case: str, merge: bool, base: Path, tmp_path: Path) -> None:
    removed, message = LONE[case]
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    for name in removed:
        (folder / name).unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base) + "\x1b[31m\u202e"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=message) as caught:
        fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=merge)
    assert f"{base}\\x1b[31m\\u202e" in caught.value.message
    assert caught.value.message.isprintable()
    assert "beside those of its base model" in caught.value.hint


def edited(folder: Path, **entries: Any) -> Path:
    """A directory whose ``adapter_config.json`` has other entries."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


def without_tensor(folder: Path) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def with_another_tensor(folder: Path) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def infinite(folder: Path) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[next(iter(tensors))].fill_(float("inf"))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def truncated(folder: Path) -> Path:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    return folder


def emptied(folder: Path) -> Path:
    (folder / "adapter_model.safetensors").unlink()
    return folder


def broken(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{")
    return folder


NOT_MERGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "prompts": (lambda folder: edited(folder, peft_type="PROMPT_TUNING"), "'PROMPT_TUNING'.* cannot merge this kind"),
    "prefixes": (lambda folder: edited(folder, peft_type="PREFIX_TUNING"), "'PREFIX_TUNING'.* cannot merge this kind"),
    "no kind": (lambda folder: edited(folder, peft_type=[1]), r"\[1\].* cannot merge this kind"),
    "a module to import": (
        lambda folder: edited(folder, megatron_config={"a": 1}, megatron_core="evil"), "PEFT imports a module",
    ),
    "a base that changes": (
        lambda folder: edited(folder, init_lora_weights="pissa"), "'pissa', which changes the base",
    ),
    "a trigger": (lambda folder: edited(folder, alora_invocation_tokens=[1]), "begins at certain tokens"),
    "a later option": (lambda folder: edited(folder, use_tomorrow=True), "'use_tomorrow', which this version of PEFT"),
    "other widths": (lambda folder: edited(folder, r=3), "does not fit this LlamaForCausalLM: .*size mismatch"),
    "other names": (lambda folder: edited(folder, target_modules=["nothing"]), "does not fit this LlamaForCausalLM"),
    "a tensor less": (without_tensor, "it holds no value for .*lora_B"),
    "a tensor more": (with_another_tensor, r"it holds .*layers\.9\..*, and the model does not"),
    "a pickle": (pickled, "adapter_model.bin is a pickle"),
    "no values": (emptied, "but no adapter_model.safetensors"),
    "half a file": (truncated, "adapter_model.safetensors is truncated or corrupt"),
    "no numbers": (infinite, "cannot be merged|NaN"),
    "no JSON": (broken, "adapter_config.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_MERGED)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(
    case: str, base: Path, tmp_path: Path, temporary: Path
) -> None:
    damage, message = NOT_MERGED[case]
    folder = damage(with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))[0])
    before = contents(folder)
    with pytest.raises(FxpruneError, match=message) as caught:
        fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=True)
    assert caught.value.hint
    assert contents(folder) == before
    assert not (tmp_path / "out").exists()
    assert not list(temporary.iterdir())


def test_a_pickled_adapter_is_merged_when_pickles_are_allowed(base: Path, tmp_path: Path) -> None:
    folder, adapted = with_adapter(base, tmp_path / "adapted", LoraConfig(**LORA))
    with open_source(pickled(folder), merge_adapter=True, allow_pickle=True) as source:
        torch.testing.assert_close(logits(load_model(source)), logits(adapted), rtol=1e-4, atol=1e-5)


TIED_KINDS = {
    "a low-rank one": LoraConfig(r=4, target_modules=["embed_tokens"]),
    "a whole one": LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "some tokens": LoraConfig(**LORA, trainable_token_indices=[1]),
}


@pytest.mark.parametrize("kind", TIED_KINDS)
def test_a_change_of_a_weight_in_two_places_is_refused(kind: str, tmp_path: Path) -> None:
    """With the adapter the two places differ; in a merged checkpoint they cannot."""
    source = write_checkpoint(tmp_path / "tied", TIED, dtype=torch.float32)
    folder = with_adapter(source, tmp_path / "adapted", TIED_KINDS[kind])[0]
    with pytest.raises(RequestError, match=r"embed_tokens.*, which other layers of the model share"):
        fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=True)


def test_room_for_the_copy_is_asked_for_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda _: type("", (), {"free": 1000})())
    with pytest.raises(RequestError, match=r"a merged copy of .* takes 0\.00 GB") as caught:
        fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=True)
    assert "TMPDIR" in caught.value.hint


def test_a_link_out_of_the_directory_is_refused(base: Path, tmp_path: Path) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer_extra.txt").symlink_to(tmp_path / "secret")
    (folder / "merges.txt").symlink_to("vocab.txt")
    (folder / "vocab.txt").write_text("a")
    with (
        pytest.raises(RequestError, match=r"tokenizer_extra\.txt is a link to .*, outside of the model directory"),
        open_source(folder, merge_adapter=True),
    ):
        pass
    (folder / "tokenizer_extra.txt").unlink()
    with open_source(folder, merge_adapter=True) as source:
        assert (source.directory / "merges.txt").read_text() == "a"


def test_out_never_replaces_the_directory_that_was_merged(base: Path, tmp_path: Path) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    before = contents(folder)
    for call in (
        lambda: fxprune.apply(folder, "magnitude", ratio=0.25, out=folder, force=True, merge_adapter=True),
        lambda: fxprune.export(folder, folder, force=True, merge_adapter=True),
    ):
        with pytest.raises(RequestError, match="contains the model that is being read"):
            call()
    assert contents(folder) == before


def wrapped(base: Path) -> Any:
    return drawn(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA))


def injected(base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(LoraConfig(**LORA))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("make", [wrapped, injected])
def test_the_adapter_of_a_loaded_model_is_refused_or_merged_into_a_copy(
    make: Callable[[Path], Any], base: Path, tmp_path: Path
) -> None:
    model = make(base)
    for call in (
        lambda: fxprune.trace(model),
        lambda: fxprune.apply(model, "magnitude", ratio=0.25, out=tmp_path / "out"),
        lambda: fxprune.evaluate(model, ["text"]),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert "merge_adapter=True" in caught.value.hint
    expected, names = logits(model), list(model.state_dict())
    with open_source(model, merge_adapter=True) as source:
        torch.testing.assert_close(logits(load_model(source)), expected, rtol=1e-4, atol=1e-5)
        assert source.name == "tiny (loaded model)"
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), expected)


def test_a_loaded_adapter_that_is_switched_off_is_not_merged(base: Path) -> None:
    model = injected(base)
    model.disable_adapters()
    with pytest.raises(RequestError, match="is switched off"):
        fxprune.trace(model, merge_adapter=True)


def test_a_merge_that_would_give_another_function_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    monkeypatch.setattr(peft.tuners.lora.layer.Linear, "merge", lambda *_, **__: None)
    with pytest.raises(FxpruneError, match="the merged layer differs by"):
        fxprune.apply(folder, "magnitude", ratio=0.25, out=tmp_path / "out", merge_adapter=True)


def test_an_onnx_directory_with_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    folder = with_adapter(base, tmp_path / "adapted", KINDS["lora"])[0]
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(RequestError, match="holds a model and an adapter"):
        fxprune.evaluate(folder, ["some text"], merge_adapter=True)
