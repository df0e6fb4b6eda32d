"""The built-in model loads plainly and has learned its text; the parts of the text are disjoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fxprune.demo import MODEL_DIR, text
from fxprune.demo import train as training
from fxprune.ir.errors import FxpruneError, RequestError

# The name fxprune.demo.text is the function that the package re-exports; the module behind it is found by name.
text_module = sys.modules["fxprune.demo.text"]

PARTS = ("train", "calibration", "recovery", "evaluation")
WINDOW = 128


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


@pytest.fixture
def no_text_cache() -> Iterator[None]:
    text_module._part.cache_clear()
    yield
    text_module._part.cache_clear()


def paragraphs(part: str) -> set[str]:
    return {line for line in text(part).splitlines() if len(line) > 80}


def test_the_model_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 3_000_000


def test_the_model_loads_plainly() -> None:
    model, report = AutoModelForCausalLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    assert {kind: found for kind, found in report.items() if found} == {}
    assert model.dtype == torch.float16
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_model_is_the_one_that_the_script_trains(model) -> None:
    made, shipped = training.new_model().config.to_dict(), model.config.to_dict()
    written = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    assert {k: v for k, v in made.items() if k not in written} == {k: v for k, v in shipped.items() if k not in written}


@pytest.mark.parametrize(("part", "windows"), [("calibration", 20), ("recovery", 300), ("evaluation", 100)])
def test_a_part_is_large_enough(tokenizer, part: str, windows: int) -> None:
    assert len(tokenizer(text(part))["input_ids"]) // WINDOW >= windows


def test_the_parts_share_no_paragraph() -> None:
    parts = {part: paragraphs(part) for part in PARTS}
    assert all(len(found) > 50 for found in parts.values())
    assert {(a, b): parts[a] & parts[b] for a, b in combinations(PARTS, 2) if parts[a] & parts[b]} == {}


def test_a_paragraph_occurs_once() -> None:
    lines = [line for line in text("evaluation").splitlines() if line]
    assert len(lines) == len(set(lines))


def test_the_text_is_prose() -> None:
    evaluation = text("evaluation")
    assert evaluation.startswith("HTTP status codes and reason phrases\n")
    assert ">>>" not in evaluation
    assert sum(c.isalpha() or c in " \n" for c in evaluation) > 0.9 * len(evaluation)


def test_the_text_is_the_same_in_every_process() -> None:
    code = "import fxprune.demo, hashlib; print(hashlib.sha256(fxprune.demo.text('recovery').encode()).hexdigest())"
    runs = {subprocess.check_output([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}) for seed in "12"}
    assert len(runs) == 1


def test_importing_the_text_brings_in_no_torch_of_its_own() -> None:
    code = "import sys, fxprune; n = 'torch' in sys.modules; import fxprune.demo; print(n == ('torch' in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        text("test")
    assert caught.value.message == "the built-in text has no part 'test'"
    assert caught.value.hint == "use one of train, evaluation, calibration, recovery"


@pytest.mark.usefixtures("no_text_cache")
def test_an_installation_without_sources_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_module.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(FxpruneError) as caught:
        text("calibration")
    assert caught.value.message == f"the standard module 'http' has no source under {tmp_path}"
    assert "full installation of Python" in caught.value.hint


def test_the_tokenizer_loses_nothing(tokenizer) -> None:
    odd = "def f(x):\n\treturn  x['é']  # naïve ☃\n\n  done"
    for sample in (odd, text("calibration")):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample


def test_the_model_has_learned_the_text(model, tokenizer) -> None:
    tokens = torch.tensor(tokenizer(text("evaluation"))["input_ids"])
    assert training.perplexity(model, tokens) < 60


def test_the_model_generates(model, tokenizer) -> None:
    prompt = tokenizer("Return a list of", return_tensors="pt")
    made = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    without_cache = model.generate(**prompt, max_new_tokens=24, do_sample=False, use_cache=False)[0]
    assert len(made) == 24
    assert len(set(made.tolist())) > 5
    assert without_cache[-24:].tolist() == made.tolist()


def test_a_short_training_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = text("calibration")
    monkeypatch.setattr(training, "text", lambda _: whole)
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path), "--minutes", "0.03"])
    threads = torch.get_num_threads()
    training.main()
    torch.set_num_threads(threads)

    said = capsys.readouterr().out
    reached = float(said.split("evaluation perplexity ")[1])
    assert 1 < reached < training.VOCABULARY
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == training.VOCABULARY
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 0
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
