"""ONNX of models that are no causal language models: one forward, checked in ONNX Runtime at several extents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from fxprune.api import apply, export
from fxprune.backends.onnx import forward, trace
from fxprune.backends.onnx.artifact import OnnxReport
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError

from ...families import causal_lm
from ...families.other import ROWS, tiny_model


def pruned(name: str, folder: Path, form: str = "auto") -> Path:
    source = folder / "source"
    tiny_model(name).save_pretrained(source)
    options = "random{channels=true}" if form == "auto" else "random{seed=3}"
    apply(source, options, ratio=0.25, out=folder / "out", form=form, example=ROWS[name].inputs)  # type: ignore[arg-type]
    return folder / "out"


def exported(name: str, folder: Path, form: str = "auto", dtype: str = "float32") -> OnnxReport:
    source = pruned(name, folder, form)
    return export(source, folder / "onnx", dtype=dtype, example=ROWS[name].inputs, trust_remote_code=True)


def test_an_encoder_runs_on_any_batch_length_and_padding(tmp_path: Path) -> None:
    report = exported("bert", tmp_path)
    assert report.open == ("batch_size", "sequence_length")
    assert report.inputs == ("input_ids", "attention_mask")
    assert {"example", "samples", "lengths", "padded"} == set(report.differences)
    assert max(report.differences.values()) <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    ids = np.arange(3, 36, dtype=np.int64).reshape(1, 33)
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    record = json.loads((tmp_path / "onnx" / "fxprune.json").read_text())
    assert record["open"] == ["batch_size", "sequence_length"]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("name", ["bert", "mamba"])
def test_a_causal_language_model_whose_state_is_no_keys_and_values(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    causal_lm.tiny_model(name).save_pretrained(source)
    apply(source, "random{channels=true}", ratio=0.25, out=out)
    assert main(["export", str(out), "--out", str(tmp_path / "onnx"), "--trust-remote-code"]) == 1
    assert "--no-cache" in capsys.readouterr().err
    assert main(["export", str(out), "--out", str(tmp_path / "onnx"), "--no-cache", "--trust-remote-code"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    length = session.get_inputs()[0].shape[1]  # one that stays fixed where the model's code unrolls it
    ids = np.arange(3 * (20 if isinstance(length, str) else length)).reshape(3, -1) + 3
    model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert not (tmp_path / "onnx" / "genai_config.json").exists()


def test_leaving_the_cache_out_is_for_causal_language_models(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path / "source")
    with pytest.raises(RequestError, match=r"--no-cache has no effect: .*is not a causal language model") as caught:
        export(tmp_path / "source", tmp_path / "out", cache=False)
    assert caught.value.hint == "leave --no-cache out"


CASES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("vit", "auto", "float32", ("batch_size",)),
    ("resnet", "auto", "float16", ("batch_size",)),
    ("convnext", "auto", "float32", ("batch_size",)),
    ("bert", "free", "int8", ("batch_size", "sequence_length")),
    ("bert", "auto", "float16", ("batch_size", "sequence_length")),
    ("vit", "free", "float32", ("batch_size",)),
    ("t5", "auto", "float32", ("batch_size", "sequence_length", "decoder_sequence_length")),
    ("bart", "free", "float32", ("batch_size", "sequence_length", "decoder_sequence_length")),
    ("clip", "auto", "float32", ("batch_size", "sequence_length", "pixel_values_batch_size")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form", "dtype", "free"), CASES, ids=[f"{n}-{f}-{d}" for n, f, d, _ in CASES])
def test_what_stays_open(name: str, form: str, dtype: str, free: tuple[str, ...], tmp_path: Path) -> None:
    report = exported(name, tmp_path, form, dtype)
    assert report.open == free
    assert report.dtype == dtype
    plain = {check: worst for check, worst in report.differences.items() if not check.startswith(dtype + " ")}
    assert max(plain.values()) <= 1e-5
    assert max(report.differences.values()) <= forward.ONNX_OUTPUT_TOLERANCE[dtype]


def test_a_difference_is_refused_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("vit").save_pretrained(tmp_path / "source")
    monkeypatch.setitem(forward.ONNX_OUTPUT_TOLERANCE, "float32", -1.0)
    monkeypatch.setattr(forward, "OPEN", forward.OPEN[:1])
    command = ["export", str(tmp_path / "source"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "the float32 ONNX graph and the model differ: outputs in check 'example' by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("vit").save_pretrained(tmp_path / "source")

    def fail(*_: object) -> None:
        raise ValueError("no translation of aten::something")

    monkeypatch.setattr(trace.OnnxExporter, "export", fail)
    with pytest.raises(
        FxpruneError, match="ViTForImageClassification cannot be exported to ONNX: ValueError: no trans"
    ):
        export(tmp_path / "source", tmp_path / "out")
    with pytest.raises(RequestError, match="ViTForImageClassification takes no 'input_ids'"):
        export(tmp_path / "source", tmp_path / "out", example="input_ids=int64[2,3]")


def test_convolutions_are_not_stored_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("resnet").save_pretrained(tmp_path / "source")
    monkeypatch.setattr(forward, "OPEN", forward.OPEN[1:2])
    with pytest.raises(FxpruneError, match="the graph has no linear map that can be stored as int8") as caught:
        export(tmp_path / "source", tmp_path / "out", dtype="int8")
    assert caught.value.hint == "use --dtype float32 or --dtype float16"
    assert not (tmp_path / "out").exists()


def test_a_graph_that_does_not_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def run(self, *_: object) -> None:
            raise RuntimeError("no kernel for Conv\nand more")

    tiny_model("vit").save_pretrained(tmp_path / "source")
    monkeypatch.setattr(forward, "OPEN", forward.OPEN[1:2])
    monkeypatch.setattr(forward, "open_session", lambda *_: Refusing())
    with pytest.raises(
        FxpruneError, match=r"ONNX Runtime cannot run the graph \(example\): RuntimeError: no kernel for Conv$"
    ) as caught:
        export(tmp_path / "source", tmp_path / "out")
    assert "--optimize none" in caught.value.hint
    assert not (tmp_path / "out").exists()
