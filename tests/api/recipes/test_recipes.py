"""Recipes: told with the line of what is wrong, equal to the command that they stand for, printed from a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fxprune import cli
from fxprune.api.recipes.read import description, own_recipes, read_recipe
from fxprune.api.recipes.settings import NOT_HERE, arguments_of, with_recipe
from fxprune.api.terminal.arguments import build_parser
from fxprune.backends.artifact import RECORD, read_record
from fxprune.backends.recipe import recipe_of
from fxprune.ir.errors import RequestError
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import all_passes

from ...checkpoints import contents


def _said(words: list[str]) -> object:
    """What a command line means, with its recipe."""
    return with_recipe(build_parser(cli.COMMANDS).parse_args(["apply", *words]), words)


def _written(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_recipe_says_what_the_command_says(tmp_path: Path) -> None:
    recipe = _written(
        tmp_path,
        "model: demo\nratio: 0.25\nform: free\nchannels: true\nseed: 3\nprint_ir_after: [taylor]\n"
        "pass:\n  - taylor: {samples: 4, variant: second}\n  - lora\n",
    )
    words = ["demo", "--ratio=0.25", "--form=free", "--channels=true", "--seed=3", "--print-ir-after=taylor"]
    words += ["--pass=taylor{samples=4,variant=second}", "--pass=lora"]
    found, wanted = vars(_said(["--recipe", recipe])), vars(_said(words))
    differing = {key for key in wanted if key not in ("parser", "origins") and found[key] != wanted[key]}
    assert differing == {"recipe"}


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = _written(tmp_path, "model: demo\nratio: 0.25\npass: taylor\n")
    found = vars(_said(["other", "--recipe", recipe, "--ratio", "0.5", "--pass", "wanda"]))
    assert (found["model"], found["ratio"], found["passes"]) == ("other", "0.5", ["wanda"])


def test_variables_and_extends(tmp_path: Path) -> None:
    _written(tmp_path, "variables: {kept: 0.8, n: 4}\ntarget: params=${kept}\nseed: 1\n", "base.yaml")
    recipe = _written(tmp_path, 'extends: base.yaml\nvariables:\n  kept: 0.5\npass:\n  - wanda: {samples: "${n}"}\n')
    found = vars(_said(["demo", "--recipe", recipe]))
    assert (found["target"], found["passes"], found["seed"]) == ("params=0.5", ["wanda{samples=4}"], "1")
    found = vars(_said(["demo", "--recipe", recipe, "--set", "kept=0.7", "--set", "n=9"]))
    assert (found["target"], found["passes"]) == ("params=0.7", ["wanda{samples=9}"])


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("ratio: 0.5\nratoi: 0.5\n", 2, "no setting 'ratoi'", "did you mean 'ratio'"),
        ("ratio: 0.5\nratio: 0.6\n", 2, "'ratio' stands twice", "line 1"),
        ("form: fre\n", 1, "'fre' is none of", "did you mean 'free'"),
        ("pass:\n  - taylor: {samples: [1]}\n", 2, "a list or mapping", "give a text"),
        ("pass:\n  - {taylor: {}, wanda: {}}\n", 2, "no pass with its options", "- taylor"),
        ("pass: {taylor: {samples: 1}}\n", 1, "a mapping in the place of a list", "write a list"),
        ("target: params=${kpt}\nvariables: {kept: 1}\n", 1, "no variable 'kpt'", "did you mean 'kept'"),
        ("ratio: [0.1, 0.2]\n", 1, "a list in the place", "give one"),
        ("model: [demo\n", 2, "expected", "key: value"),
        ("a: &x 1\nratio: *x\n", 2, "*x stands for", "write it out"),
        ("? [a]\n: 1\n", 1, "a key that is no text", "key: value"),
        ("variables: {a: [1]}\n", 1, "'a' is no text", "one value"),
        ("out: /etc/fxprune\n", 1, "leads out of the working directory", "--out"),
        ("scores: ../../x\n", 1, "leads out of the working directory", "--scores"),
        ("model: os:abort\n", 1, "names a function", "as MODEL"),
        ("loss: mine:loss\n", 1, "names a function", "--loss"),
        ("calib: timeit:main\n", 1, "names a function", "--calib"),
        ("data: some.package:rows\n", 1, "names a function", "--data"),
        ("extends: r.yaml\n", 1, "extends this recipe", "one file"),
        ("ratio: 0.2\nextends: evil:f\n", 2, "evil:f'", ".yaml"),
        ("ratio: 0.2\npass: []\n", 2, "no pass is named", "write a list"),
        ("pass: !!python/name:os.abort\n", 1, "no pass is named", "write a list"),
    ],
)
def test_what_is_wrong_has_its_line(text: str, line: int, message: str, hint: str, tmp_path: Path) -> None:
    recipe = _written(tmp_path, text)
    with pytest.raises(RequestError) as caught:
        _said(["--recipe", recipe])
    assert caught.value.message.startswith(f"{recipe}, line {line}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("ratio: 0.2\nmodel: ./gone\npass: taylor\n", 2, "./gone"),
        ("model: demo\nratio: 1.5\npass: taylor\n", 2, "ratio=1.5 is outside [0, 1)"),
        ("model: demo\nratio: 2\npass: taylor\n", 2, "ratio=2 is outside [0, 1)"),
        ("model: demo\nratio: nan\npass: taylor\n", 2, "cannot be 'nan'"),
        ("model: demo\ntarget: params=nan\npass: taylor\n", 2, "target 'params=nan'"),
        ("model: demo\npass:\n  - taylro\n", 3, "unknown pass 'taylro'"),
        ("model: demo\npass:\n  - taylor:\n      samples: -4\n", 4, "samples=-4 is below 1"),
        ("model: demo\nratio: 0.2\npass: taylor\ncalib: [gone.txt]\n", 4, "gone.txt"),
        ("model: demo\nplan: gone\n", 2, "gone"),
        ("model: demo\nexample: evil:f\npass: magnitude\n", 2, "--example has no effect"),
        ("model: demo\npass: taylor\ncalib: ./gone.txt\n", 3, "gone.txt"),
        ("model: demo\nratio: 0.2\npass: taylor\ndevice: tpu9\n", 4, "tpu9"),
    ],
)
def test_what_only_the_run_finds_wrong_has_its_line_too(
    text: str, line: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _written(tmp_path, text)
    assert cli.main(["apply", "--recipe", recipe, "--out", str(tmp_path / "OUT"), "-q"]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"error: {recipe}, line {line}: ")
    assert message in first


def test_the_command_line_has_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _written(tmp_path, "model: ./gone\nratio: 0.2\npass: taylor\n")
    assert cli.main(["apply", "./other", "--recipe", recipe, "--ratio", "1.5", "--out", str(tmp_path), "-q"]) == 2
    assert capsys.readouterr().err.startswith("error: taylor: ratio=1.5")


def test_recipes_of_strangers_allow_nothing(tmp_path: Path) -> None:
    for key in NOT_HERE:
        with pytest.raises(RequestError, match="no recipe can say"):
            _said(["demo", "--recipe", _written(tmp_path, f"{key}: true\n")])
    entries = read_recipe(_written(tmp_path, "calib: imdb:train\n"), {})
    parser = build_parser(cli.COMMANDS).parse_args(["apply", "demo"]).parser
    assert arguments_of(entries, parser) == {"--calib": ["--calib=imdb:train"]}


@pytest.mark.parametrize("key", ["calib", "data"])
@pytest.mark.parametrize("value", ["evil:batches", "[evil:batches]", "pk.evil:batches", "json:load"])
def test_no_function_of_the_working_directory_runs(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("open('ran', 'w').close()\ndef batches():\n    open('ran', 'w').close()\n    yield {}\n")
    recipe = _written(tmp_path, f"pass: obs\nratio: 0.5\nexample: 'float32[2,4]'\n{key}: {value}\n")
    for words in (["torch.nn:Identity"], ["demo"]):
        assert cli.main(["apply", *words, "--recipe", recipe, "--dry-run"]) == 2
        assert f"line 4: '{value.strip('[]')}' names a function, which would run" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "nowhere.yaml"], "cannot be read"),
        (["--recipe", "papre"], "there is no recipe 'papre'"),
        (["demo", "--set", "a=1"], "--set without --recipe"),
        (["demo", "--recipe", "paper", "--set", "a=1"], "has no variable 'a'"),
        (["demo", "--recipe", "paper", "--set", "a"], "sets nothing"),
    ],
)
def test_bad_requests(words: list[str], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        _said(words)
    assert message in caught.value.message


def test_damaged_files(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[" * 5000, b"# " + b"x" * (1 << 20)):
        (tmp_path / "r.yaml").write_bytes(content)
        with pytest.raises(RequestError, match=r"r\.yaml"):
            read_recipe(str(tmp_path / "r.yaml"), {})
    with pytest.raises(SystemExit):
        _said(["--recipe", _written(tmp_path, "ratio: 0.5\n")])  # no model


@pytest.mark.parametrize("name", own_recipes())
def test_recipes_of_fxprune_are_pipelines(name: str) -> None:
    found = vars(_said(["demo", "--recipe", name]))
    shared = {key: found[key] for key in ("ratio", "target")}
    assert parse_pipeline(found["passes"], all_passes(), {key: value for key, value in shared.items() if value})
    assert description(own_recipes()[name]).endswith((".", "module that it returns."))


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    "said", ["ratio: 0.25", "ratio: 0.25\nform: free", "target: params=0.8"], ids=["uniform", "free", "free by widths"]
)
def test_the_recipe_of_a_result_makes_it_again(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by = "" if "ratio" in said else ", by: global"
    recipe = _written(tmp_path, f"model: demo\n{said}\npass:\n  - taylor: {{samples: 2, length: 16{by}}}\n")
    assert cli.main(["apply", "--recipe", recipe, "--out", "one"]) == 0
    again = recipe_of(read_record(Path("one")))
    said = yaml.safe_load(again)
    assert said["environment"]["versions"] == json.loads(Path("one", RECORD).read_text())["versions"]
    assert "calib" not in said, "the built-in text is taken where none is named"
    assert cli.main(["apply", "--recipe", _written(tmp_path, again), "--out", "two"]) == 0
    assert contents(Path("one")) == contents(Path("two"))


def test_the_command_prints_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"{name}: ") for line in listed) for name in own_recipes())
    assert cli.main(["recipe", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["recipes"]) == list(own_recipes())
    assert cli.main(["recipe", "paper"]) == 0
    assert capsys.readouterr().out == own_recipes()["paper"].read_text(encoding="utf-8")
    assert cli.main(["recipe", str(tmp_path)]) == 2
    assert "fxprune.json does not exist" in capsys.readouterr().err
    assert cli.main(["recipe", "papre"]) == 2
    said = capsys.readouterr().err
    assert "there is no directory 'papre', and fxprune has no recipe of that name" in said
    assert "did you mean 'paper'? its recipes: " in said
    assert ", ".join(own_recipes()) in said


def test_a_function_that_a_recipe_names_may_be_said_by_the_command(tmp_path: Path) -> None:
    recipe = _written(tmp_path, "model: os:abort\nloss: mine:loss\npass: random\n")
    told = _said(["mine:net", "--recipe", recipe, "--loss", "mine:other"])
    assert (told.model, told.loss, told.passes) == ("mine:net", "mine:other", ["random"])
    with pytest.raises(RequestError, match="line 2: 'mine:loss' names a function"):
        _said(["mine:net", "--recipe", recipe])


def test_a_recipe_of_a_module_in_memory_names_no_model() -> None:
    assert "model" not in yaml.safe_load(recipe_of({"model": "", "pipeline": "random"}))


@pytest.mark.parametrize("asked", [3, ["loss"], {"loss": 3, "calib": {"sha256": "0"}, "force": "true"}])
def test_a_damaged_record_of_a_module_names_nothing(asked: object) -> None:
    said = yaml.safe_load(recipe_of({"model": "a:b", "pipeline": "random", "asked": asked}))
    assert set(said) == {"model", "pass", "environment"}


def test_a_recipe_says_how_texts_are_read(tmp_path: Path) -> None:
    recipe = _written(
        tmp_path,
        "model: demo\npass: lora\ncalib: a.txt\ndata: [b.csv, c.jsonl]\nfield: [calib=x, 'data=q,a']\nsplit: test\n"
        "train_on: answers\n",
    )
    words = ["demo", "--pass=lora", "--calib=a.txt", "--data=b.csv", "--data=c.jsonl", "--field=calib=x"]
    words += ["--field=data=q,a", "--split=test", "--train-on=answers"]
    told, plain = vars(_said(["--recipe", recipe])), vars(_said(words))
    assert {**told, "recipe": None, "parser": None, "origins": ()} == {**plain, "parser": None}
    instead = vars(_said(["--recipe", recipe, "--data", "d.jsonl", "--field", "data=body"]))
    assert (instead["calib"], instead["data"], instead["field"]) == (["a.txt"], ["d.jsonl"], ["data=body"])


def test_the_recipe_of_a_result_says_how_its_texts_were_read() -> None:
    files = [
        {"name": "b.csv", "format": "prompt", "field": "q,a"},
        {"name": "c.jsonl", "format": "prompt", "field": "q,a"},
    ]
    texts = [
        {"read_as": "calibration", "name": "set", "read_from": {"format": "text", "field": "body", "split": "test"}},
        {"read_as": "recovery", "name": "b.csv, c.jsonl", "read_from": {"files": files}},
    ]
    found = yaml.safe_load(recipe_of({"model": "demo", "pipeline": "lora{train_on=all}", "texts": texts}))
    assert found["calib"] == "set"
    assert found["data"] == ["b.csv", "c.jsonl"]
    assert found["field"] == ["calib=body", "data=q,a"]
    assert found["split"] == ["calib=test"]
    assert found["pass"] == [{"lora": {"train_on": "all"}}]
