"""Tensors in a dtype that cannot be kept are refused by name; what a model holds as integers, or in full, is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import fxprune
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.tracer.fitting import check_fit
from fxprune.tracer.model import resolve

from .strangers import Damage, config, copied, tensors, write_model

WEIGHT = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("dtypes") / "model")


def stored_as(dtype: torch.dtype, name: str = WEIGHT) -> Damage:
    """One tensor in another dtype."""
    return tensors(lambda held: held.update({name: held[name].float().to(dtype)}))


def beside(**added: torch.Tensor) -> Damage:
    """What a quantisation leaves beside a weight."""
    owner = WEIGHT.removesuffix(".weight")
    return tensors(lambda held: held.update({f"{owner}.{name}": tensor.clone() for name, tensor in added.items()}))


SCALE = torch.ones(48)
PACKED = torch.ones(8, 48, dtype=torch.int32)

REFUSED: list[tuple[str, Damage, str]] = [
    ("int8", stored_as(torch.int8), "'model.layers.0.mlp.up_proj.weight' in I8"),
    ("float8 e4m3", stored_as(torch.float8_e4m3fn), "up_proj.weight' in F8_E4M3, which cannot be kept"),
    ("complex64", stored_as(torch.complex64), "up_proj.weight' in C64, which cannot be kept"),
    ("bool", stored_as(torch.bool), "up_proj.weight' in BOOL"),
    # Neighbours.
    ("float8 e5m2", stored_as(torch.float8_e5m2), "F8_E5M2, which cannot be kept"),
    ("uint8, a norm", stored_as(torch.uint8, "model.norm.weight"), "'model.norm.weight' in U8"),
    ("int64, the embedding", stored_as(torch.int64, "model.embed_tokens.weight"), "embed_tokens.weight' in I64"),
    ("scales of int8", beside(SCB=SCALE), "is quantised.*SCB"),
    ("scales of float8", beside(weight_scale_inv=SCALE), "is quantised.*weight_scale_inv"),
    ("GPTQ", beside(qweight=PACKED, qzeros=PACKED, scales=SCALE), "is quantised.*qweight"),
    ("compressed-tensors", beside(weight_packed=PACKED, weight_shape=SCALE), "is quantised.*weight_packed"),
    ("scales of packed numbers", beside(blocks=PACKED, scales=SCALE), "is quantised.*scales"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_dtype_that_cannot_be_kept_is_refused(model: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = copied(model, tmp_path / "model")
    damage(folder)
    with pytest.raises(RequestError, match=message) as caught:
        check_fit(resolve(folder))
    assert "quantise" in caught.value.hint


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (stored_as(torch.int8), "up_proj.weight' in I8"),
        (stored_as(torch.complex64), "up_proj.weight' in complex64"),
        (stored_as(torch.float32), "up_proj.weight' in F32 in a pickle, which is read in torch.bfloat16"),
    ],
    ids=["int8", "complex64", "digits that its precision loses"],
)
def test_so_it_is_in_a_pickle(model: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = copied(model, tmp_path / "model")
    damage(folder)
    as_pickle(folder)
    with pytest.raises(RequestError, match=message):
        check_fit(resolve(folder, allow_pickle=True))


def test_a_pickle_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for data, message in ((b"no pickle", "is damaged"), (b"PK no zip", "is damaged"), (b"", "is damaged")):
        (folder / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(RequestError, match=message):
            check_fit(resolve(folder, allow_pickle=True))


def test_each_command_that_reads_weights_refuses_it(model: Path, tmp_path: Path) -> None:
    folder, text = copied(model, tmp_path / "model"), model.parent / "text.txt"
    stored_as(torch.int8)(folder)
    calls = [
        lambda: fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out"),
        lambda: fxprune.evaluate(folder, text, window=8),
        lambda: fxprune.export(folder, tmp_path / "onnx"),
        lambda: fxprune.bench(folder, prompt=2, new=1, rounds=1, threads=1),
    ]
    for call in calls:
        with pytest.raises(RequestError, match=r"up_proj\.weight' in I8"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_pickle_can_be_allowed_wherever_it_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message recommends an option, and the command has it."""
    folder, text = copied(model, tmp_path / "model"), str(model.parent / "text.txt")
    as_pickle(folder)
    commands = {
        "eval": ["--text", text, "--window", "8", "--windows", "1"],
        "bench": ["--prompt", "2", "--new", "1", "--rounds", "1", "--threads", "1"],
        "apply": ["--pass", "magnitude", "--ratio", "0.5", "--dry-run"],
    }
    for command, options in commands.items():
        assert main([command, str(folder), *options]) == 2
        hint = capsys.readouterr().err.splitlines()[-1]
        assert re.search(rf"pass --allow-pickle to .*\b{command}\b", hint)
        assert (command, main([command, str(folder), *options, "--allow-pickle"])) == (command, 0)
        capsys.readouterr()
    assert main(["bench", str(folder), *commands["bench"], "--allow-pickle", "--onnx"]) == 2
    assert capsys.readouterr().err.endswith("hint: convert it to safetensors, or leave --onnx out\n")


def test_integers_that_a_model_holds_as_integers_go_on_working(tmp_path: Path) -> None:
    batch_norm = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2
    )
    transformers.ResNetForImageClassification(batch_norm).save_pretrained(tmp_path / "resnet")
    held = load_file(tmp_path / "resnet" / "model.safetensors")
    assert torch.int64 in {tensor.dtype for tensor in held.values()}
    check_fit(resolve(tmp_path / "resnet"))


def test_integers_that_transformers_ignores_are_no_weights(tmp_path: Path) -> None:
    tiny = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=26, n_positions=16)
    transformers.GPT2LMHeadModel(tiny).save_pretrained(tmp_path / "gpt2")
    mask = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    tensors(lambda held: held.update({"transformer.h.0.attn.bias": mask}))(tmp_path / "gpt2")
    check_fit(resolve(tmp_path / "gpt2"))
    assert fxprune.apply(tmp_path / "gpt2", "magnitude", ratio=0.5, dry_run=True).groups


@pytest.mark.wide
@pytest.mark.parametrize("passes", ["magnitude", "taylor"], ids=["from the files", "in memory"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_a_tensor_of_more_digits_keeps_them(model: Path, tmp_path: Path, passes: str, wide: torch.dtype) -> None:
    folder = copied(model, tmp_path / "model")
    norm = torch.rand(32, dtype=torch.float64).to(wide) + 1
    tensors(lambda held: held.update({"model.norm.weight": norm}))(folder)
    calib = model.parent / "text.txt" if passes == "taylor" else None
    options = "{samples=2,length=8}" if passes == "taylor" else ""
    fxprune.apply(folder, f"{passes}{options}", ratio=0.5, calib=calib, out=tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(written["model.norm.weight"], norm)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16, wide}


def test_the_dtype_of_the_configuration_says_nothing_of_safetensors(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    config(dtype="float16")(folder)
    fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
