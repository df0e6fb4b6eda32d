"""What the README and the pages in docs/ show is true: Python runs, commands parse and run, files and targets exist."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

import fxprune
from fxprune.api.terminal.arguments import build_parser
from fxprune.cli import COMMANDS, main
from fxprune.demo import text
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES

from .documents import LANGUAGES, ROOT, Block, blocks, blocks_of, documents, words_of
from .families import causal_lm, other

RUN_ELSEWHERE = {"docs/writing-a-rule.md", "docs/writing-a-pass.md", "docs/writing-a-backend.md"}
"""Their blocks make a package together, which has a test of its own."""

PARSED_ONLY = {
    "BAMBA", "BERT", "WHISPER", "images.npz", "llama-7m", "MIXTRAL", "distill{steps=240}", "mine.yaml", "eval.json",
    "chats.jsonl", "rows.csv", "TASKS",
}  # fmt: skip
"""Commands with one of these are not run: their models are not here, or they train for minutes."""

ELSEWHERE = {"pip": {"install"}, "git": {"clone"}, "cd": {"fxprune"}, "docker": {"build", "run"}}
"""Other programs -> what pages begin to tell them."""

BLOCKS = blocks()
PYTHON = [block for block in BLOCKS if block.language == "python" and block.document not in RUN_ELSEWHERE]
LINES = [(block.document, line) for block in BLOCKS if block.language == "sh" for line in block.lines]
RUN = [
    line
    for line in dict.fromkeys(line for _, line in LINES if line.startswith("fxprune "))
    if not any(word in line for word in PARSED_ONLY)
]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def of(document: str, language: str) -> list[Block]:
    return [block for block in BLOCKS if (block.document, block.language) == (document, language)]


def test_every_block_says_what_it_is() -> None:
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {block.document for block in PYTHON} == {"docs/python.md", "docs/modules.md"}, "each has a test below"
    assert {block.document for block in BLOCKS} >= RUN_ELSEWHERE - {"docs/writing-a-backend.md"}


def test_blocks_are_found_fenced_and_indented() -> None:
    page = "a\n    b\n\n    c \\\n      d\n    $ e\n\n```\nf\n\n    g\n```\n```sh\nh\n```\n"
    found = list(blocks_of("page", page))
    assert [(block.line, block.language, block.lines) for block in found] == [
        (4, "sh", ["c    d", "e"]), (9, "", ["f", "g"]), (14, "sh", ["h"]),
    ]  # fmt: skip
    assert words_of("fxprune eval 'a b' | head  # first") == ["fxprune", "eval", "a b"]


@pytest.mark.parametrize(("document", "line"), LINES, ids=[" ".join(words_of(line)) for _, line in LINES])
def test_a_line_for_the_shell_can_be_run(document: str, line: str) -> None:
    program, *words = [word for word in words_of(line) if not re.match(r"[A-Z_]+=", word)]
    if program == "torchrun":  # its own options, then -m fxprune
        program, *words = words[words.index("-m") + 1 :]
    if program == "fxprune":
        parsed = build_parser(COMMANDS).parse_args(words)
        assert isinstance(parsed, argparse.Namespace)
        pipelines = [words[at + 1] for at, word in enumerate(words) if word == "--pass"]
        assert not pipelines or parse_pipeline(pipelines, PASSES)
    elif program == "python":
        file = words[1].replace(".", "/").removeprefix("fxprune/") + ".py" if words[0] == "-m" else words[0]
        assert (ROOT / file).is_file(), document
    elif program == "make":
        assert words[0] in TARGETS
    elif program in ELSEWHERE:
        assert words[0] in ELSEWHERE[program]
    else:  # a pipeline, with words for its numbers
        assert parse_pipeline([re.sub(r"\b[A-Z]+\b", "1", line)], PASSES), document


def test_make_targets_in_the_documents_exist() -> None:
    named = {
        name
        for document in documents()
        for name in re.findall(r"\bmake ([a-z]+)\b(?=`|\s+#|$)", document.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= TARGETS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory with docs/modules.md's module in it, where Python looks too."""
    (tmp_path / "tiny.py").write_text(of("docs/modules.md", "python")[0].text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tiny", None)


def execute(block: Block, names: dict[str, Any]) -> None:
    exec(compile("\n" * (block.line - 1) + block.text, ROOT / block.document, "exec"), names)


def without_times(printed: str) -> str:
    """Printed text of which the parts are left out that differ between machines."""
    printed = re.sub(r"\d+\.\d s\b", "0.0 s", printed)
    return re.sub(r"\S*/(?=smaller: )", "/home/me/", printed)


@pytest.mark.usefixtures("folder", "one_thread")
def test_the_module_of_the_page_is_pruned_in_python_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    _, block, _ = of("docs/modules.md", "python")
    execute(block, {})
    assert capsys.readouterr().out == of("docs/modules.md", "text")[-1].text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.usefixtures("folder", "one_thread")
def test_the_module_of_the_page_is_exported_as_onnx_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in of("docs/modules.md", "python")[1:]:
        execute(block, names)
    assert capsys.readouterr().out.splitlines()[-1] == "True"


@pytest.mark.usefixtures("folder", "one_thread")
@pytest.mark.parametrize(("number", "line"), [(0, -1), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_a_command_prints_what_the_page_says(capsys: pytest.CaptureFixture[str], number: int, line: int) -> None:
    command = of("docs/modules.md", "sh")[number].lines[line]
    assert main(words_of(command)[1:]) == 0
    expected = of("docs/modules.md", "text")[number].text
    assert without_times(capsys.readouterr().out) == without_times(expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("folder")
def test_the_python_of_the_page_runs() -> None:
    names: dict[str, Any] = {}
    for block in of("docs/python.md", "python"):
        execute(block, names)
    assert Path("smaller-onnx").is_dir()
    before, after = names["pruned"].parameters
    assert before > after


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a command before has written."""
    out = tmp_path_factory.mktemp("smaller") / "OUT"
    fxprune.apply("demo", "random", ratio=0.25, seed=0, out=out)
    return out


def stand_in(line: str, place: str) -> str:
    """A model for a word in capitals, such as the command wants it."""
    if place == "MODEL" and "--layers" in line:
        transformers.LlamaConfig(num_hidden_layers=32, vocab_size=64, hidden_size=64).save_pretrained("deep")
        return "deep"
    if place == "MODEL" and "experts" not in line:
        return "demo"
    name = {"MODEL": "mixtral", "MAMBA": "mamba", "VIT": "vit"}[place]
    made = other.tiny_model(name) if place == "VIT" else causal_lm.tiny_model(name)
    made.save_pretrained(name)  # type: ignore[operator]
    return name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("line", RUN, ids=[" ".join(words_of(line)) for line in RUN])
def test_a_command_of_the_documents_runs(line: str, folder: Path, smaller: Path) -> None:
    """On the demo's model and text, and on tiny ones of other kinds."""
    words = words_of(line)[1:]
    parts = {"text": "calibration recovery", "a": "calibration", "b": "recovery", "held-out": "evaluation"}
    for name, part in parts.items():  # 128 windows, which the recipes read, are more than one part has
        (folder / f"{name}.txt").write_text("".join(map(text, part.split()))[:60_000])
    rows = [json.dumps({"text": row}) + "\n" for row in text("recovery").split("\n\n")[:64]]
    (folder / "b.jsonl").write_text("".join(rows))
    out = words[words.index("--out") + 1] if "--out" in words else None
    if out != "OUT":
        shutil.copytree(smaller, folder / "OUT")
    shutil.copytree(smaller, folder / "OTHER")
    words = [stand_in(line, word) if word in {"MODEL", "MAMBA", "VIT"} else word for word in words]
    assert main(words) == 0
    written = out and folder / out.partition("/{")[0]  # of several sizes, the directory that they are in
    assert not written or written.exists() or "--dry-run" in words
