"""Tasks in a directory: rows that fxprune reads itself, and tasks of lm-eval, which may hold no code."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ...ir.errors import RequestError
from ...runtime.model_directory.regular_file import open_regular
from ...tracer.texts.files import file_rows, row_suffix

YAML = (".yaml", ".yml")
CODE_HINT = "look at it, and give --trust-task-code if what it runs may run here"

_LARGEST_TASK = 1 << 20
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp")
}
"""Tags of values that are data."""

_CHOICE: Mapping[str, Any] = {"output_type": "multiple_choice"}
_SCORES = {"choice": ("acc", "acc_norm"), "other": ("acc",)}

ROW_TASKS: Mapping[tuple[str, ...], Mapping[str, Any]] = {
    # By what the rest of the sentence costs after either choice.
    ("sentence", "choices", "label"): {
        **_CHOICE,
        "doc_to_text": "label",
        "doc_to_target": "{{sentence[sentence.index('_') + 1:].strip()}}",
        "doc_to_choice": "{% set head = sentence[:sentence.index('_')] %}{{[head + choices[0], head + choices[1]]}}",
        "scores": _SCORES["other"],
    },
    ("ctx", "choices", "label"): {
        **_CHOICE,
        "doc_to_text": "{{ctx}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "scores": _SCORES["choice"],
    },
    ("good", "bad"): {
        **_CHOICE,
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}",
        "scores": _SCORES["other"],
    },
    ("text",): {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
        "scores": _SCORES["other"],
    },
}
"""Fields of rows -> a task of lm-eval: a gap that one of two choices fills; a context with choices; the better of two
sentences; the last word of a text."""

FORMS = "; ".join(", ".join(fields) for fields in ROW_TASKS)


def row_tasks(directory: Path) -> dict[str, Path]:
    """Name -> file of the tasks in a directory that are rows."""
    found: dict[str, Path] = {}
    for path in sorted(directory.iterdir()):
        if row_suffix(path) and path.is_file():
            found.setdefault(path.name.partition(".")[0], path)
    return found


def task_of_rows(name: str, path: Path) -> dict[str, Any]:
    """The configuration of a task of lm-eval for a file of rows; nothing is stored elsewhere.

    Raises:
        RequestError: the rows cannot be read, or have none of the known sets of fields.
    """
    rows = []
    fields: tuple[str, ...] = ()
    for where, row in file_rows(path):
        if not isinstance(row, Mapping):
            raise RequestError(f"{where} is not an object but {type(row).__name__}", f"give rows with {FORMS}")
        fields = fields or next((known for known in ROW_TASKS if set(known) <= set(row)), ())
        if not fields or not set(fields) <= set(row):
            has = ", ".join(map(str, row)) or "none"
            raise RequestError(f"{where} is no item of a task; its fields: {has}", f"give rows with {FORMS}")
        rows.append({field: row[field] for field in fields})
    if not rows:
        raise RequestError(f"'{path}' is empty", "give rows")
    form = dict(ROW_TASKS[fields])
    metrics = [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in form.pop("scores")]
    spaced = all(str(choice)[:1].isspace() for row in rows for choice in row.get("choices") or [""])

    def documents(**_: Any) -> dict[str, Any]:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    return {
        **form, "task": name, "custom_dataset": documents, "test_split": "test", "num_fewshot": 0,
        "metric_list": metrics, **({"target_delimiter": ""} if spaced else {}),
    }  # fmt: skip


def refuse_code(directory: Path, metrics: Collection[str]) -> None:
    """Refuse tasks of lm-eval that would run code of the directory.

    A task can name functions of files beside it (``!function``) or a class, take a metric from a script, and include
    files from elsewhere.

    Args:
        directory: where the tasks are.
        metrics: names of those that lm-eval itself has; it looks for others among scripts.

    Raises:
        RequestError: naming the first place, with its line.
    """
    for path in sorted(one for suffix in YAML for one in directory.rglob(f"*{suffix}")):
        for what, line in _code(path, metrics):
            raise RequestError(f"{path}, line {line}: {what}", CODE_HINT)


def _code(path: Path, metrics: Collection[str]) -> Iterator[tuple[str, int]]:
    try:
        with open_regular(path, links=False) as file:
            content = file.read(_LARGEST_TASK + 1)
        if len(content) > _LARGEST_TASK:
            yield f"it is larger than {_LARGEST_TASK:,} bytes", 1
            return
        root = yaml.compose(content.decode("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RequestError(f"{path} cannot be read: {str(error).splitlines()[0]}", "correct or remove it") from None
    if root is not None:
        yield from _code_in(root, metrics, set())


def _code_in(node: yaml.Node, metrics: Collection[str], seen: set[int]) -> Iterator[tuple[str, int]]:
    """What runs code in a node, with its line."""
    line = node.start_mark.line + 1
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if node.tag not in _PLAIN_TAGS:
        yield f"{node.tag} names code that would run", line
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _code_in(one, metrics, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if said := _refused(str(key.value), value, metrics):
                yield said, key.start_mark.line + 1
            yield from _code_in(value, metrics, seen)


def _refused(key: str, value: yaml.Node, metrics: Collection[str]) -> str:
    """Why an entry would run code; "" when it would not."""
    text = value.value if isinstance(value, yaml.ScalarNode) else ""
    if key in ("class", "use_prompt", "hf_evaluate", "unsafe_code", "trust_remote_code"):
        plain = isinstance(value, yaml.ScalarNode) and text.lower() in ("false", "null", "~", "")
        return "" if plain else f"'{key}' runs code"
    if key == "include" and (Path(text).is_absolute() or ".." in Path(text).parts or not text):
        return f"'include: {text}' leads out of the directory"
    if key == "metric" and text not in metrics:
        return f"the metric '{text}' is none of lm-eval's own, which would look for a script of that name"
    return ""
