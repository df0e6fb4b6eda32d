"""ONNX directories as they are deployed: rounded weights, transformers.js, files of any size."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers

from fxprune.backends.onnx import decoder as backend
from fxprune.backends.onnx import rounding
from fxprune.backends.onnx.artifact import OnnxReport, OnnxRequest
from fxprune.backends.onnx.choices import ONNX_DTYPES
from fxprune.backends.onnx.decoder import export_onnx
from fxprune.backends.onnx.layout import LAYOUTS
from fxprune.backends.onnx.quantize import BITS, convert_weights, save_graph
from fxprune.backends.onnx.rounding import GROWTH
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError

from .onnx_models import BASE, ROUNDED, Decoders


def graph_of(report: OnnxReport, *, weights: bool = True) -> onnx.GraphProto:
    return onnx.load(report.path / report.file, load_external_data=weights).graph


def divergence(ours: Any, theirs: Any) -> float:
    """Mean of KL(theirs || ours), in nats."""
    p, q = (torch.tensor(logits).double().softmax(-1) for logits in (theirs, ours))
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.wide
@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", ["tied", pytest.param("free", marks=pytest.mark.slow)])
def test_a_rounded_graph_predicts_what_the_model_does(decoders: Decoders, name: str, dtype: str) -> None:
    report = decoders.export(name, dtype)
    assert set(report.growth) == {"text", "decode", "padded"}
    assert all(0 <= growth <= GROWTH[dtype] for growth in report.growth.values())
    assert any(report.growth.values())
    assert report.growth_tolerance == GROWTH[dtype]
    assert (report.dtype, report.file, report.greedy_tokens) == (dtype, "model.onnx", 32)
    tokens = np.random.default_rng(7).integers(0, 97, (4, 16))
    with torch.no_grad():
        expected = decoders.torch(name)(torch.from_numpy(tokens)).logits.numpy()
    decoder = OnnxDecoder(report.path)
    assert decoder.logits(tokens).dtype == np.float32
    lost = divergence(decoder.logits(tokens), expected)
    assert 0 < lost < np.log1p(GROWTH[dtype])
    assert lost < {"float16": 1e-4, "int8": 1e-3, "int4": 0.3}[dtype] * divergence(expected * 0, expected)


@pytest.mark.parametrize("dtype", BITS)
def test_integers_replace_every_matrix(decoders: Decoders, dtype: str) -> None:
    graph = graph_of(decoders.export("tied", dtype))
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    kinds = {tensor.data_type for tensor in matrices if "_scales" not in tensor.name}
    assert kinds == {
        onnx.TensorProto.UINT8,
        onnx.TensorProto.FLOAT16,
    }  # the table is float16, its copy for the head not
    assert sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in matrices) == 1
    linear = [node for node in graph.node if node.op_type == "MatMulNBits"]
    bits = {attribute.i for node in linear for attribute in node.attribute if attribute.name == "bits"}
    assert bits == {BITS[dtype]}
    dense = [node for node in graph_of(decoders.export("tied")).node if node.op_type in {"MatMul", "FusedMatMul"}]
    products = [node for node in graph.node if node.op_type in {"MatMul", "FusedMatMul"}]
    assert len(products) == 2 * BASE["num_hidden_layers"]  # scores and weighted values hold no weight
    assert len(linear) == len(dense) - len(products)


def test_float16_halves_weights_and_cache(decoders: Decoders) -> None:
    whole, half = decoders.export("tied"), decoders.export("tied", "float16")
    session = onnxruntime.InferenceSession(half.path / "model.onnx")
    types = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    assert types["past_key_values.0.key"] == types["present.1.value"] == "tensor(float16)"
    assert types["logits"] == "tensor(float)"
    sizes = [(report.path / "model.onnx.data").stat().st_size for report in (whole, half)]
    assert sizes[1] < 0.52 * sizes[0]
    assert transformers.AutoConfig.from_pretrained(half.path).dtype == torch.float16


def test_angles_of_far_positions_stay_float32(decoders: Decoders) -> None:
    """In float16, position 8000 times frequency 1 is off by 4 radians (no kernel of this CPU would show it)."""
    graph = graph_of(decoders.export("tied", "float16"))
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    waiting = [name for node in graph.node if node.op_type in {"Cos", "Sin"} for name in node.input]
    assert waiting
    before: set[str] = set()
    while waiting:
        name = waiting.pop()
        before.add(name)
        waiting.extend(makers[name].input if name in makers else ())
    assert onnx.TensorProto.FLOAT in {constants[name] for name in before & set(constants)}
    assert onnx.TensorProto.FLOAT16 not in {constants[name] for name in before & set(constants)}
    casts = {makers[name].attribute[0].i for name in before & set(makers) if makers[name].op_type == "Cast"}
    assert onnx.TensorProto.FLOAT16 not in casts


def test_squares_of_a_norm_stay_float32(tmp_path: Path) -> None:
    """Written out, as --optimize none writes it, a norm squares: of 300, that is more than float16 holds."""
    two = onnx.numpy_helper.from_array(np.array(2.0, np.float32), "two")
    small = onnx.numpy_helper.from_array(np.array(1e-6, np.float32), "small")
    nodes = [
        onnx.helper.make_node("Neg", ["x"], ["negative"], name="before"),
        onnx.helper.make_node("Pow", ["negative", "two"], ["squares"], name="square"),
        onnx.helper.make_node("ReduceMean", ["squares"], ["mean"], name="mean"),
        onnx.helper.make_node("Add", ["mean", "small"], ["more"], name="epsilon"),
        onnx.helper.make_node("Sqrt", ["more"], ["root"], name="root"),
        onnx.helper.make_node("Neg", ["root"], ["logits"], name="after"),
    ]
    typed = ["negative", "squares", "mean", "more", "root"]
    path = tiny_graph(tmp_path, *nodes, constants=[two, small], typed=typed)
    convert_weights(path, "float16", "data")
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds == ["Neg", "Cast", "Pow", "ReduceMean", "Add", "Sqrt", "Cast", "Neg", "Cast"]
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT}
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": np.full(2, 300, np.float16)})
    assert found.tolist() == [-300]


def spoil(path: Path, dtype: str, data: str) -> None:
    """Round, then lose the scales of one matrix."""
    convert_weights(path, dtype, data)
    program = ir.load(path)
    scales = next(value for name, value in program.graph.initializers.items() if name and name.endswith("_scales"))
    assert scales.const_value is not None
    scales.const_value = ir.tensor(scales.const_value.numpy() * 0 + np.float32(1))
    for value in program.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)  # no longer in the file
    save_graph(program, path, data)


def test_a_graph_that_rounding_spoilt_is_refused(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = decoders.export("tied").path / "model.onnx"
    monkeypatch.setattr(backend, "trace_onnx", lambda _model, **_options: ir.load(graph))
    monkeypatch.setattr(backend, "convert_weights", spoil)
    with pytest.raises(
        FxpruneError, match=r"int4 graph predicts worse .*: perplexity grows by \S+% \(at most"
    ) as error:
        export_onnx(OnnxRequest(decoders.source("tied"), tmp_path / "out", dtype="int4"))
    assert "next larger type" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_no_numbers_are_refused(decoders: Decoders) -> None:
    class Broken(OnnxDecoder):
        def step(self, input_ids: Any, cache: Any, **options: Any) -> Any:
            logits, cache = super().step(input_ids, cache, **options)
            return logits * np.float32("nan"), cache

    with pytest.raises(FxpruneError, match=r"% of the information from the context is lost \(at most 5%\)"):
        rounding.check_rounded(Broken(decoders.export("tied").path), decoders.torch("tied"), "int8", lambda _said: None)


def tiny_graph(
    folder: Path, *nodes: onnx.NodeProto, constants: Sequence[onnx.TensorProto] = (), typed: Sequence[str] = ()
) -> Path:
    """From ``x`` to ``logits``; values are float32 of whatever shape."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "logits", *typed)]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:2], constants, value_info=ends[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    (folder / "data").touch()
    return folder / "model.onnx"


def test_a_graph_without_matrices_is_refused(tmp_path: Path) -> None:
    path = tiny_graph(tmp_path, onnx.helper.make_node("Neg", ["x"], ["logits"], name="negate"))
    with pytest.raises(FxpruneError, match="the graph has no linear map that can be stored as int8") as error:
        convert_weights(path, "int8", "data")
    assert "--dtype float32 or --dtype float16" in error.value.hint


def test_a_failing_tool_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.transformers import float16

    def fail(*_arguments: object, **_options: object) -> None:
        raise AssertionError("no such luck\nand more")

    monkeypatch.setattr(float16, "convert_float_to_float16", fail)
    path = tiny_graph(tmp_path, onnx.helper.make_node("Neg", ["x"], ["logits"], name="negate"))
    with pytest.raises(
        FxpruneError, match=r"cannot convert the graph to float16: AssertionError: no such luck$"
    ) as error:
        convert_weights(path, "float16", "data")
    assert "--dtype float32" in error.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int3"}, "unknown --dtype 'int3'"), ({"layout": "tfjs"}, "unknown --layout 'tfjs'")],
)
def test_bad_request(decoders: Decoders, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        export_onnx(OnnxRequest(decoders.source("tied"), tmp_path / "out", **options))
    assert error.value.hint.startswith("choose from ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_tools_are_silent(
    decoders: Decoders, dtype: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing onnxruntime's quantiser hangs a handler on the root logger, and it tells of every node."""
    for module in [name for name in sys.modules if name.startswith("onnxruntime.quantization")]:
        monkeypatch.delitem(sys.modules, module)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    before = root.level, root.manager.disable
    for file in decoders.export("tied").path.glob("model.onnx*"):
        shutil.copy(file, tmp_path)
    capfd.readouterr()
    convert_weights(tmp_path / "model.onnx", dtype, "model.onnx.data")
    assert (root.level, root.manager.disable, root.handlers) == (*before, [])
    assert capfd.readouterr() == ("", "")


# Files: what lies where, whatever the size.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ONNX_DTYPES)
def test_weights_lie_outside_the_graph(decoders: Decoders, dtype: str, layout: str) -> None:
    """Protobuf ends at 2 GB: no weight may lie in the graph, at any size of the model."""
    report = decoders.export("tied", dtype, layout)
    graph = graph_of(report, weights=False)
    inside = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert all(len(tensor.raw_data) <= 256 for tensor in inside)
    outside = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    (data,) = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    graph_file = report.path / report.file
    sizes = graph_file.stat().st_size, (graph_file.parent / data).stat().st_size
    assert report.bytes == sum(sizes)
    assert {path.name for path in graph_file.parent.glob("*onnx*")} >= {graph_file.name, data}
    if dtype == "float32":
        parameters = sum(parameter.numel() for parameter in decoders.torch("tied").parameters())
        assert sizes[1] >= 4 * (parameters - 97)


@pytest.mark.parametrize(
    ("dtype", "file", "told"),
    [
        ("float32", "model.onnx", {"dtype": "fp32"}),
        ("float16", "model_fp16.onnx", {"dtype": "fp16", "kv_cache_dtype": {"fp16": "float16"}}),
        ("int8", "model_int8.onnx", {"dtype": "int8"}),
        ("int4", "model_q4.onnx", {"dtype": "q4"}),
    ],
)
def test_layout_of_transformers_js(decoders: Decoders, dtype: str, file: str, told: dict[str, Any]) -> None:
    report = decoders.export("tied", dtype, "transformers.js")
    assert report.file == f"onnx/{file}"
    assert sorted(path.name for path in (report.path / "onnx").iterdir()) == [file, f"{file}_data"]
    assert {path.name for path in report.path.iterdir()} >= {"config.json", "tokenizer.json", "fxprune.json", "onnx"}
    assert not (report.path / "genai_config.json").exists()
    config = json.loads((report.path / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": True, **told}
    # Others than their owner read them: a server does.
    assert (report.path / "onnx").stat().st_mode & 0o111
    prompt = [5, 9, 4]
    here = OnnxDecoder(report.path, file_name=report.file).generate(prompt, 8)
    assert here == OnnxDecoder(decoders.export("tied", dtype).path).generate(prompt, 8)


# The command line.


def test_command_line(decoders: Decoders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = decoders.export("tied").path / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "trace_onnx", lambda _model, **_options: ir.load(graph))
        words = ["export", str(decoders.source("tied")), "--dtype", "int8", "--out", str(tmp_path / "out")]
        assert main(words) == 0
        assert re.search(
            r"int8, opset \d+, .*\n(.*\n)*check +perplexity by rounding\ntext +\+0\.0", capsys.readouterr().out
        )
        assert main([*words, "--layout", "transformers.js", "--force", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dtype"], report["file"], report["growth_tolerance"]) == ("int8", "onnx/model_int8.onnx", 0.01)
