"""ONNX graphs of strangers that cannot be called as a decoder, or break when they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fxprune
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.ir.errors import FxpruneError, RequestError

from ..strangers import write_model

KEY = "past_key_values.0.key"
PRESENT = "present.0.key"
TOKENS = np.array([[0, 1, 2, 1]])


def write_graph(
    folder: Path,
    *,
    past: Sequence[int | str] = ("batch", 2, "past", 4),
    rows: int = 3,
    kind: int = TensorProto.FLOAT,
    logits: str = "found",
    present: str | None = "longer",
    extra: str | None = None,
) -> Path:
    """A decoder of one key that looks a row of numbers up for each token.

    Args:
        folder: where ``model.onnx`` goes.
        past: the shape of the key.
        rows: rows that tokens are looked up in.
        kind: type of the key.
        logits: what it returns as logits: ``found`` [batch, sequence, 3], or another of its values.
        present: what it returns as the longer key: ``longer``, or another of its values; None for nothing.
        extra: another input.
    """
    table = numpy_helper.from_array(np.ones((rows, 3), np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Shape", ["input_ids"], ["sizes"]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Gather", ["sizes", "one"], ["sequence"]),
        helper.make_node("Constant", [], ["heads"], value_ints=[2]),
        helper.make_node("Constant", [], ["size"], value_ints=[4]),
        helper.make_node("Concat", ["batch", "heads", "sequence", "size"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["new"], value=helper.make_tensor("v", kind, [1], [0])),
        helper.make_node("Identity", [logits], ["logits"]),
    ]
    if present == "longer":
        nodes.append(helper.make_node("Concat", [KEY, "new"], ["longer"], axis=2))
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info(KEY, kind, list(past)),
    ]
    outputs = [onnx.ValueInfoProto(name="logits")]
    if present is not None:
        nodes.append(helper.make_node("Identity", [present], [PRESENT]))
        outputs.append(onnx.ValueInfoProto(name=PRESENT))
    if extra is not None:
        inputs.append(helper.make_tensor_value_info(extra, TensorProto.FLOAT, [1]))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [table])
    opsets = [helper.make_opsetid("", 18)]
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    return folder


def test_a_graph_that_can_be_called_is(tmp_path: Path) -> None:
    decoder = OnnxDecoder(write_graph(tmp_path))
    assert decoder.logits(TOKENS).shape == (1, 4, 3)
    assert len(decoder.generate([0, 1], 3)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"past": ("batch", "heads", "past", "size")}, r"'past_key_values.0.key' of shape \['batch', 'heads'"),
        ({"past": ("batch", 2), "present": KEY}, r"of shape \['batch', 2\], where"),
        ({"past": ("batch", 2, "past", 4, 1), "present": KEY}, r"'past', 4, 1\], where"),
        ({"past": ("batch", 2**40, "past", 4)}, "1099511627776"),
        ({"present": None}, "does not return 'present.0.key'"),
        ({"extra": "pixels"}, "takes 'pixels'"),
    ],
)
def test_a_graph_of_another_shape_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=rf"model\.onnx is not a decoder that fxprune wrote: .*{message}") as caught:
        OnnxDecoder(write_graph(tmp_path, **changes))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 1}, r"ONNX Runtime cannot run .*model\.onnx: .*out of data bounds"),
        ({"past": ("batch", 3, "past", 4)}, r"returns 'present.0.key' .* not float32 of shape \(1, 3, 4, 4\)"),
        ({"kind": TensorProto.DOUBLE}, r"ONNX Runtime cannot run .*model\.onnx"),
        ({"logits": "sizes"}, r"returns 'logits' as int64 of shape \(2,\)"),
        ({"logits": KEY}, r"returns 'logits' as float32 of shape \(1, 2, 0, 4\)"),
        ({"logits": "input_ids"}, r"returns 'logits' as int64 of shape \(1, 4\)"),
        ({"present": "found"}, r"returns 'present.0.key' as float32 of shape \(1, 4, 3\)"),
        ({"present": KEY}, r"returns 'present.0.key' as float32 of shape \(1, 2, 0, 4\)"),
    ],
)
def test_a_graph_that_breaks_when_it_runs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    decoder = OnnxDecoder(write_graph(tmp_path, **changes))
    with pytest.raises(FxpruneError, match=message) as caught:
        decoder.logits(TOKENS)
    assert caught.value.hint == "export the model again"


def test_a_graph_of_fewer_tokens_than_it_is_given(tmp_path: Path) -> None:
    decoder = OnnxDecoder(write_graph(tmp_path, rows=9))
    with pytest.raises(FxpruneError, match=r"returns 'logits' .* with a number for each known token"):
        decoder.logits(np.array([[7]]))


def test_the_commands_say_so(tmp_path: Path) -> None:
    folder = write_graph(write_model(tmp_path / "model"), rows=1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FxpruneError, match=r"ONNX Runtime cannot run .*model\.onnx"):
        fxprune.evaluate(folder, tmp_path / "text.txt", window=8, windows=1)
    write_graph(folder, present=None)
    with pytest.raises(RequestError, match=r"model\.onnx is not a decoder that fxprune wrote"):
        fxprune.evaluate(folder, tmp_path / "text.txt", window=8, windows=1)
    with pytest.raises(RequestError, match=r"model\.onnx is not a decoder that fxprune wrote"):
        fxprune.bench(folder, prompt=2, new=1, rounds=1, threads=1)
