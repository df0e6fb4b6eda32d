"""The result of ``eval``: what was measured of several models, and the differences between them."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...ir.errors import RequestError
from ...passes.model.measure import standard_error
from ..shown import InOneLine
from .evaluation import evaluate
from .measures import Measurement

SCHEMA = "fxprune.eval/1"
"""What the JSON calls its form; the number changes when a key goes or changes its meaning."""

_LIBRARIES = ("fxprune", "torch", "transformers", "lm-eval")


@dataclass(frozen=True)
class Difference:
    """What a model has more than the baseline, on the same windows of a text or the same items of a task.

    Attributes:
        of: ``text`` or ``task``.
        name: of the text or task.
        metric: ``log_perplexity`` for texts, in nats per token.
        model, baseline: names of the models.
        value: the mean of the differences, model minus baseline.
        error: its standard error, from the differences of the pairs.
        pairs: how many windows or items.
    """

    of: str
    name: str
    metric: str
    model: str
    baseline: str
    value: float
    error: float | None
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "of": self.of, "name": self.name, "metric": self.metric, "model": self.model, "baseline": self.baseline,
            "difference": self.value, "standard_error": self.error, "pairs": self.pairs,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Comparison(InOneLine):
    """Measured models.

    Attributes:
        models: in the order that they were given.
        baseline: index of the one that the others are compared with.
        window: tokens in a window.
    """

    models: tuple[Measurement, ...]
    baseline: int
    window: int

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return ", ".join(model.summary for model in self.models)

    def differences(self) -> list[Difference]:
        """Of every other model from the baseline; models that split a text otherwise have none on it."""
        base = self.models[self.baseline]
        return [
            difference
            for at, model in enumerate(self.models)
            if at != self.baseline
            for difference in _differences(model, base)
        ]

    def to_json(self) -> dict[str, Any]:
        """As JSON data, as docs/evaluation.md describes it."""
        texts = [text.name for text in self.models[0].texts]
        tasks = [(task.name, task.metric) for task in self.models[0].tasks]
        prompts = [written.prompt for written in self.models[0].generations]
        return {
            "schema": SCHEMA,
            "text": texts[0] if texts else None,
            "window": self.window,
            "baseline": self.models[self.baseline].name,
            "models": [model.to_json() for model in self.models],
            "texts": [{"name": name, "models": self._texts(at)} for at, name in enumerate(texts)],
            "tasks": [
                {
                    "name": name,
                    "metric": metric,
                    "items": len(self.models[0].tasks[at].items),
                    "models": self._tasks(at),
                }
                for at, (name, metric) in enumerate(tasks)
            ],
            "differences": [one.to_json() for one in self.differences()],
            "generations": [{"prompt": text, "models": self._written(at)} for at, text in enumerate(prompts)],
            "environment": environment(),
        }

    def _texts(self, at: int) -> list[dict[str, Any]]:
        return [
            {
                "name": model.name,
                "log_perplexity": (found := model.texts[at].perplexity).nll,
                "standard_error": standard_error(found.by_window),
                "perplexity": found.value,
                "windows": found.windows,
                "tokens": found.tokens,
                "unchecked": list(model.texts[at].unchecked),
            }
            for model in self.models
        ]

    def _tasks(self, at: int) -> list[dict[str, Any]]:
        return [
            {"name": model.name, "value": model.tasks[at].value, "standard_error": model.tasks[at].error}
            for model in self.models
        ]

    def _written(self, at: int) -> list[dict[str, Any]]:
        return [
            {
                "name": model.name,
                "text": (one := model.generations[at]).text,
                "tokens": list(one.tokens),
                "full": one.full,
            }
            for model in self.models
        ]


def compare(
    models: Any, text: Any = None, *, baseline: str | None = None, window: int = 128, **options: Any
) -> Comparison:
    """Measure models, and what lies between them.

    Args:
        models, text, window: as in :func:`~.evaluation.evaluate`.
        baseline: the model that the others are compared with, by the name that it is given by; the one with the most
            parameters when None.
        options: all other arguments of that function.

    Raises:
        RequestError, FxpruneError: as that function; or the baseline is none of the models.
    """
    given = [os.fspath(one) if isinstance(one, str | os.PathLike) else None for one in _list(models)]
    if baseline is not None and baseline not in given:
        names = ", ".join(name for name in given if name is not None)
        raise RequestError(f"--baseline {baseline} is none of the models", f"give one of {names}")
    found = tuple(evaluate(models, text, window=window, **options))
    largest = max(range(len(found)), key=lambda at: (found[at].parameters, -at))
    return Comparison(found, largest if baseline is None else given.index(baseline), window)


def environment() -> dict[str, Any]:
    """Where it was measured."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
    }


def _list(models: Any) -> Sequence[Any]:
    return models if isinstance(models, list | tuple) else [models]


def _differences(model: Measurement, base: Measurement) -> Iterator[Difference]:
    names = model.name, base.name
    for one, other in zip(model.texts, base.texts, strict=True):
        if one.windows == other.windows:
            pairs = zip(one.perplexity.by_window, other.perplexity.by_window, strict=True)
            yield _difference(("text", one.name, "log_perplexity"), names, pairs)
    for mine, theirs in zip(model.tasks, base.tasks, strict=True):
        yield _difference(("task", mine.name, mine.metric), names, zip(mine.items, theirs.items, strict=True))


def _difference(what: tuple[str, str, str], names: tuple[str, str], pairs: Iterable[tuple[float, float]]) -> Difference:
    values = [one - other for one, other in pairs]
    return Difference(*what, *names, statistics.fmean(values), standard_error(values), len(values))
