"""A recipe that somebody else repeats: the same bytes from the same files, and a warning where one is another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import fxprune
from fxprune import cli
from fxprune.api.recipes.read import read_recipe
from fxprune.api.terminal.arguments import build_parser
from fxprune.api.terminal.options.repeated import with_recipe
from fxprune.backends.artifact import RECORD, read_record
from fxprune.backends.digests import sha256
from fxprune.backends.recipe import ENVIRONMENT, recipe_of
from fxprune.tracer.texts.several import short_names

from ...checkpoints import contents

PASSES = "taylor{samples=2,length=16},compensate{samples=4,length=16}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of one name, a result of both, and its recipe."""
    root = tmp_path_factory.mktemp("repeated")
    for folder, words in (("a", "one day a girl "), ("b", "the king of the town ")):
        (root / folder).mkdir()
        (root / folder / "t.txt").write_text(words * 60)
    calib = [root / "a" / "t.txt", root / "b" / "t.txt"]
    fxprune.apply("demo", PASSES, ratio=0.25, calib=calib, out=root / "one")
    (root / "r.yaml").write_text(recipe_of(read_record(root / "one")))
    return root


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a colleague, in the current directory."""
    for name in ("a", "b", "r.yaml"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(place / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with_recipe(build_parser(cli.COMMANDS).parse_args(["apply", *words]), words)
    return capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_texts_of_one_name_stay_two(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = yaml.safe_load(Path("r.yaml").read_text())
    assert said["calib"] == ["a/t.txt", "b/t.txt"]
    assert said[ENVIRONMENT]["texts"]["calib"] == [
        {"name": name, "sha256": sha256(Path(name))} for name in ("a/t.txt", "b/t.txt")
    ]
    assert [name for one in said["pass"] for name in one] == ["taylor", "compensate"]
    assert cli.main(["apply", "--recipe", "r.yaml", "--out", "two"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert contents(place / "one") == contents(Path("two"))


@pytest.mark.usefixtures("here")
def test_another_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("a/t.txt", "t.txt")
    said = _told(["--recipe", "r.yaml", "--calib", "t.txt", "--calib", "t.txt"], capsys)
    assert said.count("warning: ") == 1
    assert "--calib t.txt is not the file b/t.txt that the recipe was made with: its sha256 is " in said
    assert _told(["--recipe", "r.yaml", "--calib", "a/t.txt", "--calib", "b/t.txt"], capsys) == ""
    assert _told(["--recipe", "r.yaml", "--calib", "t.txt"], capsys) == "", "another number of texts is another request"


@pytest.mark.usefixtures("here")
def test_other_versions_and_weights_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    told = yaml.safe_load(Path("r.yaml").read_text())
    told[ENVIRONMENT]["versions"]["torch"] = "1.13"
    (name,) = told[ENVIRONMENT]["source"]["sha256"]
    told[ENVIRONMENT]["source"]["sha256"][name] = "0" * 64
    told[ENVIRONMENT]["source"]["files"]["config.json"] = "0" * 64
    Path("other.yaml").write_text(yaml.safe_dump(told))
    assert cli.main(["apply", "--recipe", "other.yaml", "--out", "three"]) == 0
    said = capsys.readouterr().err
    assert f"warning: the recipe was made with torch 1.13, here {torch.__version__}" in said
    assert f"warning: the recipe was made with other weights: {name}; the result is another one" in said
    assert "warning: the recipe was made with other files of the model: config.json; the result" in said
    assert cli.main(["apply", "--recipe", "other.yaml", "--dry-run"]) == 0
    assert "weights" not in capsys.readouterr().err, "nothing was written that could be compared"


@pytest.mark.parametrize("environment", ["3", "[1]", "{texts: 2}", "{texts: {calib: {a: 1}}}", "{texts: {calib: [x]}}"])
@pytest.mark.usefixtures("here")
def test_an_environment_of_any_form_is_data(environment: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.yaml").write_text(f"model: demo\npass: wanda\ncalib: a/t.txt\nenvironment: {environment}\n")
    assert ENVIRONMENT in read_recipe("odd.yaml", {})
    assert _told(["--recipe", "odd.yaml"], capsys) == ""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("line", "option"), [("model: mychat", "as MODEL"), ("calib: mine.txt", "with --calib")])
@pytest.mark.usefixtures("here")
def test_what_is_missing_at_a_colleague_is_given_by_hand(
    line: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "" if line.startswith("model") else "model: demo\n"
    Path("lacking.yaml").write_text(f"{line}\n{other}pass: taylor\nratio: 0.2\n")
    assert cli.main(["apply", "--recipe", "lacking.yaml", "--out", "four"]) == 2
    said = capsys.readouterr().err
    assert "error: lacking.yaml, line 1: there is no " in said
    assert f"hint: a recipe has the last part of a path alone: give yours on the command line, {option}\n" in said


def test_short_names_tell_paths_apart() -> None:
    assert short_names(["x/a/t.txt", "x/b/t.txt", "u.txt"]) == ["a/t.txt", "b/t.txt", "u.txt"]
    assert short_names(["x/t.txt", "x/t.txt"]) == ["t.txt", "t.txt"]
    assert short_names(["/t.txt", "a/t.txt"]) == ["/t.txt", "a/t.txt"]


NETS = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(12 * 16, 5))


def other():
    net = build()
    with torch.no_grad():
        net[0].weight.add_(1)
    return net


def loss(module):
    return module(torch.ones(2, 3, 8, 8)).square().mean()
"""
EXAMPLE = "float32[2,3,8,8]"


def test_the_recipe_of_a_named_module_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets_to_repeat.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["nets_to_repeat:build", "--example", EXAMPLE, "--loss", "nets_to_repeat:loss"]
    assert cli.main(["apply", *words, "--pass", "taylor", "--ratio", "0.25", "--out", "one"]) == 0
    Path("r.yaml").write_text(recipe_of(read_record(Path("one"))))
    said = yaml.safe_load(Path("r.yaml").read_text())
    assert (said["example"], said["loss"]) == (EXAMPLE, "nets_to_repeat:loss")
    assert said[ENVIRONMENT]["versions"]["torch"] == torch.__version__
    capsys.readouterr()
    assert cli.main(["apply", "--recipe", "r.yaml", "--out", "two"]) == 2
    assert "beside --recipe, as MODEL and options: `nets_to_repeat:build --loss nets_to_repeat:loss`" in (
        capsys.readouterr().err
    )
    again = ["--recipe", "r.yaml", "--loss", "nets_to_repeat:loss"]
    assert cli.main(["apply", "nets_to_repeat:build", *again, "--out", "two"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert json.loads(Path("one", RECORD).read_text()) == json.loads(Path("two", RECORD).read_text())
    assert cli.main(["apply", "nets_to_repeat:other", *again, "--out", "three"]) == 0
    assert "warning: the recipe was made with other weights: tensors;" in capsys.readouterr().err


def test_the_record_of_a_module_in_memory_says_what_text_can_say() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [{"input": torch.randn(4, 6)}]
    small = fxprune.prune_module(net, {"input": torch.randn(4, 6)}, "wanda{samples=4}", ratio=0.25, calib=batches)
    assert small.asked == {"example": "input=float32[4,6]"}
    assert small.source["name"] == "Sequential"
    positional = fxprune.prune_module(net, torch.randn(4, 6), "magnitude", ratio=0.25)
    assert (positional.asked, positional.source) == ({"example": "float32[4,6]"}, small.source)
    with torch.no_grad():
        net[0].bias[0] += 1
    assert fxprune.prune_module(net, torch.randn(4, 6), "magnitude", ratio=0.25).source != small.source


def test_training_after_the_cut_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    small = fxprune.prune_module(net, torch.randn(4, 6), "magnitude", ratio=0.25)
    small.save(tmp_path / "before")
    with torch.no_grad():
        small.module[0].bias.add_(1)
    small.save(tmp_path / "after")
    told = [recipe_of(read_record(tmp_path / name)) for name in ("before", "after")]
    assert ["The weights were changed after the passes" in text for text in told] == [False, True]
    assert all("# A program gave the model: name yours on the command line, as MODEL." in text for text in told)


def test_results_are_printed_in_one_line() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    small = fxprune.prune_module(net, torch.randn(4, 6), "magnitude", ratio=0.25)
    done = fxprune.apply("demo", "random", ratio=0.25, dry_run=True, seed=0)
    for found, begins in (
        (small, "<Pruned: 83 parameters to 63 (75.90% kept) by magnitude"),
        (done, "<Applied: demo, 1,115,520 parameters to "),
        (fxprune.trace("demo"), "<Trace: demo, 1,115,520 parameters in "),
    ):
        assert repr(found).startswith(begins)
        assert len(repr(found)) < 200
