"""Without what an extra brings: the command names it before any work, and everything else works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import fxprune
from fxprune.ir.errors import RequestError
from fxprune.ir.extras import EXTRAS, install, require
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES

ROOT = Path(fxprune.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = {"PIL": "pillow", "lm_eval": "lm-eval"}
"""Module -> package, where they differ."""

REFUSED = (
    ("apply demo --pass taylor,lora --ratio 0.25 --out OUT", "the pass lora needs peft and accelerate", "lora"),
    ("apply demo --pass taylor,distill --ratio 0.25 --out OUT", "the pass distill needs accelerate", "lora"),
    ("apply demo --pass finetune --out OUT", "the pass finetune needs accelerate", "lora"),
    ("apply demo --pass taylor --ratio 0.25 --calib some/rows --out OUT", "'some/rows' is no file; a data set needs "
     "datasets", "data"),
    ("apply demo --pass taylor --ratio 0.25 --calib rows.parquet --out OUT", "'rows.parquet' needs pyarrow", "data"),
    ("eval demo --text text.txt.gz", "the compressed 'text.txt.gz' needs pyarrow", "data"),
    ("export demo --out OUT", "the format onnx needs onnx, onnxruntime and onnxscript", "onnx"),
    ("export demo --format gguf --out OUT.gguf", "the format gguf needs gguf", "gguf"),
    ("bench demo --onnx", "--onnx needs onnx, onnxruntime and onnxscript", "onnx"),
    ("eval onnx --text text.txt", "an ONNX directory needs onnx, onnxruntime and onnxscript", "onnx"),
    ("bench onnx", "an ONNX directory needs onnx, onnxruntime and onnxscript", "onnx"),
    ("apply adapted --pass magnitude --ratio 0.25 --merge-adapter --out OUT", "--merge-adapter needs peft", "lora"),
)  # fmt: skip
"""Command line, message, extra."""

WORKING = (
    "trace demo",
    "apply demo --pass taylor{samples=2,length=16} --ratio 0.25 --out smaller",
    "eval smaller demo --windows 2",
    "passes",
    "formats",
    "recipe",
    "doctor",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """Command line -> exit code, stdout, stderr; all in one process without any module of an extra."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"")
    (folder / "rows.parquet").write_bytes(b"PAR1")
    (folder / "text.txt.gz").write_bytes(b"")
    (folder / "text.txt").write_text("Once upon a time. " * 100)
    transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=16
    ).save_pretrained(folder / "adapted")
    transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder / "adapted")
    ).save_pretrained(folder / "adapted")
    adapter = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (folder / "adapted" / "adapter_config.json").write_text(json.dumps(adapter))
    names = [name for brought in EXTRAS.values() for name in brought]
    lines = [*(line for line, _, _ in REFUSED), *WORKING]
    command = [sys.executable, str(Path(__file__).with_name("hidden.py")), json.dumps(names), json.dumps(lines)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = sorted(path.name for path in folder.iterdir() if path.name.startswith(("OUT", ".OUT")))
    return {
        line: (*found, written) for line, found in zip(lines, json.loads(done.stdout.splitlines()[-1]), strict=True)
    }


@pytest.mark.parametrize(("line", "message", "extra"), REFUSED, ids=[line for line, _, _ in REFUSED])
def test_what_needs_an_extra_names_it_before_any_work(
    outcomes: dict[str, tuple[int, str, str, list[str]]], line: str, message: str, extra: str
) -> None:
    code, out, err, written = outcomes[line]
    assert (code, out, written) == (RequestError.exit_code, "", [])
    error, hint = err.splitlines()[-2:]
    assert error == f"error: {message}, which {'are' if ' and ' in message else 'is'} not installed"
    assert hint == f"hint: pip install 'fxprune[{extra}]'"
    assert "Traceback" not in err


@pytest.mark.parametrize("line", WORKING)
def test_everything_else_works(outcomes: dict[str, tuple[int, str, str, list[str]]], line: str) -> None:
    code, out, err, _ = outcomes[line]
    assert code == 0, err
    assert out


def test_every_module_of_an_extra_is_in_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        packages = {re.split(r"[<>=\[]", line)[0] for line in extras[extra]}
        assert packages == {PACKAGE.get(module, module) for module in modules}
    whole = re.fullmatch(r"fxprune\[(.+)\]", extras["all"][0])
    assert whole
    assert set(whole[1].split(",")) >= {*EXTRAS, "genai"}


def test_the_core_has_nothing_that_an_extra_brings() -> None:
    core = {re.split(r"[<>=\[]", line)[0] for line in PROJECT["dependencies"]}
    assert {"torch", "transformers", "networkx", "safetensors", "numpy", "rich"} <= core
    assert not core & {PACKAGE.get(module, module) for brought in EXTRAS.values() for module in brought}


def test_passes_name_modules_that_an_extra_brings() -> None:
    named = {module for cls in PASSES for module in cls.packages}
    assert named == set(EXTRAS["lora"])


def test_a_missing_module_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RequestError) as caught:
        parse_pipeline("taylor,lora", PASSES)
    assert (caught.value.message, caught.value.hint) == (
        "the pass lora needs peft, which is not installed", "pip install 'fxprune[lora]'",
    )  # fmt: skip
    require("the core", "torch", "numpy")
    assert install("onnx", "gguf") == "pip install 'fxprune[onnx,gguf]'"
