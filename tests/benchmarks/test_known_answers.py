"""Tasks and answers of the benchmark of known models: the items, what is counted, and how it is compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fxprune.benchmarks.known_models.columns import by_task, cells, headers, task_difference
from fxprune.benchmarks.known_models.runs import EVALUATION, VALIDATION
from fxprune.benchmarks.known_models.written import (
    agreement,
    exact,
    exact_prompts,
    followed,
    generated,
    greedy,
    instructions,
    repetition,
)
from fxprune.benchmarks.known_models.zero_shot import ITEMS, MANY, PAPER, chosen, configuration, mean_accuracy
from fxprune.benchmarks.zeroshot import TASKS

from ..decoders import VOCABULARY, llama
from ..word_models import byte_level

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("count", [500, 1200, 1838, 13400])
def test_items_are_nested_apart_and_spread(count: int) -> None:
    few, many = chosen(count, ITEMS), chosen(count, MANY)
    assert many[:ITEMS] == few
    assert len(set(many)) == len(many) == min(MANY, count // 2)
    assert not set(many) & set(chosen(count, MANY, VALIDATION))
    places = np.sort(np.array(few)) / count
    assert np.abs(places - np.arange(ITEMS) / ITEMS).max() < 0.1, "of all parts of the file"
    assert chosen(3, 50) == chosen(3, 1)


def test_a_task_holds_the_chosen_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="comes with the extra fxprune[data]")
    rows = [{"ctx": f"question {number}", "choices": ["a", "b"], "label": 0} for number in range(40)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for split in (EVALUATION, VALIDATION):
        held = configuration("piqa", tmp_path, 5, split)["custom_dataset"]()["test"]
        assert [row["ctx"] for row in held] == [f"question {place}" for place in chosen(40, 5, split)]


def test_the_committed_prompts() -> None:
    assert len(set(instructions())) == 100
    rows = exact_prompts()
    assert len({row["prompt"] for row in rows}) == len(rows) == 30
    assert {row["kind"] for row in rows} == {"arithmetic", "copying", "format"}
    for row in rows:
        assert row["answer"] == row["answer"].strip()
        assert "\n" not in row["answer"]
        assert not row["prompt"].endswith((" ", "\n"))


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 4, 5, 6]) == 0
    assert repetition([1] * 8) == pytest.approx(4 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("one", "two", "wanted"),
    [
        ("The cat sat.", "the cat sat", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # the example of the source
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("", "!", 1.0),
        ("a", "", 0.0),
    ],
)
def test_agreement_is_rouge_l(one: str, two: str, wanted: float) -> None:
    assert agreement(one, two) == pytest.approx(wanted) == agreement(two, one)


def words_of(model: Any, ids: list[int], new: int, end: int) -> list[int]:
    """One text alone, without a cache."""
    found: list[int] = []
    for _ in range(new):
        logits = model(input_ids=torch.tensor([[*ids, *found]]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == end:
            break
        found.append(token)
    return found


def test_prompts_of_a_batch_are_answered_as_alone() -> None:
    model, draw = llama(), np.random.default_rng(0)
    prompts = [draw.integers(0, VOCABULARY, length).tolist() for length in (3, 9, 5, 9, 1, 7)]
    with torch.no_grad():
        free = [words_of(model, ids, 6, -1) for ids in prompts]
        end = free[0][3]
        wanted = [words_of(model, ids, 6, end) for ids in prompts]
    found = greedy(model, SimpleNamespace(eos_token_id=end), prompts, 6)
    assert found == wanted
    assert len(found[0]) < 6, "one of them ends"


class Echo(torch.nn.Module):
    """Answers every prompt with the tokens of one text."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.tokens = tokens

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        answer = torch.tensor(self.tokens[:max_new_tokens]).expand(len(input_ids), -1)
        return torch.cat([input_ids, answer], 1)


def test_answers_are_compared_with_those_of_the_dense_model() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    model = Echo(tokenizer(" 7\n7 + 7 = 8")["input_ids"])
    assert exact(model, tokenizer) == "".join(str(int(row["answer"] == "7")) for row in exact_prompts())
    assert len(followed(model, tokenizer)) == 100
    dense = generated(model, tokenizer)
    assert set(dense) == {"exact", "repeated", "answers"}
    found = generated(Echo(tokenizer(" 7 dogs")["input_ids"]), tokenizer, dense["answers"])
    assert found["first"] == "1" * 100
    assert found["agreement"] == [pytest.approx(2 / 6, abs=1e-3)] * 100, "7 of 7 dogs and of 7 7 7 8"


def row(seed: int, items: int, dense: bool = False) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    tasks = {name: "".join(map(str, draw.integers(0, 2, items))) for name in TASKS}
    written: dict[str, Any] = {"exact": "01" * 15, "repeated": [0.25] * 100}
    more = {"answers": ["x"] * 100} if dense else {"agreement": [0.5] * 100, "first": "1" * 60 + "0" * 40}
    return {"tasks": tasks, "written": written | more}


def test_a_difference_of_accuracies_is_paired() -> None:
    dense, rows = row(0, 90, dense=True), [row(seed, 60) for seed in (1, 2, 3)]
    assert task_difference(rows[:1], rows[:1]) == (0, 0)
    digits = np.array([[[int(d) for d in one["tasks"][name]] for name in PAPER] for one in rows])
    base = np.array([[int(d) for d in dense["tasks"][name][:60]] for name in PAPER])
    apart = digits - base
    variance = (apart.mean(0).var(-1, ddof=1) / 60).sum() / len(PAPER) ** 2 + apart.mean((1, 2)).var(ddof=1) / 3
    mean, error = task_difference(rows, [dense])
    assert (mean, error) == (pytest.approx(apart.mean()), pytest.approx(np.sqrt(variance)))


def test_the_columns_of_a_line() -> None:
    dense, found = row(0, 90, dense=True), [row(1, 60), row(2, 60)]
    shown = dict(zip(headers(), cells(found, dense), strict=True))
    mean = 100 * (mean_accuracy(found[0]["tasks"]) + mean_accuracy(found[1]["tasks"])) / 2
    assert shown["mean accuracy"].startswith(f"{mean:.1f} ± ")
    assert shown["of dense"] == f"{100 * mean / (100 * mean_accuracy(dense['tasks'], 60)):.1f}"
    assert (shown["exact"], shown["repeated"], shown["agreement"], shown["first"]) == ("50", "25", "50", "60")
    assert dict(zip(headers(), cells([dense], dense), strict=True))["agreement"] == "100"
    assert set(cells([{"losses": {}}], dense)) == {"-"}


def test_a_line_for_every_task() -> None:
    rows = {"dense": row(0, 90, dense=True), "pruned": row(1, 90), "unmeasured": {"losses": {}}}
    lines = by_task(rows, "dense")
    assert len(lines) == 2 + len(TASKS) + 2
    assert "unmeasured" not in lines[0]
    share = 100 * mean_accuracy(rows["pruned"]["tasks"]) / mean_accuracy(rows["dense"]["tasks"])
    assert lines[-1] == f"| of dense, % | | 100.00 | {share:.2f} |"


@pytest.fixture(scope="module")
def requests() -> list[tuple[str, list[int], list[int]]]:
    """Choices of long and of short contexts, one token or several, and continuations alone."""
    draw = np.random.default_rng(1)

    def tokens(length: int) -> list[int]:
        return draw.integers(0, VOCABULARY, length).tolist()

    found = []
    for length, choices in ((30, (1, 1)), (40, (3, 5, 1)), (4, (2, 3)), (7, (4,)), (50, (6,)), (1, (9,))):
        context = tokens(length)
        found += [("", context, tokens(wanted)) for wanted in choices]
    return found


def test_choices_are_scored_as_each_alone(requests: list[tuple[str, list[int], list[int]]]) -> None:
    pytest.importorskip("lm_eval", reason="comes with the extra fxprune[eval]")
    from fxprune.benchmarks.known_models.scored import ScoredModel

    model = llama()
    found = ScoredModel(model, None)._loglikelihood_tokens(requests)
    assert len(found) == len(requests)
    for (score, whole), (_, context, wanted) in zip(found, requests, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *wanted]]), use_cache=False).logits[0]
        logits = logits[len(context) - 1 : -1]
        targets = torch.tensor(wanted)
        assert score == pytest.approx(float(logits.log_softmax(-1).gather(1, targets[:, None]).sum()), rel=1e-5)
        assert whole == bool((logits.argmax(-1) == targets).all())
