"""``analyze`` and ``report`` from the command line: what they print and write, and what they refuse."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.api.pages.page import Shown, ShownRun, page
from fxprune.api.terminal.analyses import analysis as table_of
from fxprune.api.terminal.cells import Copied
from fxprune.cli import main
from fxprune.passes.select.sensitivity import MeasuredAllocation

from ...corpora import word_tokenizer

WORDS = "abcdefghijklmnopqrstuvwxyz"
PASS = "wanda{samples=4,length=16,tolerance=0.05}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, an analysis of it, and two results."""
    root = tmp_path_factory.mktemp("report")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=26, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "model")
    word_tokenizer(WORDS).save_pretrained(root / "model")
    (root / "text.txt").write_text(" ".join(WORDS[i * i % 26] for i in range(400)))
    scores = root / "scores.safetensors"
    found = fxprune.analyze(root / "model", PASS, calib=root / "text.txt", bound=0.3, scores=scores)
    found.write(root / "analysis.json")
    (root / "table.txt").write_text("\n".join(part.text for part in table_of(found) if isinstance(part, Copied)))
    for name, seed in (("one", 0), ("two", 1)):
        fxprune.apply(root / "model", "random", ratio=0.25, seed=seed, out=root / name)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_next_command_runs_and_measures_no_group_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads((place / "analysis.json").read_text())
    assert (held["fxprune"], held["model"]) == ("analysis", "model")
    words = shlex.split(held["next"][0]["command"])
    assert words[-2:] == ["--out", "OUT"]
    assert held["target"] in words
    counted: list[int] = []
    distance = MeasuredAllocation.distance

    def counting(self: MeasuredAllocation, counts: Any) -> float:
        counted.append(len(counts))
        return distance(self, counts)

    monkeypatch.setattr(MeasuredAllocation, "distance", counting)
    code, out, err = run(capsys, *words[1:-1], tmp_path / "OUT", "--json")
    assert (code, err) == (0, "")
    done = json.loads(out)["passes"]["wanda"]["allocation"]
    assert set(counted) == {len(held["groups"])}, "of all groups together"
    assert done["distance"] <= held["recommended"]["measured"] + 1e-6
    assert done["reached"] == json.loads(out)["parameters"]["after"]


def test_commands_are_printed_on_lines_of_their_own(place: Path) -> None:
    held = json.loads((place / "analysis.json").read_text())
    printed = [line for line in (place / "table.txt").read_text().splitlines() if line.startswith("  fxprune ")]
    assert printed == [f"  {one['command']}" for one in held["next"]]
    assert printed


def test_the_table_fits_a_terminal_and_files_are_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("analyze", place / "model", "--pass", PASS, "--calib", place / "text.txt", "--bound", "1e-9")
    files = ("--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg")
    code, out, err = run(capsys, *asked, *files)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 200, "where stdout is no terminal"
    assert "no cut of 1% or more stays within --bound 1e-09" in out
    assert re.search(r"0\.mlp:width +48 +0\.\d{4}", out)
    assert "layers to spare: " in out
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert json.loads((tmp_path / "a.json").read_text())["next"] == []
    code, _, err = run(capsys, *asked, *files)
    assert code == 2
    assert "a.json already exists" in err
    (tmp_path / "mine.json").write_text("{}")
    code, _, err = run(capsys, *asked, "--json", tmp_path / "mine.json", "--force")
    assert code == 2
    assert "mine.json is no file of this format, and --force would remove it" in err
    assert (tmp_path / "mine.json").read_text() == "{}"


MODULE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(12 * 16, 5))


def loss(module):
    return module(torch.ones(2, 3, 8, 8)).square().mean()
"""


def test_a_module_is_analyzed_as_it_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_to_analyze.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ("nets_to_analyze:build", "--example", "float32[2,3,8,8]", "--loss", "nets_to_analyze:loss")
    more = ("--pass", "magnitude{tolerance=0.05}", "--bound", "0.5")
    code, out, err = run(capsys, "analyze", *asked, *more, "--json")
    assert (code, err) == (0, "")
    held = json.loads(out)
    assert (held["unit"], held["parts"]) == ("increase of the loss", [])
    assert sorted(group["units"] for group in held["groups"]) == [8, 12]
    words = shlex.split(held["next"][0]["command"])
    code, out, err = run(capsys, *words[1:-1], tmp_path / "OUT", "--dry-run", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["passes"]["magnitude"]["allocation"]
    assert found["distance"] <= held["recommended"]["measured"] + 1e-6
    code, _, err = run(capsys, "analyze", *asked[:3], *more, "-q")
    assert (code, "hint: give --calib FILE.npz with inputs by name, or --loss " in err) == (2, True)
    code, _, err = run(capsys, "analyze", *asked, *more, "--scores", tmp_path / "kept.safetensors")
    assert (code, "--scores: only for Hugging Face models" in err) == (2, True)


def test_results_analyses_and_measurements_on_one_page(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": name, "perplexity": {"value": 10.25}} for name in ("model", "one")]
    (tmp_path / "eval.json").write_text(json.dumps({"models": rows}))
    asked = ("report", place / "one", place / "two", "--html", tmp_path / "r.html")
    more = ("--eval", tmp_path / "eval.json", "--scores", place / "scores.safetensors")
    code, out, err = run(capsys, *asked, *more, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["runs"], told["analyses"]) == (["one", "two"], ["analysis.json"]), "one lies beside"
    assert (told["evaluations"], told["scores"]) == (["eval.json"], ["scores.safetensors"])
    text = (tmp_path / "r.html").read_text()
    after = json.loads((place / "one" / "fxprune.json").read_text())["parameters"]["after"]
    assert f"<strong>{after:,}</strong>" in text
    assert "10.25" in text
    code, _, err = run(capsys, *asked)
    assert (code, "r.html already exists" in err) == (2, True)
    assert run(capsys, *asked, "--force")[0] == 0


def test_an_analysis_of_another_model_is_not_shown(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = json.loads((place / "analysis.json").read_text()) | {"parameters": 123_456}
    for folder in (tmp_path, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        (folder / "analysis.json").write_text(json.dumps(other))
    shutil.copytree(place / "one", tmp_path / "one")
    code, out, err = run(capsys, "report", tmp_path / "one", "--html", tmp_path / "r.html", "-q")
    assert (code, err) == (0, "")
    assert f"not shown: {tmp_path / 'analysis.json'} is an analysis of another model: model, 123,456 parameters" in out
    assert "What cuts cost" not in (tmp_path / "r.html").read_text()
    asked = ("--analysis", tmp_path / "elsewhere" / "analysis.json")
    code, _, err = run(capsys, "report", tmp_path / "one", *asked, "--html", tmp_path / "s.html", "-q")
    assert (code, "is of another model: model, 123,456 parameters" in err) == (2, True)


def test_scores_of_another_model_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "s.safetensors"
    fxprune.apply("demo", "wanda{samples=2}", ratio=0.25, dry_run=True, scores=scores)
    record = json.loads((place / "one" / "fxprune.json").read_text())
    held = [{**group, "name": f"other.{group['name']}"} for group in record["groups"]]
    shutil.copytree(place / "one", tmp_path / "one")
    (tmp_path / "one" / "fxprune.json").write_text(json.dumps({**record, "groups": held}))
    code, _, err = run(capsys, "report", tmp_path / "one", "--scores", scores, "--html", tmp_path / "r.html", "-q")
    assert (code, "it has no group that the results cut, such as other." in err) == (2, True)


def test_the_report_of_a_module_proposes_no_text() -> None:
    module = ShownRun("net", {"artifact": "module", "pipeline": "magnitude"})
    model = ShownRun("net", {"pipeline": "magnitude"})
    assert "fxprune eval" not in page(Shown([module], {}, {}, []))
    assert "fxprune eval" in page(Shown([model], {}, {}, []))


def test_a_result_shows_itself_in_a_notebook(place: Path, tmp_path: Path) -> None:
    dry = fxprune.apply(place / "model", "random", ratio=0.25, seed=0, dry_run=True)
    done = fxprune.apply(place / "model", "random", ratio=0.25, seed=0, out=tmp_path / "OUT")
    for shown in (dry._repr_html_(), done._repr_html_()):
        assert f"<strong>{done.parameters[1]:,}</strong>" in shown
    assert "<svg" in done._repr_html_()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report",), "there is nothing to report on"),
        (("report", "nowhere"), "fxprune.json does not exist"),
        (("report", "one", "--eval", "nowhere.json"), "nowhere.json is no file"),
        (("report", "one", "--eval", "text.txt"), "text.txt is damaged"),
        (("report", "one", "--eval", "rows.jsonl"), "rows.jsonl is no result of eval or bench: it holds rows"),
        (("report", "one", "--eval", "rows.json"), "rows.json is no result of eval or bench: it holds rows"),
        (("report", "one", "--eval", "one/fxprune.json"), "holds no models"),
        (("report", "one", "--analysis", "one/fxprune.json"), "is no analysis"),
        (("report", "one", "--scores", "text.txt"), "not a scores file of fxprune"),
        (("report", "one", "--html", "one"), "one is a directory"),
        (("report", "one", "--html", "text.txt", "--force"), "text.txt is no file of this format"),
        (("analyze", "model", "--plot", "curves.gif"), "pictures end in .svg or .png"),
        (("analyze", "model", "--pass", "lora"), "analyze takes one pass that scores units"),
        (("analyze", "model", "--pass", "taylor{target=params:0.8}"), "target in"),
        (("analyze", "model", "--bound", "0"), "bound=0 is not above 0"),
        (("analyze", "model"), "analyze needs calibration text"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(place)
    row = '{"text": "a"}\n'
    Path("rows.jsonl").write_text(row + row)
    Path("rows.json").write_text(f"[{row}]")
    code, out, err = run(capsys, *words, "-q")
    assert (code, out) == (2, "")
    assert message in err
    assert "hint: " in err
    assert not (place / "report.html").exists()


def test_the_extra_is_named_where_it_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, find=importlib.util.find_spec: None if name == "matplotlib" else find(name),
    )
    for words in (("analyze", "demo", "--plot", "c.svg"), ("report", place / "one")):
        code, _, err = run(capsys, *words, "-q")
        assert code == 2
        assert "pip install 'fxprune[report]'" in err
