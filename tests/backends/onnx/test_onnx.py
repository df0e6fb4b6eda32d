"""The ONNX backend: what it writes, as its consumers see it, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fxprune.backends.onnx import artifact, trace
from fxprune.backends.onnx import decoder as backend
from fxprune.backends.onnx.artifact import OnnxReport, OnnxRequest
from fxprune.backends.onnx.check import check_onnx
from fxprune.backends.onnx.decoder import export_onnx
from fxprune.backends.onnx.runtime import OnnxDecoder
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent
from fxprune.runtime.tolerances import ONNX_LOGITS_TOLERANCE

from .onnx_models import BASE, FAMILIES, build, build_free


@dataclass
class Exported:
    source: Path
    out: Path
    report: OnnxReport
    printed: str
    heads: list[int]


def export(source: Path, heads: list[int], *, code: bool = False, **options: Any) -> Exported:
    out = source.with_name(f"{source.name}-onnx")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        report = export_onnx(OnnxRequest(source, out, consent=Consent.of_user(source, code=code), **options))
    return Exported(source, out, report, printed.getvalue(), heads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(build(tmp_path_factory.mktemp("llama") / "model", "llama"), [2, 2])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(build(tmp_path_factory.mktemp("gpt2") / "model", "gpt2", torch.bfloat16), [4, 4], optimize="none")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(build_free(tmp_path_factory.mktemp("free") / "model"), [4, 1], code=True)


@pytest.fixture(params=["llama", "gpt2", "free"])
def exported(request: pytest.FixtureRequest) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


def agree_with_torch(made: Exported) -> None:
    """Its own comparison, at other shapes, not trusting the backend's."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        made.source, dtype=torch.float32, trust_remote_code=made.source.joinpath("modeling_free.py").exists()
    ).eval()
    decoder = OnnxDecoder(made.out)
    tokens = torch.from_numpy(np.random.default_rng(5).integers(3, 97, (4, 11)))
    with torch.no_grad():
        expected = model(tokens).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(decoder.logits(tokens.numpy()), expected, atol=ONNX_LOGITS_TOLERANCE, rtol=0)
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # without an end token
    text = model.generate(tokens[:1], max_new_tokens=20, do_sample=False)
    assert decoder.generate(tokens[0].numpy(), 20) == text[0, 11:].tolist()


def test_names_and_dimensions_are_the_ecosystems(exported: Exported) -> None:
    graph = onnx.load(exported.out / "model.onnx", load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    past, total = {}, {}
    for layer, heads in enumerate(exported.heads):
        for part in ("key", "value"):
            past[f"past_key_values.{layer}.{part}"] = ["batch_size", heads, "past_sequence_length", 8]
            total[f"present.{layer}.{part}"] = ["batch_size", heads, "total_sequence_length", 8]
    assert shapes == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **past,
        "logits": ["batch_size", "sequence_length", 97],
        **total,
    }


def test_onnx_runtime_agrees_with_torch(exported: Exported) -> None:
    agree_with_torch(exported)


def test_report_says_what_was_made_and_checked(exported: Exported) -> None:
    report = exported.report
    assert set(report.differences) == {"prefill", "decode", "padded", "greedy"}
    assert max(report.differences.values()) <= ONNX_LOGITS_TOLERANCE
    assert report.greedy_equal == report.greedy_tokens == 32
    assert report.bytes == sum(path.stat().st_size for path in exported.out.glob("model.onnx*"))
    assert report.opset == onnx.load(exported.out / "model.onnx", load_external_data=False).opset_import[0].version
    assert report.provider == "CPUExecutionProvider"
    assert report.versions["torch"] == version("torch")  # torch.__version__ also says which build it is
    record = json.loads((exported.out / "fxprune.json").read_text())
    assert list(record.pop("files")) == sorted(path.name for path in exported.out.iterdir())
    assert record == json.loads(json.dumps(report.to_record()))


def test_directory_is_runnable_and_holds_no_traces_of_this_machine(exported: Exported) -> None:
    names = {path.name for path in exported.out.iterdir()}
    assert {"model.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert transformers.AutoTokenizer.from_pretrained(exported.out)("w5")["input_ids"] == [5]
    assert transformers.AutoConfig.from_pretrained(exported.out).dtype == torch.float32
    graph = (exported.out / "model.onnx").read_bytes()
    assert b".py" not in graph
    assert str(Path(torch.__file__).parent).encode() not in graph
    assert sorted(path.name for path in exported.out.parent.iterdir()) == ["model", "model-onnx"]
    assert exported.printed == ""


def test_empty_prompt_is_refused(llama: Exported) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        OnnxDecoder(llama.out).generate([], 3)


def test_fusions_follow_the_option(llama: Exported, gpt2: Exported) -> None:
    domains = [
        {node.domain for node in onnx.load(made.out / "model.onnx", load_external_data=False).graph.node}
        for made in (llama, gpt2)
    ]
    assert "com.microsoft" in domains[0]
    assert domains[1] == {""}


def test_source_dtype_is_reported(gpt2: Exported) -> None:
    assert (gpt2.report.source_dtype, gpt2.report.dtype) == ("bfloat16", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("optimize", ["cpu", "cuda", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, optimize: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.config.option.markexpr:
        pytest.skip("half a minute each: run with -m slow")
    made = export(build(tmp_path / "model", family), [], optimize=optimize)
    assert made.report.greedy_equal == 32
    agree_with_torch(made)


@pytest.mark.slow
def test_bfloat16_arithmetic_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Falcon multiplies its ALiBi slopes in bfloat16 whatever the model's dtype; ONNX Runtime's CPU provider cannot."""
    if "slow" not in request.config.option.markexpr:
        pytest.skip("half a minute: run with -m slow")
    values = {**BASE, "alibi": True, "multi_query": False, "parallel_attn": False}
    monkeypatch.setitem(FAMILIES, "falcon-alibi", ("falcon", values))
    with pytest.raises(FxpruneError, match=r"ONNX Runtime cannot open .* Could not find an implementation for Mul"):
        export_onnx(OnnxRequest(build(tmp_path / "model", "falcon-alibi"), tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# What is refused, and that nothing is left. A saved graph stands in for the trace: only that takes seconds.


@pytest.fixture
def traced(llama: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have export_onnx use the Llama's graph, after ``change`` has spoilt it."""

    def patch(change: Callable[[ir.Model], None] = lambda _program: None) -> None:
        def trace(_model: object, **_options: object) -> ir.Model:
            program = ir.load(llama.out / "model.onnx")
            change(program)
            return program

        monkeypatch.setattr(backend, "trace_onnx", trace)

    return patch


def perturb_a_weight(program: ir.Model) -> None:
    value = max(program.graph.initializers.values(), key=lambda value: value.const_value.nbytes)
    value.const_value = ir.tensor(value.const_value.numpy() + np.float32(0.1))


def swap_keys_and_values(program: ir.Model) -> None:
    outputs = {value.name: value for value in program.graph.outputs}
    key, value = outputs["present.0.key"], outputs["present.0.value"]
    key.name, value.name = "spare", key.name
    key.name = "present.0.value"


def ignore_the_mask(program: ir.Model) -> None:
    mask = next(value for value in program.graph.inputs if value.name == "attention_mask")
    one = ir.node("Constant", [], {"value_int": 1})
    seen = ir.node("Max", [mask, one.outputs[0]])
    mask.replace_all_uses_with(seen.outputs[0])
    seen.replace_input_with(0, mask)
    program.graph.insert_before(program.graph[0], [one, seen])


@pytest.mark.parametrize(
    ("change", "check", "cause"),
    [
        (perturb_a_weight, "prefill", "translated or fused wrongly"),
        (swap_keys_and_values, "decode", "key-value cache"),
        (ignore_the_mask, "padded", "attention mask"),
    ],
)
def test_wrong_graph_is_refused(
    change: Callable[[ir.Model], None],
    check: str,
    cause: str,
    *,
    llama: Exported,
    traced: Callable[..., None],
    tmp_path: Path,
) -> None:
    traced(change)
    with pytest.raises(
        FxpruneError, match=rf"the ONNX graph and the model differ: logits in check '{check}' by \d\S*, more"
    ) as error:
        export_onnx(OnnxRequest(llama.source, tmp_path / "out"))
    assert cause in error.value.hint
    assert "--optimize none" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_drift_over_many_steps_is_refused(llama: Exported) -> None:
    class Drifting(OnnxDecoder):
        def step(self, input_ids: Any, cache: Any, **options: Any) -> Any:
            logits, cache = super().step(input_ids, cache, **options)
            return (-logits if cache["past_key_values.0.key"].shape[2] > 20 else logits), cache

    model, _ = trace.load_causal_lm(Consent.nothing(llama.source))
    with pytest.raises(FxpruneError, match="logits in check 'greedy' by") as error:
        check_onnx(Drifting(llama.out), model, "none", lambda _message: None)
    assert error.value.hint == "likely cause: errors accumulate in the cache over many steps"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("failure", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FxpruneError, "the disk is full"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_failure_leaves_what_was_there(
    force: bool,
    failure: BaseException,
    raised: type[BaseException],
    message: str | None,
    *,
    llama: Exported,
    traced: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced()
    out = tmp_path / "out"
    if force:
        out.mkdir()
        (out / "config.json").write_text('{"model_type": "llama"}')
        (out / "fxprune.json").write_text('{"format": "onnx", "versions": {"fxprune": "0.1.0"}}')
    before = sorted(tmp_path.rglob("*"))

    def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(artifact, "write_json", fail)
    with pytest.raises(raised, match=message):
        export_onnx(OnnxRequest(llama.source, out, force=force))
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces(llama: Exported, traced: Callable[..., None], tmp_path: Path) -> None:
    traced()
    out, said = tmp_path / "out", []
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "llama"}')
    (out / "fxprune.json").write_text('{"format": "onnx", "versions": {"fxprune": "0.1.0"}}')
    (out / "model_stale.onnx").touch()
    with pytest.raises(RequestError, match="already exists"):
        export_onnx(OnnxRequest(llama.source, out))
    export_onnx(OnnxRequest(llama.source, out, force=True), progress=said.append)
    assert not (out / "model_stale.onnx").exists()
    assert (out / "model.onnx").read_bytes() == (llama.out / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert said[0] == f"loading {llama.source} (1 of 7)"
    assert any("checking padded in ONNX Runtime" in one for one in said)


def with_config(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


def without_config(folder: Path) -> Path:
    folder.mkdir()
    return folder


def without_a_weight(folder: Path) -> Path:
    weights = load_file(build(folder, "llama") / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def truncated(folder: Path) -> Path:
    path = build(folder, "llama") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


@pytest.mark.parametrize(
    ("make", "options", "kind", "message"),
    [
        (lambda folder: folder, {}, RequestError, "is not a directory"),
        (without_config, {}, RequestError, "has no config.json"),
        (lambda folder: with_config(folder, "{"), {}, RequestError, "is damaged: Expecting"),
        (lambda folder: with_config(folder, "[]"), {}, RequestError, "is damaged: it is not a JSON object"),
        (lambda folder: with_config(folder, "{}"), {}, RequestError, "has no safetensors weights"),
        (lambda folder: with_config(folder, '{"is_encoder_decoder": true}'), {}, RequestError, "is an encoder-decoder"),
        (build_free, {}, RequestError, "has its own modelling code: modeling_free.FreeForCausalLM"),
        (without_a_weight, {}, FxpruneError, "has no weights for model.norm.weight"),
        (truncated, {}, FxpruneError, "cannot load .*model"),
        (without_config, {"optimize": "tpu"}, RequestError, "unknown --optimize 'tpu'"),
        (without_config, {"opset": 17}, RequestError, "opset 17 is not supported"),
    ],
)
def test_bad_request(
    make: Callable[[Path], Path], options: dict[str, Any], kind: type[FxpruneError], message: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "model")
    with pytest.raises(FxpruneError, match=message) as error:
        export_onnx(OnnxRequest(source, tmp_path / "out", **options))
    assert type(error.value) is kind
    assert error.value.hint
    assert not (tmp_path / "out").exists()


def test_failing_exporter_is_reported(llama: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise ValueError("no such operator\nand more")

    monkeypatch.setattr(trace.OnnxExporter, "export", fail)
    model, _ = trace.load_causal_lm(Consent.nothing(llama.source))
    with pytest.raises(FxpruneError, match=r"cannot be exported to ONNX: ValueError: no such operator$"):
        trace.trace_onnx(model, optimize="cpu", opset=None)
