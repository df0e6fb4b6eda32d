"""The calls in Python: what they take and refuse, that a name means one thing, and that every result is JSON data."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable
from io import TextIOBase
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

import fxprune
from fxprune import api
from fxprune.api import ApplyRequest
from fxprune.api.evaluating.evaluation import EvaluationRequest
from fxprune.api.request_checks import GivenRows, check_model, list_models, read_text
from fxprune.api.terminal.arguments import build_parser
from fxprune.cli import COMMANDS
from fxprune.ir.errors import FxpruneError, RequestError

from ..checkpoints import LLAMA

ROOT = Path(fxprune.__file__).parent
CALLS = {
    name: getattr(fxprune, name) for name in fxprune.__all__ if inspect.isfunction(getattr(fxprune, name))
}  # fmt: skip
IN_PYTHON_ONLY = {"progress", "tokenizer", "batches", "ranks", "sizes"}

OF_ITS_OWN = {("prune_module", "device"), ("export", "dtype")}
"""Where a module is already; the dtype of a format, not of the arithmetic."""
OF_A_DRAFT = {"draft", "text", "prompts", "draft_tokens", "allow_overlap"}
"""What `bench --draft` takes, which in Python is a call of its own."""
ON_THE_COMMAND_LINE_ONLY = {
    "json", "debug", "run", "help", "ir", "why", "dot", "recipe", "set", "verbose", "quiet", "log_file", "full",
}  # fmt: skip
"""What is shown or told, and files of options: in Python ``progress`` is a function, and options are in the code."""


def model() -> Any:
    return LlamaForCausalLM(LLAMA)


NO_MODELS: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: nn.Linear(2, 2), "a Linear is not a Hugging Face model", "fxprune.prune_module(module"),
    (lambda: get_peft_model(model(), LoraConfig(target_modules=["q_proj"])), "a PeftModel is not", "merge_and_unload"),
    (lambda: LlamaForCausalLM, "the class LlamaForCausalLM is not a Hugging Face model", "a loaded model"),
    (lambda: LLAMA, "a LlamaConfig is not a Hugging Face model", "a loaded model"),
    (lambda: 3, "an int is not a Hugging Face model", "a model directory"),
    (lambda: None, "None is not a Hugging Face model", "a model directory"),
    (lambda: {}, "a dict is not a Hugging Face model", "a model directory"),
    (lambda: [], "a list is not a Hugging Face model", "a model directory"),
    (lambda: Path(__file__).open(), "a TextIOWrapper is not a Hugging Face model", "a model directory"),  # noqa: SIM115
    (lambda: str(model()) * 9, "no model can have this name: 'LlamaForCausalLM(", "a model directory"),
]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("row", NO_MODELS, ids=lambda row: row[1])
def test_what_is_no_model(row: tuple[Callable[[], Any], str, str], tmp_path: Path) -> None:
    make, message, hint = row
    given = make()
    calls: list[Callable[[], Any]] = [
        lambda: fxprune.apply(given, "random", out=tmp_path / "out"),
        lambda: fxprune.trace(given),
        lambda: fxprune.export(given, tmp_path / "out"),
        lambda: fxprune.evaluate([given], ["some text"]),
        lambda: fxprune.bench([given]),
    ]
    for call in calls:
        with pytest.raises(RequestError) as caught:
            call()
        assert message in caught.value.message
        assert hint in caught.value.hint
    if isinstance(given, TextIOBase):
        given.close()
    assert not list(tmp_path.iterdir())


TEXTS: list[tuple[Any, str, str]] = [
    (3, "{} cannot be an int", "a list of strings"),
    ({"text": "a"}, "{} cannot be a dict", "a list of strings"),
    ({"a"}, "{} cannot be a set", "a list of strings"),
    (b"abc", "{} cannot be a bytes", "a list of strings"),
    ((row for row in "ab"), "{} cannot be a generator", "a list of strings"),
    ([], "{} is a list without any text", "at least one string"),
    ([" ", ""], "{} is a list without any text", "at least one string"),
    (["a", 3], "{}[1] is an int, not a string", "a list of strings"),
    (["a", Path("b.txt")], "{}[1] is a PosixPath, not a string", "a list of strings"),
    ("x" * 5000, "{} is a text of 5,000 characters, where a path", "{}=[text]"),
    ("two\nlines", "{} is a text of 9 characters, where a path", "{}=[text]"),
]


@pytest.mark.parametrize("row", TEXTS, ids=lambda row: row[1])
@pytest.mark.parametrize("name", ["calib", "data", "text"])
def test_what_is_no_text(name: str, row: tuple[Any, str, str], tmp_path: Path) -> None:
    given, message, hint = row
    call = fxprune.evaluate if name == "text" else fxprune.apply
    others = {} if name == "text" else {"passes": "taylor", "out": tmp_path / "out"}
    with pytest.raises(RequestError) as caught:
        call("demo", **{name: given}, **others)
    assert message.format(name) in caught.value.message
    assert hint.format(name) in caught.value.hint


def test_what_is_a_text() -> None:
    assert read_text(None, "calib") is None
    assert read_text(Path("a") / "b.txt", "calib") == str(Path("a") / "b.txt")
    assert read_text("org/set:split", "calib") == "org/set:split"
    assert read_text(["a", ""], "data") == GivenRows("data", ("a", ""))


OTHERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: fxprune.apply("demo", "random", out=3), "out is an int, not a path"),
    (lambda: fxprune.apply("demo", "random", dry_run=True, plan=3), "plan is an int, not a path"),
    (lambda: fxprune.apply("demo", "random", dry_run=True, scores=[]), "scores is a list, not a path"),
    (lambda: fxprune.apply("demo", "random", dry_run=True, loss=3), "loss is an int, not a function"),
    (lambda: fxprune.apply("demo", "random", dry_run=True, example=torch.ones(1)), "example is a Tensor, not text"),
    (lambda: fxprune.apply("demo", 3, dry_run=True), "a pipeline is text, not int"),
    (lambda: fxprune.apply("demo", "random", dry_run=True, channels=3), "option 'channels' cannot be '3'"),
    (
        lambda: fxprune.apply("demo", "random", dry_run=True, print_ir_after="x"),
        "--print-ir-after x: not a pass of this run",
    ),
    (lambda: fxprune.export("demo", 3), "out is an int, not a path"),
    (lambda: fxprune.trace("demo").write_dot(3), "file is an int, not a path"),
    (lambda: fxprune.evaluate([], ["a"]), "there is no model to measure"),
    (lambda: fxprune.evaluate("demo", window="128"), "window is '128', not a whole number"),
    (lambda: fxprune.evaluate("demo", windows=2.5), "windows is 2.5, not a whole number"),
    (lambda: fxprune.bench("demo", prompt="8"), "prompt is '8', not a whole number"),
    (lambda: fxprune.bench("demo", batches=1), "batches is 1"),
    (lambda: fxprune.bench("demo", batches=()), "batches is ()"),
    (lambda: fxprune.export("demo", "out", format=3), "format is of type int"),
    (lambda: fxprune.prune_module(nn.Linear(2, 2), None, "magnitude"), "the example inputs are of type NoneType"),
    (lambda: fxprune.apply("demo", "lora", dry_run=True), "a dry run leaves lora out, and there is no other pass"),
    (lambda: fxprune.load(3), "path is of type int"),
    (lambda: fxprune.load("x" * 5000), "does not exist"),
    (lambda: check_model("demo", tokenizer=3), "tokenizer= belongs to a loaded model"),
    (lambda: check_model(model(), tokenizer="gpt2"), "tokenizer is 'gpt2', not a tokenizer of transformers"),
    (lambda: list_models(["demo", "demo"], tokenizer=3), "tokenizer= belongs to a loaded model"),
]


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row[1])
def test_what_else_is_refused(row: tuple[Callable[[], Any], str]) -> None:
    call, message = row
    with pytest.raises(RequestError) as caught:
        call()
    assert message in caught.value.message
    assert caught.value.hint


def test_channels_can_be_given_for_all_passes() -> None:
    made = fxprune.apply("demo", "random,random{channels=true}", channels=True, ratio=0.1, dry_run=True)
    assert made.options.count("channels=true") == 2


def test_an_argument_has_one_default() -> None:
    """In every call that has it, and on the command line."""
    found: dict[str, set[Any]] = {}
    for name, call in CALLS.items():
        for parameter in inspect.signature(call).parameters.values():
            if parameter.default is not parameter.empty and (name, parameter.name) not in OF_ITS_OWN:
                found.setdefault(parameter.name, set()).add((name, parameter.default))
    odd = {name: pairs for name, pairs in found.items() if len({default for _, default in pairs}) > 1}
    assert not odd


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_is_described(name: str) -> None:
    """In the docstring of the call; what ``apply`` takes, in that of the request to which its own refers."""
    text = CALLS[name].__doc__ or ""
    if (request := {"apply": ApplyRequest, "evaluate": EvaluationRequest}.get(name)) is not None:
        assert f":class:`{request.__name__}`" in text
        text = request.__doc__ or ""
    described = {word for entry in re.findall(r"^ +([\w, ]+): ", text, re.MULTILINE) for word in entry.split(", ")}
    if "place" in described:
        described |= set(re.findall(r"``(\w+)``", text.partition(" shared: ")[2].partition(": a value for")[0]))
        described |= set(re.findall(r"``(\w+)``", text.partition(" readings: ")[2].partition(": which field")[0]))
        described |= set(re.findall(r"``(\w+)``", text.partition(" place: ")[2].partition("trust_remote_code")[0]))
    assert described >= set(inspect.signature(CALLS[name]).parameters)


COMMAND_OF = {"apply": "apply", "trace": "trace", "export": "export", "evaluate": "eval", "bench": "bench"}


@pytest.mark.parametrize("name", COMMAND_OF)
def test_the_command_line_and_python_take_the_same(name: str) -> None:
    subparsers = build_parser(COMMANDS)._subparsers
    assert subparsers is not None
    (commands,) = subparsers._group_actions
    assert isinstance(commands, argparse._SubParsersAction)
    options = {action.dest: action for action in commands.choices[COMMAND_OF[name]]._actions}
    parameters = inspect.signature(CALLS[name]).parameters
    of_a_draft = OF_A_DRAFT if name == "bench" else {"baseline"} if name == "evaluate" else set()
    wider = api.compare if name == "evaluate" else fxprune.bench_draft
    assert set(inspect.signature(wider).parameters) >= of_a_draft
    assert set(parameters) - IN_PYTHON_ONLY == set(options) - ON_THE_COMMAND_LINE_ONLY - of_a_draft
    for key in set(parameters) & set(options):
        if parameters[key].default is not inspect.Parameter.empty:
            default = options[key].default
            assert parameters[key].default == (tuple(default) if isinstance(default, list) else default), key


def results(call: Callable[..., Any]) -> list[type]:
    """The classes that a call returns, from its annotation."""
    module = importlib.import_module(call.__module__)
    words = re.findall(r"[A-Za-z_.]+", str(inspect.signature(call).return_annotation))
    found = (getattr(module, word, None) for word in words)
    return [kind for kind in found if isinstance(kind, type)]


def test_every_result_is_json_data() -> None:
    kinds = [kind for call in CALLS.values() for kind in results(call)]
    assert len(kinds) >= 7
    # What a result holds or gives in turn, where that is a result of its own.
    from fxprune.api import Demo, GroupChange, Hop, PrunedTarget
    from fxprune.api.modules.result import Pruned
    from fxprune.backends.huggingface.save import SavedModel
    from fxprune.backends.pt2.save import SavedModule
    from fxprune.passes.manager import StepRecord

    assert Pruned in kinds
    for kind in [*kinds, Demo, GroupChange, Hop, PrunedTarget, SavedModule, SavedModel, StepRecord]:
        assert typing.get_type_hints(kind.to_json)["return"] == dict[str, Any], kind


def test_no_other_name_stands_for_json_data() -> None:
    """``to_json`` is for a reader, ``to_record`` is what ``fxprune.json`` keeps."""
    names = [
        node.name
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] in {"api", "backends", "ir", "passes", "tracer"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.args.args[:1] and node.args.args[0].arg == "self"
    ]
    public = {name for name in names if not name.startswith("_")}
    assert {name for name in public if "json" in name or "record" in name.split("_")} == {"to_json", "to_record"}


def test_errors_that_are_no_fault_of_the_request_stay_what_they_are() -> None:
    assert issubclass(RequestError, FxpruneError)
    json.dumps(fxprune.apply("demo", "random{ratio=0.5}", dry_run=True).to_json())
