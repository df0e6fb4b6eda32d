"""Tasks from a directory: rows, lm-eval's own files without code, and what is refused; with lm-eval itself where it is
installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import fxprune
from fxprune.api.evaluating.task_files import refuse_code, row_tasks, task_of_rows
from fxprune.api.evaluating.tasks import AskedTasks
from fxprune.ir.errors import RequestError

from ..pruning.interrupted import VOCABULARY, write_source

METRICS = ("acc", "acc_norm")
LETTERS = list(VOCABULARY)[:26]

ITEMS: dict[str, list[dict[str, Any]]] = {
    "choice": [{"ctx": f"a b {LETTERS[n]}", "choices": ["c d", "e", LETTERS[n]], "label": n % 3} for n in range(12)],
    "pair": [{"good": f"a {LETTERS[n]} b", "bad": f"b {LETTERS[n]} a", "kind": "x"} for n in range(7)],
    "gap": [{"sentence": f"a _ b {LETTERS[n]}", "choices": ["x", "y"], "label": n % 2} for n in range(7)],
    "last": [{"text": f"a b {LETTERS[n]}"} for n in range(7)],
}


def write_tasks(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in ITEMS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rows_become_tasks_by_their_fields(tmp_path: Path) -> None:
    found = row_tasks(write_tasks(tmp_path / "tasks"))
    assert set(found) == set(ITEMS)
    forms = {name: task_of_rows(name, path) for name, path in found.items()}
    assert {name: form["output_type"] for name, form in forms.items()} == {
        "choice": "multiple_choice", "pair": "multiple_choice", "gap": "multiple_choice", "last": "loglikelihood",
    }  # fmt: skip
    assert [one["metric"] for one in forms["choice"]["metric_list"]] == ["acc", "acc_norm"]
    held = forms["pair"]["custom_dataset"]()["test"]
    assert held[0] == {"good": "a a b", "bad": "b a a"}, "other fields are left out"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "x"}', "line 1 is no item of a task; its fields: question"),
        ('{"good": "x", "bad": "y"}\n{"good": "x"}', "line 2 is no item of a task; its fields: good"),
        ("", "is empty"),
        ("[1]", "row 0 is not an object but int"),
    ],
)
def test_rows_that_are_no_task(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(RequestError) as caught:
        task_of_rows("a", tmp_path / "a.jsonl")
    assert message in caught.value.message


CODE = [
    ("doc_to_text: !function utils.text", 1, "!function names code that would run"),
    ("task: x\nprocess_docs: !function utils.docs", 2, "!function names code that would run"),
    ("task: [a, {b: !!python/object/apply:os.system [id]}]", 1, "tag:yaml.org,2002:python/object/apply:os.system"),
    ("class: !function task.Mine", 1, "'class' runs code"),
    ("class: task.Mine", 1, "'class' runs code"),
    ("use_prompt: promptsource:x", 1, "'use_prompt' runs code"),
    ("unsafe_code: true", 1, "'unsafe_code' runs code"),
    ("dataset_kwargs: {trust_remote_code: true}", 1, "'trust_remote_code' runs code"),
    ("include: /etc/task.yaml", 1, "'include: /etc/task.yaml' leads out of the directory"),
    ("include: ../task.yaml", 1, "'include: ../task.yaml' leads out of the directory"),
    ("metric_list:\n  - metric: ./mine", 2, "the metric './mine' is none of lm-eval's own"),
    ("metric_list:\n  - metric: acc\n    hf_evaluate: true", 3, "'hf_evaluate' runs code"),
]


@pytest.mark.parametrize(("content", "line", "message"), CODE)
def test_a_task_that_names_code_is_refused(tmp_path: Path, content: str, line: int, message: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "task.yaml").write_text(content)
    with pytest.raises(RequestError) as caught:
        refuse_code(tmp_path, METRICS)
    assert f"task.yaml, line {line}: " in caught.value.message
    assert message in caught.value.message
    assert "--trust-task-code" in caught.value.hint


def test_plain_tasks_pass_until_one_names_code(tmp_path: Path) -> None:
    plain = "task: a\ninclude: b.yaml\nhf_evaluate: false\nmetric_list:\n  - {metric: acc, aggregation: mean}\n"
    (tmp_path / "a.yaml").write_text(plain)
    refuse_code(tmp_path, METRICS)
    (tmp_path / "a.yaml").write_text(plain + "class: x.Y\n")
    with pytest.raises(RequestError, match=r"a.yaml, line 6: 'class' runs code"):
        refuse_code(tmp_path, METRICS)


def test_a_link_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "secret.yaml").write_text("task: x")
    (tmp_path / "tasks" / "a.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(RequestError, match=r"a.yaml cannot be read"):
        refuse_code(tmp_path / "tasks", METRICS)


def test_without_lm_eval_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match="--tasks needs lm_eval, which is not installed") as caught:
        AskedTasks(("blimp",)).check()
    assert caught.value.hint == "pip install 'fxprune[eval]'"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("lm_eval")
    folder = write_source(tmp_path_factory.mktemp("tasks") / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = LETTERS[-1]  # lm-eval's own class needs one
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_scores_are_those_of_lm_evals_own_class(model: str, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = write_tasks(tmp_path / "tasks")
    (row,) = fxprune.evaluate(model, window=16, speed=False, tasks=list(ITEMS), tasks_dir=folder)
    wanted = simple_evaluate(
        model=HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=4),
        tasks=[task_of_rows(name, path) for name, path in row_tasks(folder).items()],
        bootstrap_iters=1,  # without, it gives no errors
        task_manager=TaskManager(include_defaults=False),
    )
    assert wanted is not None
    for score in row.tasks:
        assert len(score.items) == len(ITEMS[score.name])
        results = wanted["results"][score.name]
        assert score.value == pytest.approx(results[f"{score.metric},none"])
        assert score.error == pytest.approx(results[f"{score.metric}_stderr,none"])
    assert {(score.name, score.metric) for score in row.tasks} == {
        ("choice", "acc"), ("choice", "acc_norm"), ("pair", "acc"), ("gap", "acc"), ("last", "acc"),
    }  # fmt: skip


YAML = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{text}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_task_file_of_lm_eval(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, file = write_tasks(tmp_path / "tasks"), tmp_path / "tasks" / "choice.jsonl"
    (folder / "mine.yaml").write_text(YAML.format(file=file, text="{{ctx}}"))
    options: dict[str, Any] = {"window": 16, "speed": False, "tasks_dir": folder}
    (row,) = fxprune.evaluate(model, tasks="mine,choice", limit=5, **options)
    mine, choice, _ = row.tasks
    assert (mine.name, mine.items) == ("mine", choice.items)
    assert len(mine.items) == 5
    # A template is a program too: it runs in a sandbox.
    (folder / "mine.yaml").write_text(YAML.format(file=file, text="{{ctx.__class__.__mro__}}"))
    with pytest.raises(RequestError, match="the tasks mine cannot be measured: SecurityError"):
        fxprune.evaluate(model, tasks="mine", **options)
    (folder / "mine.yaml").write_text(YAML.format(file=file, text="x") + "process_docs: !function utils.docs\n")
    ran = tmp_path / "ran"
    (folder / "utils.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\ndef docs(rows): return rows\n"
    )
    with pytest.raises(RequestError, match="!function names code that would run"):
        fxprune.evaluate(model, tasks="mine", **options)
    assert not ran.exists()
    fxprune.evaluate(model, tasks="mine", limit=2, trust_task_code=True, **options)
    assert ran.exists()
