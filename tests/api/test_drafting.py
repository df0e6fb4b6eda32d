"""A draft of its own parent: the output stays that of the dense model, and what is counted can be counted by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from fxprune import api
from fxprune.api.benchmarking.drafting import Race
from fxprune.api.terminal.drafts import drafted
from fxprune.cli import main
from fxprune.demo import MODEL_DIR
from fxprune.ir import FxpruneError, RequestError

from ..decoders import random_decoder
from ..passes.drop.test_drop import MODELS

SHORT: dict[str, Any] = {"prompts": 2, "prompt": 12, "new": 10, "rounds": 1, "draft_tokens": 3}


def test_a_model_that_drafts_for_itself_is_accepted_whole() -> None:
    found = api.bench_draft("demo", "demo", **SHORT)
    # Every step keeps the three drafted tokens and adds one; the last of a prompt has two tokens left to write.
    assert (found.steps, found.accepted) == (2 * 3, (20 - 6) / 6)
    assert found.drafted >= found.prompts * found.new - found.steps
    assert found.alone.low > 0 < found.assisted.low
    assert "batch_size = 1" in found.larger_batches
    assert found.parameters[0] == found.parameters[1]
    console = Console(width=200, record=True)
    for part in drafted(found):
        console.print(part)
    shown = console.export_text()
    assert "2.33 of up to 3 drafted tokens accepted per step; 6 steps for 20 tokens" in shown
    assert "one round has no spread" in shown
    assert "slower" not in shown
    assert json.loads(json.dumps(found.to_json()))["accepted"] == found.accepted


def test_the_command_prints_what_it_found(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "demo", "--draft", "demo", "--prompts", "1", "--prompt", "8", "--new", "4", "--rounds", "1"]
    assert main(words) == 0
    assert "tokens accepted per step" in capfd.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["prompts"] == 1


def greedy(model: Any, ids: torch.Tensor, new: int) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


def test_the_steps_are_those_of_greedy_speculation_by_hand() -> None:
    dense, draft = (random_decoder(copy.deepcopy(MODELS["llama"]), 0.2, torch.float32) for _ in range(2))
    draft.model.layers = draft.model.layers[:3]
    draft.config.num_hidden_layers = 3
    windows, new, tokens = torch.arange(24).view(2, 12), 9, 2
    race = Race(dense, draft, windows, new, tokens)
    steps, *_ = race.run(1, lambda _: None)
    expected = 0
    for ids in windows:
        whole, at = greedy(dense, ids[None], new), 12
        while at < 12 + new:
            wanted = whole[:, at : at + min(tokens, 12 + new - at - 1)]  # the last token is the model's own
            ahead = greedy(draft, whole[:, :at], wanted.shape[1])[:, at:]
            at += int((ahead == wanted).long().cumprod(1).sum()) + 1
            expected += 1
    assert steps == expected


def test_other_output_than_the_model_s_is_a_failure() -> None:
    model = random_decoder(copy.deepcopy(MODELS["llama"]), 0.2, torch.float32)
    race = Race(model, model, torch.arange(12)[None], 4, 2)
    same = torch.arange(16)[None]
    race._compare(same, same, 0)
    other = same.clone()
    other[0, 14] = 0
    with pytest.raises(FxpruneError, match="with the draft, prompt 1 goes on otherwise after 2 tokens"):
        race._compare(other, same, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drafts that are none: one with more tokens, one whose tokens have other numbers."""
    folder = tmp_path_factory.mktemp("drafts")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    for name in ("larger", "other"):
        tokenizer.save_pretrained(folder / name)
        model.save_pretrained(folder / name)
    file = folder / "other" / "tokenizer.json"
    data = json.loads(file.read_text())
    words = data["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(data))
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(folder / "larger")
    return folder


@pytest.mark.parametrize(
    ("name", "message"), [("larger", "has another vocabulary: "), ("other", "has another tokenizer: ")]
)
def test_a_draft_has_the_tokens_of_the_model(name: str, message: str, others: Path) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        api.bench_draft("demo", others / name, **SHORT)
    assert "prune the model itself" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--draft", "demo", "--prompts", "0"], "nothing to time with --prompts 0\n"),
        (["demo", "--draft", "demo", "--draft-tokens", "0"], "nothing to time with --draft-tokens 0\n"),
        (["demo", "demo", "--draft", "demo"], "--draft is for one model, all of it in memory, and there are 2 models"),
        (["demo", "--draft", "demo", "--onnx"], "--onnx has no effect beside --draft"),
        (["demo", "--draft", "demo", "--offload", "disk"], "--offload disk"),
        (["demo", "--text", "a.txt"], "--text has no effect without --draft"),
        (["demo", "--draft-tokens", "3"], "--draft-tokens has no effect without --draft"),
        (["here", "--draft", "demo"], "--draft needs text for its prompts"),
    ],
)
def test_a_request_that_is_none(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
