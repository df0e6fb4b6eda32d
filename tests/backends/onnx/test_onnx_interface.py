"""ONNX graphs that are not what the backend promises, and models that it cannot promise anything of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from fxprune.backends.onnx import trace
from fxprune.backends.onnx.artifact import OnnxRequest
from fxprune.backends.onnx.decoder import export_onnx
from fxprune.backends.onnx.names import rename_interface
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent

from ...families import causal_lm


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (SimpleNamespace(cache_params=[]), "Stateful returns no key-value cache"),
        (SimpleNamespace(past_key_values=SimpleNamespace(layers=[SimpleNamespace()])), "layer 0 of Stateful caches"),
    ],
)
def test_state_other_than_keys_and_values_is_refused(output: SimpleNamespace, message: str) -> None:
    class Stateful(torch.nn.Module):
        def forward(self, **_inputs: Any) -> Any:
            return output

    with pytest.raises(FxpruneError, match=message):
        trace.trace_onnx(Stateful(), optimize="cpu", opset=None)


def test_a_model_that_does_not_run_on_token_ids_is_refused() -> None:
    class Odd(torch.nn.Module):
        def forward(self, **_inputs: Any) -> Any:
            raise RuntimeError("four codebooks, please")

    with pytest.raises(
        FxpruneError, match=r"Odd does not run on token ids \[2, \d+\]: RuntimeError: four codebooks"
    ) as caught:
        trace.trace_onnx(Odd(), optimize="cpu", opset=None)
    assert "--no-cache" in caught.value.hint


def test_a_class_that_no_auto_class_knows_is_loaded_by_its_name(tmp_path: Path) -> None:
    causal_lm.tiny_model("emu3").save_pretrained(tmp_path)
    model, _ = trace.load_causal_lm(Consent.nothing(tmp_path))
    assert type(model).__name__ == "Emu3ForCausalLM"


@pytest.mark.wide
def test_lengths_that_a_table_in_the_models_code_bounds_stay_open_up_to_there(tmp_path: Path) -> None:
    model = causal_lm.tiny_model("gpt_neo").eval()
    model.save_pretrained(tmp_path / "source")
    export_onnx(OnnxRequest(tmp_path / "source", tmp_path / "out"))
    decoder = OnnxDecoder(tmp_path / "out")
    context = model.config.max_position_embeddings
    ids = torch.arange(2 * context).reshape(2, context) % causal_lm.VOCAB
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(torch.from_numpy(decoder.logits(ids.numpy())), expected, rtol=0, atol=1e-5)
    _, cache = decoder.step(ids[:, :-1].numpy(), decoder.empty_cache(2))
    last, _ = decoder.step(ids[:, -1:].numpy(), cache)
    torch.testing.assert_close(torch.from_numpy(last), expected[:, -1:], rtol=0, atol=1e-5)


def interface(**shapes: list[Any]) -> ir.Model:
    """A graph without nodes: inputs only, a cache of one layer among them unless ``shapes`` says otherwise."""
    values = [ir.Value(name=name.replace("__", "."), shape=ir.Shape(shape)) for name, shape in shapes.items()]
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 20}), ir_version=10)


TOKENS, MASK, PAST = ["b", "s"], ["b", "t"], ["b", 2, "p", 8]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"input_ids": TOKENS}, "has inputs input_ids; it needs input_ids, attention_mask and past_key_values"),
        (
            {"input_ids": TOKENS, "attention_mask": ["b", 8], "past_key_values__layers__0__keys": PAST},
            r"attention_mask of shape \[batch_size, 8\] instead of \[batch_size, total_sequence_length\]",
        ),
        (
            {"input_ids": TOKENS, "attention_mask": MASK, "past_key_values__layers__0__keys": ["b", "h", "p", 8]},
            r"past_key_values.0.key of shape \[batch_size, h, past_sequence_length, 8\] instead of",
        ),
        (
            {"input_ids": TOKENS, "attention_mask": MASK, "past_key_values__layers__0__keys": PAST, "pixels": [1]},
            "an unexpected input or output 'pixels'",
        ),
    ],
)
def test_unexpected_interface_is_refused(shapes: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        rename_interface(interface(**shapes), argument="past_key_values", returned="past_key_values")
    assert "use --no-cache" in caught.value.hint


@pytest.mark.parametrize(
    ("argument", "returned", "names"),
    [
        ("past_key_values", "past_key_values", ("input.past_key_values", "output.past_key_values")),
        ("cache", "cache", ("input.cache", "output.cache")),
        ("past_key_values", "cache", ("past_key_values", "cache")),
        ("state", "memory", ("state", "memory")),
    ],
    ids=["both old", "both new", "own code with outputs of transformers", "any"],
)
def test_a_cache_is_renamed_whatever_the_model_calls_it(argument: str, returned: str, names: tuple[str, str]) -> None:
    tokens = ir.Value(name="input_ids", shape=ir.Shape(TOKENS))
    mask = ir.Value(name="attention_mask", shape=ir.Shape(MASK))
    parts = [f"layers.{layer}.{part}" for layer in (0, 11) for part in ("keys", "values")]
    held, given = ([ir.Value(name=f"{name}.{part}", shape=ir.Shape(PAST)) for part in parts] for name in names)
    for value in given:
        value.shape = ir.Shape(["batch_size", 2, "total_sequence_length", 8])
    logits = ir.Value(name="logits", shape=ir.Shape(["batch_size", "sequence_length", 97]))
    graph = ir.Graph([tokens, mask, *held], [logits, *given], nodes=[], opset_imports={"": 20})
    rename_interface(ir.Model(graph, ir_version=10), argument=argument, returned=returned)
    ends = [f"{layer}.{part}" for layer in (0, 11) for part in ("key", "value")]
    assert [value.name for value in graph.inputs[2:]] == [f"past_key_values.{end}" for end in ends]
    assert [value.name for value in graph.outputs[1:]] == [f"present.{end}" for end in ends]


def test_decoder_refuses_what_it_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no model\.onnx"):
        OnnxDecoder(tmp_path)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    for domain, kind, message in (
        ("", RequestError, "is not a decoder with a key-value cache; its inputs are x"),
        ("nowhere", FxpruneError, "ONNX Runtime cannot open"),
    ):
        node = onnx.helper.make_node("Identity", ["x"], ["y"], domain=domain)
        graph = onnx.helper.make_graph([node], "g", [value], [other])
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
        with pytest.raises(kind, match=message):
            OnnxDecoder(tmp_path)
