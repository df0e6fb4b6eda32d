"""Models compared: several texts, paired differences with their errors, generated text, and the JSON of it all."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fxprune
from fxprune import api, cli
from fxprune.api.evaluating.comparison import SCHEMA
from fxprune.ir.errors import RequestError

from ..pruning.interrupted import VOCABULARY, write_source

ROWS = [" ".join(list(VOCABULARY)[i * i * k % 26] for i in range(40)) for k in range(1, 9)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of one tokenizer; the second has fewer parameters."""
    folder = tmp_path_factory.mktemp("compared")
    source = write_source(folder / "large")
    fxprune.apply(source, "magnitude{ratio=0.5}", out=folder / "small")
    return [str(folder / "small"), str(source)]


@pytest.fixture(scope="module")
def texts(models: list[str]) -> list[Path]:
    folder = Path(models[0]).parent
    for at, name in enumerate(("one.txt", "two.txt")):
        (folder / name).write_text(" ".join(ROWS[at::2]))
    return [folder / "one.txt", folder / "two.txt"]


def losses(folder: str, text: Path, window: int) -> list[float]:
    """By transformers alone: the mean loss of every window."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer.encode(text.read_text(), add_special_tokens=False))
    windows = ids[: len(ids) // window * window].view(-1, window)
    with torch.no_grad():
        return [float(model.float()(input_ids=one[None], labels=one[None]).loss) for one in windows]


def test_paired_differences_are_those_of_the_windows(models: list[str], texts: list[Path]) -> None:
    found = api.compare(models, texts, window=16, speed=False)
    assert found.models[found.baseline].name == models[1], "the largest"
    differences = found.differences()
    assert [(one.of, one.name, one.model) for one in differences] == [("text", str(text), models[0]) for text in texts]
    data = found.to_json()
    for at, (one, text) in enumerate(zip(differences, texts, strict=True)):
        small, large = (losses(model, text, 16) for model in models)
        values = [a - b for a, b in zip(small, large, strict=True)]
        assert one.pairs == len(values) > 3
        assert one.value == pytest.approx(statistics.fmean(values), abs=1e-5)
        assert one.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-5)
        row = data["texts"][at]["models"][0]
        assert row["log_perplexity"] == pytest.approx(statistics.fmean(small), abs=1e-5)
        assert row["standard_error"] == pytest.approx(statistics.stdev(small) / math.sqrt(len(small)), abs=1e-5)
        assert (row["name"], row["windows"], row["tokens"]) == (models[0], len(small), 15 * len(small))
    assert data["models"][0]["perplexity"]["value"] == data["texts"][0]["models"][0]["perplexity"]
    assert data["models"][0]["speed"] is None


def test_a_model_has_no_difference_from_itself(models: list[str], texts: list[Path]) -> None:
    (one,) = api.compare([models[1], models[1]], texts[0], window=16, speed=False).differences()
    assert (one.value, one.error) == (0, 0)


def test_the_baseline_can_be_named(models: list[str], texts: list[Path]) -> None:
    (one,) = api.compare(models, texts[0], window=16, windows=1, baseline=models[0], speed=False).differences()
    assert (one.model, one.baseline, one.pairs, one.error) == (models[1], models[0], 1, None)
    with pytest.raises(RequestError, match="--baseline other is none of the models"):
        api.compare(models, texts[0], baseline="other")


def test_generated_text_is_that_of_transformers(models: list[str]) -> None:
    found = api.compare(models, generate=["a b c", "z"], new=6, speed=False)
    assert found.models[0].perplexity is None, "no text was given"
    for model in found.models:
        plain, tokenizer = (
            AutoModelForCausalLM.from_pretrained(model.name).float(), AutoTokenizer.from_pretrained(model.name),
        )  # fmt: skip
        for one, prompt in zip(model.generations, ("a b c", "z"), strict=True):
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            options = {
                "attention_mask": torch.ones_like(ids),
                "do_sample": False,
                "max_new_tokens": 6,
                "pad_token_id": 0,
            }
            wanted = plain.generate(ids, **options)[0, ids.shape[1] :]
            assert list(one.tokens) == wanted.tolist()
            assert one.text == tokenizer.decode(wanted, skip_special_tokens=True)
    data = found.to_json()["generations"]
    assert [one["prompt"] for one in data] == ["a b c", "z"]
    assert data[0]["models"][1]["tokens"] == list(found.models[1].generations[0].tokens)
    assert not data[0]["models"][1]["full"]


def test_text_that_ends_with_the_context_says_so(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", models[0], "--generate", "a b c", "--new", "500", "--no-speed"]) == 0
    written = api.compare(models[:1], generate=["a b c"], new=500, speed=False).models[0].generations[0]
    assert written.full
    assert len(written.tokens) == 64 - 3
    assert "61, context full" in capsys.readouterr().out


def test_json_goes_to_a_file_that_is_new(
    models: list[str], texts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eval.json"
    words = ["eval", *models, "--window", "16", "--windows", "3", "--no-speed", "--generate", "a b", "--new", "2"]
    words += [word for text in texts for word in ("--text", str(text))]
    assert cli.main([*words, "--json", str(file)]) == 0
    out, _ = capsys.readouterr()
    data = json.loads(file.read_text())
    assert data["schema"] == SCHEMA
    assert set(data) == {
        "schema", "text", "window", "baseline", "models", "texts", "tasks", "differences", "generations", "environment",
    }  # fmt: skip
    assert data["environment"]["versions"]["torch"] == torch.__version__
    for shown in ("log-perplexity", "paired difference from", "after 'a b'", "one.txt", " ± "):
        assert shown in out
    assert "tok/s" not in out
    alone = ["eval", models[0], "--text", str(texts[0]), "--window", "16", "--windows", "3", "--no-speed"]
    assert cli.main(alone) == 0
    assert " ± " in capsys.readouterr().out
    before = file.read_bytes()
    assert cli.main([*words, "--json", str(file)]) == 2
    assert f"{file} already exists" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_json_never_takes_a_model_for_a_file(models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", models[0], "--json", models[1]]) == 2
    assert "a file for the result ends in .json" in capsys.readouterr().err


def test_rows_of_a_field_are_measured(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("n,body\n" + "".join(f"{n},{row}\n" for n, row in enumerate(ROWS)))
    (tmp_path / "rows.txt").write_text("\n\n".join(ROWS))
    options: dict[str, Any] = {"window": 16, "speed": False}
    named = fxprune.evaluate(models[0], tmp_path / "rows.csv", field="body", **options)
    plain = fxprune.evaluate(models[0], tmp_path / "rows.txt", **options)
    assert named[0].perplexity == plain[0].perplexity
    with pytest.raises(RequestError, match=r"--field body: .*rows.txt is no rows with fields"):
        fxprune.evaluate(models[0], tmp_path / "rows.txt", field="body", **options)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "missing --text FILE"),
    ({"tasks": "blimp", "limit": 0}, "--limit 0 leaves no item|needs lm_eval"),
    ({"text": ROWS, "limit": 3}, "--limit without --tasks"),
    ({"text": ROWS, "tasks_dir": "."}, "--tasks-dir without --tasks"),
    ({"generate": "a", "new": 0}, "--new 0 writes no token"),
    ({"generate": "a " * 80}, "has 80 tokens, and the context of the model 64"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_measured_is_an_error(models: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        fxprune.evaluate(models[0], speed=False, **{"window": 16, **options})
    assert caught.value.hint
