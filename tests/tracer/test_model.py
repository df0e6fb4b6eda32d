"""MODEL on the command line: what is found, what is loaded, and everything that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.checkpoint import weight_files
from fxprune.tracer.model import ModelSource, build_meta, load_config, load_model, load_tokenizer, resolve

from ..corpora import word_tokenizer

CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32, dtype="bfloat16"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 Llama with a tokenizer, as files."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(CONFIG).to(torch.bfloat16).save_pretrained(directory)
    word_tokenizer(("a", "b")).save_pretrained(directory)
    return directory


@pytest.fixture
def model_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy of ``saved`` that a test may break."""
    target = tmp_path / "model"
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_weights_load_as_float32_and_in_evaluation_mode(saved: Path) -> None:
    model = load_model(resolve(saved))
    stored = load_file(saved / "model.safetensors")
    assert not model.training
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, stored["lm_head.weight"].float())


def test_a_meta_model_has_shapes_no_memory_and_leaves_the_config_alone(saved: Path) -> None:
    config = load_config(resolve(saved, weights=False))
    model = build_meta(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.lm_head.weight.shape == (32, 16)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert (model.dtype, config.dtype) == (torch.float32, torch.bfloat16)


def test_a_config_alone_is_enough_for_shapes(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    source = resolve(model_dir, weights=False)
    assert build_meta(load_config(source)).config.num_hidden_layers == 2


def test_the_tokenizer_loads(saved: Path) -> None:
    assert load_tokenizer(resolve(saved))("a b")["input_ids"] == [0, 1]


def test_a_hub_id_becomes_a_directory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "owner/tiny"
        wanted.append(allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/tiny", weights=False) == ModelSource(
        name="owner/tiny", directory=saved, consent=Consent.nothing(saved)
    )
    assert load_model(resolve("owner/tiny")).config.hidden_size == 16
    assert ["*.safetensors" in patterns for patterns in wanted] == [False, True]
    assert not any("*.bin" in pattern for patterns in wanted for pattern in patterns)


def test_shards_are_all_checked(model_dir: Path) -> None:
    model = LlamaForCausalLM(CONFIG)
    (model_dir / "model.safetensors").unlink()
    model.save_pretrained(model_dir, max_shard_size="10kB")
    shards = sorted(model_dir.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert weight_files(model_dir) == tuple(shards)
    assert torch.equal(load_model(resolve(model_dir)).lm_head.weight, model.lm_head.weight)
    shards[-1].unlink()
    with pytest.raises(RequestError, match=f"{shards[-1].name} is missing"):
        resolve(model_dir)


def as_pickle(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def test_a_pickle_is_read_when_allowed(saved: Path, model_dir: Path) -> None:
    as_pickle(model_dir)
    model = load_model(resolve(model_dir, allow_pickle=True))
    assert torch.equal(model.lm_head.weight, load_file(saved / "model.safetensors")["lm_head.weight"].float())


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def garble(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def empty(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        if name.endswith("index.json"):
            (directory / "model.safetensors").unlink()
        (directory / name).write_text(text)

    return act


def config(**changes: object) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return act


def weights(**changes: object) -> Callable[[Path], None]:
    """Replace tensors by others, or take them out with None."""

    def act(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file) | changes
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, {"format": "pt"})

    return act


def nothing(directory: Path) -> None:
    assert directory.is_dir()


OWN_CODE = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}

REFUSED: list[tuple[Callable[[Path], None], type[FxpruneError], str, str]] = [
    (remove("config.json"), RequestError, "has no config.json", "a Hub id, or demo"),
    (remove("model.safetensors"), RequestError, "holds no weights", "model.safetensors.index.json"),
    (truncate, RequestError, "model.safetensors is truncated or corrupt", "download the model again"),
    (garble, RequestError, "model.safetensors is truncated or corrupt", "download the model again"),
    (empty, RequestError, r"is truncated or corrupt: .* \(0 bytes on disk\)", "download the model again"),
    (
        write("model.safetensors.index.json", "[]"),
        RequestError,
        "index.json is damaged: it is not a JSON object",
        "again",
    ),
    (as_pickle, RequestError, "pytorch_model.bin is a pickle", "--allow-pickle"),
    (write("config.json", '{"model_type"'), RequestError, "config.json is damaged: Expecting", "again"),
    (write("config.json", "[]"), RequestError, "config.json is damaged: it is not a JSON object", "again"),
    (
        config(model_type="lamma"),
        RequestError,
        "does not support the model type 'lamma'",
        "give a model that transformers supports",
    ),
    (
        config(model_type="vit"),
        RequestError,
        "names no matching class of transformers: LlamaForCausalLM",
        "architectures",
    ),
    (
        config(model_type="own", auto_map=OWN_CODE),
        RequestError,
        "needs its own code: own.OwnModel",
        "--trust-remote",
    ),
    (config(quantization_config={"quant_method": "gptq"}), RequestError, r"is quantised \(gptq\)", "original weights"),
    (
        config(hidden_size="wide"),
        RequestError,
        "is not a valid model configuration: .*hidden_size.*wide",
        "correct the file",
    ),
    (config(hidden_act="nope"), FxpruneError, "cannot be loaded: .*nope", "belong to the config"),
    (
        weights(**{"model.norm.weight": None, "model.extra": torch.zeros(2)}),
        FxpruneError,
        r"tensors 1 missing \(model.norm.weight\); 1 unexpected \(model.extra\)$",
        "belong to this config",
    ),
    (
        config(intermediate_size=20),
        FxpruneError,
        r"6 of another shape \(model.layers.0.mlp.*, \.\.\.\)",
        "belong to this config",
    ),
    (
        config(intermediate_size=20, auto_map=OWN_CODE),
        FxpruneError,
        "6 of another shape",
        "then pass --trust-remote-code",
    ),
    (
        remove("tokenizer.json"),
        RequestError,
        "has no readable tokenizer: there is no tokenizer.json in it",
        "copy tokenizer.json",
    ),
]


def load_everything(directory: Path) -> None:
    load_model(resolve(directory))
    load_tokenizer(resolve(directory))


@pytest.mark.parametrize(("breaks", "kind", "message", "hint"), REFUSED, ids=[row[2] for row in REFUSED])
def test_a_broken_model_is_refused(
    model_dir: Path, breaks: Callable[[Path], None], kind: type[FxpruneError], message: str, hint: str
) -> None:
    breaks(model_dir)
    with pytest.raises(FxpruneError, match=message) as caught:
        load_everything(model_dir)
    assert type(caught.value) is kind
    assert hint in caught.value.hint


def test_a_model_that_cannot_be_built_is_refused(model_dir: Path) -> None:
    config(hidden_act="nope")(model_dir)
    loaded = load_config(resolve(model_dir, weights=False))
    with pytest.raises(RequestError, match=r"cannot build this model: .*nope") as caught:
        build_meta(loaded)
    assert caught.value.hint == "correct the config"


@pytest.mark.parametrize(
    ("name", "failure", "message", "hint"),
    [
        ("./nowhere", None, "there is no directory './nowhere'", "owner/name"),
        ("/nowhere/at/all", None, "there is no directory '/nowhere/at/all'", "owner/name"),
        (__file__, None, "is a file, not a model directory", "config.json"),
        ("owner/tiny", LocalEntryNotFoundError("offline"), "the Hub cannot be reached", "give its directory"),
        ("owner/tiny", OSError("no route"), "the Hub cannot be reached", "give its directory"),
        ("owner/ti ny", HFValidationError("Repo id must"), "neither a local directory nor a model", "hf auth login"),
    ],
)
def test_a_model_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, failure: Exception | None, message: str, hint: str
) -> None:
    def download(*_: object, **__: object) -> str:
        assert failure is not None, "a path must not be looked up on the Hub"
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(RequestError, match=message) as caught:
        resolve(name)
    assert hint in caught.value.hint
