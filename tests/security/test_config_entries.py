"""What a stranger's config.json may make transformers do: read values, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import ViTConfig, dynamic_module_utils

import fxprune
from fxprune.backends.huggingface.free_form import plain_config
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.model import build_meta, load_config, load_model, resolve

from .planted import plant, write_code, write_into
from .strangers import copied, write_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model")


def nested_code(folder: Path, ran: Path, reference: str = "evil.Evil") -> Path:
    """A vision encoder with a text decoder that has code of its own."""
    part = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8)
    decoder = part.to_dict() | {"auto_map": {"AutoModelForCausalLM": reference}, "_name_or_path": str(folder)}
    folder.mkdir()
    entries = {"encoder": part.to_dict(), "decoder": decoder | {"name_or_path": str(folder)}}
    named = {"model_type": "vision-encoder-decoder", "architectures": ["VisionEncoderDecoderModel"]}
    (folder / "config.json").write_text(json.dumps(named | entries | {"is_encoder_decoder": True}))
    write_code(folder / "evil.py", ran)
    return folder


def never(*_: object) -> str:
    raise AssertionError("the user was asked")


def test_code_of_a_part_is_refused(tmp_path: Path) -> None:
    folder = nested_code(tmp_path / "model", tmp_path / "ran")
    with pytest.raises(RequestError, match=r"code for a part of the model: 'decoder\.auto_map'") as caught:
        load_config(resolve(folder, weights=False))
    assert "--trust-remote-code" in (caught.value.hint or "")
    with pytest.raises(RequestError, match="code for a part"):  # fxprune's own file is no reason to run another
        Consent.of_written(folder, {}).keywords(folder)


def test_code_of_a_part_in_another_repository_is_refused_with_consent_too(tmp_path: Path) -> None:
    folder = nested_code(tmp_path / "model", tmp_path / "ran", "owner/name--evil.Evil")
    with pytest.raises(RequestError, match="another repository"):
        load_config(resolve(folder, weights=False, trust_remote_code=True))


def test_nobody_is_asked_about_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With consent for the directory its parts may be named, and transformers would ask for each again."""
    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    monkeypatch.setattr("builtins.input", never)
    source = resolve(nested_code(tmp_path / "model", tmp_path / "ran"), weights=False, trust_remote_code=True)
    config = load_config(source)
    with pytest.raises(RequestError, match="cannot build this model") as caught:
        build_meta(config, consent=source.consent)
    assert "trust_remote_code" in str(caught.value.__cause__)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_part_is_not_written() -> None:
    config = transformers.LlamaConfig(inner={"auto_map": {"AutoModel": "a--b.C"}, "kept": [{"auto_map": {}}]})
    assert plain_config(config).inner == {"kept": [{}]}


STEERING: dict[str, dict[str, Any]] = {
    "configuration_files": {"configuration_files": ["config.5.0.json"]},
    "configuration_files that is no list": {"configuration_files": "config.5.0.json"},
    "text_config.configuration_files": {"text_config": {"configuration_files": ["config.4.0.json"]}},
    "transformers_weights": {"transformers_weights": "adapter_model.bin"},
    "text_config.transformers_weights": {"text_config": {"transformers_weights": "other.safetensors"}},
    "attribute_map": {"attribute_map": {"foo": "_attn_implementation_internal"}, "foo": "owner/evil"},
    "sub_configs": {"sub_configs": {"a": 1}},
    "_auto_class": {"_auto_class": "AutoModel"},
    "to_json_file": {"to_json_file": 5},
    "get_text_config": {"get_text_config": None},
    "from_dict": {"from_dict": "x"},
    "use_return_dict": {"use_return_dict": False},
    "__class__": {"__class__": "x"},
    "text_config.__dict__": {"text_config": {"__dict__": {}}},
    "return_dict": {"return_dict": False},
    "attn_implementation flash": {"attn_implementation": "flash_attention_2"},
    "attn_implementation paged": {"_attn_implementation": "paged|flash_attention_3"},
    "attn_implementation by part": {"attn_implementation": {"": "sdpa_of_somebody"}},
    "experts_implementation": {"experts_implementation": "deepgemm"},
}


@pytest.mark.parametrize("what", STEERING)
def test_an_entry_that_is_no_value_is_refused(llama: Path, tmp_path: Path, what: str) -> None:
    folder = copied(llama, tmp_path / "model")
    write_into(folder / "config.json", **STEERING[what])
    with pytest.raises(RequestError, match=what.split(maxsplit=1)[0]) as caught:
        load_model(resolve(folder))
    assert caught.value.hint
    with pytest.raises(RequestError, match=what.split(maxsplit=1)[0]):
        fxprune.load(folder)


OTHER_FILE: dict[str, dict[str, Any]] = {
    "code of another repository": {"auto_map": {"AutoConfig": "owner/name--evil.C"}},
    "other weights": {"transformers_weights": "other.safetensors"},
    "a size": {"num_hidden_layers": 3_000_000},
}


@pytest.mark.parametrize("what", OTHER_FILE)
def test_what_is_read_is_the_file_that_is_checked(llama: Path, tmp_path: Path, what: str) -> None:
    """Whatever another file for this version of transformers holds, it is not chosen, with consent for code neither."""
    folder = copied(llama, tmp_path / "model")
    held = json.loads((folder / "config.json").read_text())
    write_into(folder / "config.5.0.json", **held | OTHER_FILE[what])
    assert load_config(resolve(folder, trust_remote_code=True)).num_hidden_layers == held["num_hidden_layers"]
    write_into(folder / "config.json", configuration_files=["config.5.0.json"])
    with pytest.raises(RequestError, match="'configuration_files': it makes transformers read another file"):
        load_config(resolve(folder, trust_remote_code=True))


def test_an_entry_of_a_part_that_is_no_value_is_refused(tmp_path: Path) -> None:
    folder = nested_code(tmp_path / "model", tmp_path / "ran")
    config = json.loads((folder / "config.json").read_text())
    del config["decoder"]["auto_map"]
    for entries, said in (({"to_dict": 1}, "to_dict"), ({"_attn_implementation": "a/b"}, "implementation")):
        (folder / "config.json").write_text(json.dumps(config | {"decoder": config["decoder"] | entries}))
        with pytest.raises(RequestError, match=said):
            load_config(resolve(folder, weights=False))


def test_what_real_models_have_in_their_configuration_is_read(llama: Path, tmp_path: Path) -> None:
    folder = copied(llama, tmp_path / "model")
    real: dict[str, Any] = {"return_dict": True, "torchscript": False, "use_cache": True, "output_attentions": False}
    real |= {"_name_or_path": "owner/name", "id2label": {"0": "update"}, "label2id": {"update": 0}, "attribute_map": {}}
    write_into(folder / "config.json", **real, attn_implementation="eager", torch_dtype="bfloat16")
    assert load_config(resolve(folder))._attn_implementation == "eager"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in the free form, of a Llama."""
    folder = tmp_path_factory.mktemp("free")
    model = write_model(folder / "model")
    free = {"out": folder / "out", "form": "free"}
    fxprune.apply(model, "magnitude", ratio=0.25, **free)  # type: ignore[arg-type]
    return folder / "out"


ATTENTION = "model.layers.0.self_attn"
SENSELESS: list[dict[str, Any]] = [
    *({"absent": {"model.layers.0.mlp": {"outputs": count, "cache": None}}} for count in (10**30, -3, True, 17)),
    *({"absent": {ATTENTION: {"outputs": 2, "cache": layer}}} for layer in (-30, -1, 2, 10**7, True)),
    *({"attributes": {ATTENTION: {"head_dim": [8, size]}}} for size in (0, -8, 10**5, True)),
    *({"attributes": {ATTENTION: {"layer_idx": [0, index]}}} for index in (10**7, -99, 1)),
    *({"attributes": {ATTENTION: {"num_key_value_groups": [2, size]}}} for size in (0, -1, 10**5)),
    {"attributes": {ATTENTION: {"config.num_attention_heads": [4, 0]}}},
    {"attributes": {"model": {"config.vocab_size": [64, 10**12]}}},
    {"attributes": {"model": {"training": [0, 1]}}},
    *(
        {"values": {f"{ATTENTION}.v_proj": held}}
        for held in (["makes", 0], ["makes", 7], ["makes", True], ["takes", 8])
    ),
    *({"values": {path: ["reads", 8]}} for path in (ATTENTION, "nowhere", "model.embed_tokens")),
    *({"values": {f"{ATTENTION}.v_proj": held}} for held in (None, [], ["makes"], [["makes"], 8], "makes")),
    {"attributes": {"model.embed_tokens": {"num_embeddings": [64, 0]}}},
]


@pytest.mark.parametrize("change", SENSELESS, ids=str)
def test_a_number_in_the_free_form_that_pruning_does_not_give(
    pruned: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "out"))
    entry = json.loads((folder / "config.json").read_text())["fxprune"]
    write_into(folder / "config.json", fxprune={**entry, **change})
    with pytest.raises(RequestError, match=r"config\.json (changes|says)|config\.json is damaged"):
        fxprune.load(folder)


def test_a_free_form_that_does_not_compute_is_an_error(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(pruned, tmp_path / "out"))
    with torch.no_grad():
        fxprune.load(folder)(input_ids=torch.zeros(1, 2, dtype=torch.long))
    entry = json.loads((folder / "config.json").read_text())["fxprune"]
    attributes = {**entry["attributes"], ATTENTION: {**entry["attributes"].get(ATTENTION, {}), "head_dim": [8, 3]}}
    write_into(folder / "config.json", fxprune={**entry, "attributes": attributes})
    (tmp_path / "text.txt").write_text("a b c a c b " * 50)
    words = ["eval", str(folder), "--text", str(tmp_path / "text.txt"), "--window", "8", "--windows", "1"]
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert "does not compute" in said
    assert "bug in fxprune" not in said


def test_a_model_with_code_of_its_own_is_still_read_with_consent(tmp_path: Path) -> None:
    source = resolve(plant(tmp_path / "model", tmp_path / "ran", model_type="evil"), trust_remote_code=True)
    assert type(load_config(source)).__name__ == "EvilConfig"
    assert (tmp_path / "ran").exists()


def test_numbers_that_json_does_not_have_are_read(tmp_path: Path) -> None:
    """transformers writes infinity as an object: a state space model has such a limit of its steps."""
    config = transformers.BambaConfig(num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    assert "__float__" in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert load_config(resolve(tmp_path, weights=False)).time_step_limit[1] == float("inf")


@pytest.mark.parametrize("tag", [{"__float__": "1"}, {"__float__": {"a": 1}}, {"__float__": "NaN", "__init__": 1}])
def test_other_objects_with_such_a_tag_are_refused(tag: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bamba", "time_step_limit": [0.0, tag]}))
    with pytest.raises(RequestError, match="no value of a configuration"):
        load_config(resolve(tmp_path, weights=False))
