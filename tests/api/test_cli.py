"""The command line: results on stdout, messages on stderr, exit codes; and the calls behind it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune import api
from fxprune.api.terminal import progress_display
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError

from ..corpora import word_tokenizer

QUERY = "model.layers.0.self_attn.q_proj.weight"
OUTPUT = "model.layers.0.self_attn.o_proj.weight"
VOCABULARY = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny grouped-query Llama with a tokenizer of 26 words and a context of 64."""
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=26, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    word_tokenizer(VOCABULARY).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 words."""
    file = tmp_path_factory.mktemp("text") / "held-out.txt"
    file.write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(200)))
    return file


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every 30 seconds would stand on stderr where these tests take longer."""
    monkeypatch.setattr(progress_display, "LINE_EVERY", 1e6)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the program in this process: exit code, stdout, stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The JSON object that a command prints."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    data: dict[str, Any] = json.loads(out)
    return data


def test_a_process_prints_json_alone_and_nothing_on_stderr(model_dir: Path) -> None:
    code = (
        "import runpy, sys\n"
        "from fxprune.api.terminal import progress_display\n"
        "progress_display.LINE_EVERY = 1e6\n"  # as above
        f"sys.argv = {['fxprune', 'trace', str(model_dir), '--json']}\n"
        "runpy.run_module('fxprune', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["parameters"] == sum(
        p.numel() for p in LlamaForCausalLM.from_pretrained(model_dir).parameters()
    )


def test_help_and_import_do_not_load_torch() -> None:
    code = (
        "import sys, fxprune, fxprune.cli\n"
        "try: fxprune.cli.main(['apply', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--multiple-of" in done.stdout


def test_trace_shows_groups_with_equal_layers_in_one_row(capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    code, out, err = run(capsys, "trace", model_dir)
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM: " in out
    assert "model.layers.{0..1}.mlp:width" in out
    assert "frozen: addressed by an index" in out


def test_trace_as_json_and_as_text_that_parses(capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    from fxprune.ir.parser import parse_graph
    from fxprune.ir.text import print_graph

    data = result(capsys, "trace", model_dir, "--ir")
    groups = {group["name"]: group for group in data["groups"]}
    heads = groups["model.layers.0.self_attn:query_heads"]
    assert (heads["size"], heads["parent"], heads["layer"]) == (2, "model.layers.0.self_attn:kv_heads", 0)
    assert {member["tensor"] for member in heads["members"]} == {QUERY, OUTPUT}
    assert data["operators"]["aten.linear"] == 15
    code, out, _ = run(capsys, "trace", model_dir, "--ir")
    assert (code, out) == (0, data["text"])
    graph_text = print_graph(parse_graph(out))
    assert out.startswith(graph_text)
    told = out.removeprefix(graph_text).splitlines()
    assert len(told) >= len(groups)
    assert all(line.startswith("group ") for line in told)


def test_why_names_operators_and_source_lines(capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    paths = result(capsys, "trace", model_dir, "--why", QUERY, OUTPUT)["why"]
    assert [group.partition(":")[2] for group in paths] == ["query_heads", "kv_heads", "channels"]
    for hops in paths.values():
        assert hops[0]["place"].startswith(QUERY)
        assert hops[-1]["place"].startswith(OUTPUT)
        assert hops[0]["operator"] is None
        assert all(hop["operator"] and "modeling_llama.py:" in hop["source"] for hop in hops[1:])
    code, out, _ = run(capsys, "trace", model_dir, "--why", QUERY, OUTPUT)
    assert code == 0
    assert "shrink together" in out
    assert "modeling_llama.py:" in out


def test_dot_has_a_cluster_for_every_group(capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "groups.dot"
    groups = result(capsys, "trace", model_dir, "--dot", file)["groups"]
    dot = file.read_text()
    assert dot.startswith("graph coupling {")
    assert dot.count("subgraph") == len(groups)
    assert 'label="aten.linear"' in dot
    assert f'label="{QUERY}.0" style=filled' in dot


def test_eval_puts_models_side_by_side(capsys: pytest.CaptureFixture[str], model_dir: Path, text: Path) -> None:
    both = result(capsys, "eval", model_dir, model_dir, "--text", text, "--window", "32")["models"]
    assert [row["name"] for row in both] == [str(model_dir)] * 2
    assert both[0]["perplexity"] == both[1]["perplexity"]
    assert both[0]["perplexity"]["windows"] == 200 // 32
    # Per token 2 layers of q, o (32 x 32 each), k, v (16 x 32), three times 32 x 48, and the head; attention on top.
    linear = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 26 * 32
    assert both[0]["macs"] == 32 * linear + 2 * (2 * 4 * 32 * 32 * 8)
    assert both[0]["bytes"] == (model_dir / "model.safetensors").stat().st_size
    code, out, err = run(capsys, "eval", model_dir, "--text", text, "--window", "32", "--windows", "2")
    assert (code, err) == (0, "")
    assert "perplexity" in out


def test_export_writes_onnx_that_eval_reads(
    capsys: pytest.CaptureFixture[str], model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "onnx"
    report = result(capsys, "export", model_dir, "--format", "onnx", "--out", out)
    assert max(report["differences"].values()) <= report["tolerance"]
    torch_row, onnx_row = result(capsys, "eval", model_dir, out, "--text", text, "--window", "32")["models"]
    assert onnx_row["format"] == "onnx"
    assert onnx_row["parameters"] == torch_row["parameters"]
    assert onnx_row["perplexity"]["value"] == pytest.approx(torch_row["perplexity"]["value"], rel=1e-4)


def test_passes_are_listed_with_options_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {row["name"]: row for row in result(capsys, "passes")["passes"]}
    options = {option["name"]: option for option in listed["lora"]["options"]}
    assert options["r"] == {"name": "r", "type": "integer", "default": "8", "help": "rank of the adapters"}
    code, out, _ = run(capsys, "passes")
    assert code == 0
    assert all(f"{name} " in out and row["help"] in " ".join(out.split()) for name, row in listed.items())


def test_formats_are_listed_with_options_types_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    onnx, gguf = result(capsys, "formats")["formats"]
    assert (onnx["name"], gguf["name"]) == ("onnx", "gguf")
    options = {option["name"]: (option["type"], option["default"]) for option in onnx["options"]}
    assert options["dtype"] == ("float32 | float16 | int8 | int4", "float32")
    assert options["layout"] == ("onnxruntime | transformers.js", "onnxruntime")
    code, out, _ = run(capsys, "formats")
    assert code == 0
    assert out.startswith(f"onnx  {onnx['help']}\n")
    assert f"gguf  {gguf['help']}\n" in out


def test_apply_writes_a_model_that_transformers_loads(
    capsys: pytest.CaptureFixture[str], model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pipeline = ["--pass", "taylor{samples=3,length=16}", "--pass", "lora{steps=2,batch=2,micro_batch=2,length=16}"]
    texts = ["--calib", text, "--data", text]
    data = result(capsys, "apply", model_dir, *pipeline, "--ratio", "0.5", "--seed", "1", *texts, "--out", out)
    before = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(model_dir).parameters())
    after = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out).parameters())
    assert data["parameters"] == {"before": before, "after": after}
    assert after < before
    assert {(g["kind"], g["before"], g["after"]) for g in data["groups"]} == {("kv_heads", 2, 1), ("width", 48, 24)}
    assert [step["name"] for step in data["steps"]] == ["couple", "taylor", "lora"]
    assert data["saved"]["path"] == str(out)
    record = json.loads((out / "fxprune.json").read_text())
    assert "taylor{ratio=0.5," in record["pipeline"]
    assert str(tmp_path) not in json.dumps(record)
    assert len(record["passes"]["lora"]["loss"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_widths_per_layer_are_measured_without_trusting_the_artifact(
    capsys: pytest.CaptureFixture[str], model_dir: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    applied = result(capsys, "apply", model_dir, "--pass", "random{ratio=0.5,layers=0:1}", "--out", out)
    assert applied["saved"]["form"] == "free"
    measured = result(capsys, "eval", out, "--text", text, "--window", "32")["models"][0]
    assert measured["parameters"] == applied["parameters"]["after"]
    trusted = result(capsys, "eval", out, "--text", text, "--window", "32", "--trust-remote-code")["models"][0]
    assert trusted["perplexity"] == measured["perplexity"]
    assert trusted["macs"] == measured["macs"]


def test_an_interrupt_while_writing_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path
) -> None:
    written: list[str] = []

    def interrupt(folder: Path, *_: object, **__: object) -> None:
        written.extend(path.name for path in folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("fxprune.backends.huggingface.save.write_plan", interrupt)
    command = ["apply", model_dir, "--pass", "random{ratio=0.5}", "--out", tmp_path / "deep" / "out"]
    code, out, err = run(capsys, *command)
    assert (code, out, err.splitlines()[0]) == (130, "", "interrupted")
    assert err.endswith(f"{shlex.join(map(str, command))} --resume\n")
    assert "model.safetensors" in written
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_dry_run_needs_a_config_alone_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config-only"
    config.mkdir()
    (config / "config.json").write_text((model_dir / "config.json").read_text())
    command = ["apply", config, "--pass", "random,lora", "--ratio", "0.5", "--layers", "1:2", "--dry-run"]
    data = result(capsys, *command)
    assert {(g["layer"], g["after"] / g["before"]) for g in data["groups"]} == {(1, 0.5)}
    assert (data["saved"], data["skipped"]) == (None, "lora")
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "dry run: nothing was written; skipped: lora" in out
    assert [path.name for path in config.iterdir()] == ["config.json"]
    code, _, err = run(capsys, "apply", config, "--pass", "magnitude", "--dry-run")
    assert code == 2
    assert "holds no weights" in err


def test_the_graph_is_printed_after_a_pass(capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    command = ["apply", model_dir, "--pass", "random{ratio=0.5}", "--dry-run", "--print-ir-after", "random"]
    code, out, err = run(capsys, *command)
    assert code == 0
    assert err.startswith("# after random{ratio=0.5}, ")
    assert "graph @LlamaForCausalLM" in err
    assert f'"{QUERY}" : f32[16, 32]' in err
    assert "graph @" not in out


def test_an_adapter_is_kept_beside_the_model(model_dir: Path, text: Path, tmp_path: Path) -> None:
    pipeline = "lora{steps=1,batch=2,micro_batch=2,length=16,keep_adapter=true}"
    applied = fxprune.apply(model_dir, pipeline, data=text, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    json.dumps(applied.to_json())


BAD_REQUESTS: list[tuple[str, str, str]] = [
    ("", "the following arguments are required: COMMAND", "fxprune help"),
    ("prune x", "there is no command 'prune'", "fxprune help"),
    ("apply MODEL", "missing --pass PIPELINE", "--plan FILE"),
    ("apply MODEL --pass obs --samples 3", "has no flag --samples", "--pass 'NAME{samples=...}'"),
    ("apply MODEL --pass loar --out OUT", "unknown pass 'loar'\n  loar\n  ^^^^", "did you mean 'lora'"),
    ("apply MODEL --pass lora", "missing --out DIR", "--dry-run"),
    ("apply MODEL --pass lora --ratio 0.5 --out OUT", "no pass of 'lora' has an option 'ratio'", ""),
    (
        "apply MODEL --pass lora --out OUT --print-ir-after tune",
        "--print-ir-after tune: not a pass of this run",
        "lora, couple",
    ),
    ("apply MODEL --pass lora --out MODEL", "contains the model that is being read", "another --out"),
    ("apply MODEL --pass lora --out OUT", "lora has no text to train on", "--data"),
    ("apply NOWHERE --pass lora --out OUT", "there is no directory", "check the path"),
    ("trace MODEL --why model.norm.weigth lm_head.weight", "has no parameter 'model.norm.weigth'", "model.norm.weight"),
    (f"trace MODEL --why {QUERY} x", "has no parameter 'x'", "parameters look like model.embed_tokens.weight"),
    ("trace MODEL --ir --why a b", "not allowed with argument --ir", "fxprune help trace"),
    ("eval MODEL", "missing --text FILE", "a text to measure on"),
    ("eval MODEL --text TEXT --window 1", "--window 1 is too short: there is no next token", "2 or more"),
    ("eval MODEL --text TEXT --window 65", "longer than the context of", "--window 64 or less"),
    ("eval MODEL --text TEXT --window 64 --windows 9", "is too short: it holds 3 windows", "a longer text"),
    ("export MODEL --format onnx --out MODEL", "contains the model that is being read", "another --out"),
]


@pytest.fixture
def places(model_dir: Path, text: Path, tmp_path: Path) -> dict[str, Path]:
    """What the words in capitals stand for; the directory of OUT is empty."""
    return {"MODEL": model_dir, "TEXT": text, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "no" / "where"}


@pytest.mark.parametrize(("command", "message", "hint"), BAD_REQUESTS, ids=[row[0] for row in BAD_REQUESTS])
def test_a_bad_request_exits_with_2(
    capsys: pytest.CaptureFixture[str], places: dict[str, Path], command: str, message: str, hint: str
) -> None:
    for name, place in places.items():
        command = command.replace(name, str(place))
    code, out, err = run(capsys, *command.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert hint in err.partition("\nhint: ")[2]
    assert "Traceback" not in err
    assert not list(places["OUT"].parent.iterdir())


def test_two_weights_that_share_nothing(capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    traced = api.trace(model_dir)
    alone = next(name for name in (p.name for p in traced.graph.parameters) if name.endswith("inv_freq"))
    code, _, err = run(capsys, "trace", model_dir, "--why", QUERY, alone)
    assert code == 2
    assert "do not shrink together" in err


def test_a_dot_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], model_dir: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, "trace", model_dir, "--dot", tmp_path / "no" / "groups.dot")
    assert (code, out) == (1, "")
    assert "groups.dot': No such file or directory\nhint: name a file in a directory that exists" in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FxpruneError("it broke", "mend it"), 1, "error: it broke\nhint: mend it\n"),
        (RequestError("no"), 2, "error: no\n"),
        (
            OSError(28, "No space left on device", "model.onnx"),
            1,
            "error: No space left on device: model.onnx\nhint: check the disk and the permissions\n",
        ),
        (
            ZeroDivisionError("by zero"),
            1,
            "error: unexpected ZeroDivisionError: by zero\nhint: this is a bug in fxprune; "
            "run again with --debug and report it\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_failures_end_in_an_exit_code_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        print("chatter")
        os.write(1, b"chatter from below\n")
        raise raised

    monkeypatch.setattr(api, "trace", fail)
    assert run(capsys, "trace", "anything") == (code, "", message)
    if isinstance(raised, Exception):
        with pytest.raises(type(raised)):
            main(["trace", "anything", "--debug"])


def test_the_api_refuses_a_format_it_does_not_know(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown format 'tflite'"):
        fxprune.export(model_dir, tmp_path / "out", format="tflite")


def test_long_calls_say_what_they_do(model_dir: Path) -> None:
    said: list[str] = []
    fxprune.trace(model_dir, progress=said.append)
    assert said == [f"building {model_dir} without weights", f"tracing {model_dir}", "finding groups"]
