"""Tasks of lm-eval, by name or from a directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.call_text import did_you_mean
from ...ir.errors import RequestError, class_and_first_line, ends_program
from ...ir.extras import EXTRAS, require
from ..runnable import Runnable
from .measures import TaskScore
from .task_files import YAML, refuse_code, row_tasks, task_of_rows

_SEED = 1234
"""Of the examples before a question; the one of lm-eval's own command."""


@dataclass(frozen=True)
class AskedTasks:
    """Which tasks are measured.

    Attributes:
        names: of the tasks; empty for none.
        directory: where to look for them first; None for those of lm-eval alone.
        limit: measures the first items of each task alone; None for all.
        code: whether tasks in the directory may run code.
    """

    names: tuple[str, ...] = ()
    directory: Path | None = None
    limit: int | None = None
    code: bool = False

    def check(self) -> None:
        """Find what is wrong before any work.

        Raises:
            RequestError: lm-eval is not installed; the directory is missing, or holds code that may not run; an option
                has no task to be for.
        """
        if not self.names:
            for flag, value in (("--tasks-dir", self.directory), ("--limit", self.limit)):
                if value is not None:
                    raise RequestError(f"{flag} without --tasks", "name the tasks: --tasks NAME,NAME")
            return
        require("--tasks", *EXTRAS["eval"])
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit {self.limit} leaves no item", "give 1 or more")
        if self.directory is None:
            return
        if not self.directory.is_dir():
            raise RequestError(f"--tasks-dir {self.directory} is no directory", "give one with NAME.jsonl or NAME.yaml")
        if not self.code:
            from lm_eval.api import metrics, registry

            assert metrics  # importing it is what fills the registry
            refuse_code(self.directory, registry.METRIC_REGISTRY.keys())


def task_scores(
    runnable: Runnable, tokenizer: Any, asked: AskedTasks, *, context: int, known: dict[str, Any]
) -> tuple[TaskScore, ...]:
    """What a model reaches in tasks.

    Args:
        runnable: the model.
        tokenizer: its tokenizer.
        asked: which tasks.
        context: tokens that the model can read.
        known: keeps the tasks for the next model: to find those of lm-eval takes half a minute.

    Raises:
        RequestError: a task is unknown, its data cannot be had, or it asks for what is not measured.
    """
    import lm_eval.api.task
    import lm_eval.evaluator
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from .harness import MeasuredModel, silenced

    templates = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    templates.filters.update(lm_eval.utils.env.filters)
    with silenced(lm_eval, templates):
        try:
            if "tasks" not in known:
                known["tasks"] = _loaded(asked)
            results: Any = lm_eval.evaluator.evaluate(
                MeasuredModel(runnable, tokenizer, context), known["tasks"], asked.limit, bootstrap_iters=0
            )
        except (RequestError, MemoryError):
            raise
        except BaseException as error:  # its errors, and those of `datasets`, have no common class
            if ends_program(error):
                raise
            raise RequestError(
                f"the tasks {', '.join(asked.names)} cannot be measured: {class_and_first_line(error)}",
                "for data that is not on this machine check the network, or give files with --tasks-dir",
            ) from error
    scores = [score for name, samples in results["samples"].items() for score in _scores(name, samples)]
    if not scores:
        raise RequestError(f"the tasks {', '.join(asked.names)} have no metric of single items", "give other tasks")
    return tuple(scores)


def _loaded(asked: AskedTasks) -> Any:
    """The tasks, with their data."""
    from lm_eval.tasks import TaskManager

    rows = {} if asked.directory is None else row_tasks(asked.directory)
    held = asked.directory is not None and any(any(asked.directory.rglob(f"*{suffix}")) for suffix in YAML)
    own = TaskManager(include_defaults=False, include_path=str(asked.directory) if held else None)
    elsewhere = [name for name in asked.names if name not in rows and name not in own.all_tasks]
    manager = own
    if elsewhere:
        manager = TaskManager(include_path=str(asked.directory) if held else None)
    for name in elsewhere:
        if name not in manager.all_tasks:
            near = did_you_mean(name, [*rows, *own.all_tasks, *manager.all_tasks])
            here = f"; {asked.directory} has {', '.join([*rows, *own.all_tasks]) or 'none'}" if asked.directory else ""
            raise RequestError(
                f"there is no task '{name}'", f"{near}lm-eval lists its own with `lm-eval ls tasks`{here}"
            )
    loaded = manager.load([task_of_rows(name, rows[name]) if name in rows else name for name in asked.names])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return loaded


def _scores(name: str, samples: Sequence[dict[str, Any]]) -> list[TaskScore]:
    """A score for every metric that gives each item a number, by the first filter of the task."""
    first = samples[0]["filter"] if samples else ""
    items = sorted((one for one in samples if one["filter"] == first), key=lambda one: one["doc_id"])
    found = []
    for metric in items[0]["metrics"] if items else ():
        values = [one[metric] for one in items]
        if all(isinstance(value, int | float) for value in values):
            found.append(TaskScore(name, metric, tuple(float(value) for value in values)))
    return found
