"""What is measured of one model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...passes.model.measure import Perplexity, Speed, standard_error
from ...runtime.place.placement import Placement
from ..shown import InOneLine


@dataclass(frozen=True)
class TextScore:
    """The perplexity of a model on a text.

    Attributes:
        name: of the text, as the user gave it.
        perplexity: over its windows.
        windows: a hash of the token ids of all windows; models with another one do not compare.
        unchecked: a sentence for each text that the model read, where an overlap with this one would not be found.
    """

    name: str
    perplexity: Perplexity
    windows: str
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskScore:
    """What a model reached in a task.

    Attributes:
        name: of the task.
        metric: such as ``acc``.
        items: the value of every item.
    """

    name: str
    metric: str
    items: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean over the items."""
        return sum(self.items) / len(self.items)

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return standard_error(self.items)


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt, always the most probable token.

    Attributes:
        prompt: the prompt.
        tokens: the ids.
        text: the same as text.
        full: whether it ends because the context of the model is full.
    """

    prompt: str
    tokens: tuple[int, ...]
    text: str
    full: bool = False


@dataclass(frozen=True, repr=False)
class Measurement(InOneLine):
    """The measured values of one model.

    Attributes:
        name: the model as the user gave it.
        format: ``safetensors``, ``pickle`` or ``onnx``.
        parameters: number of parameters; a tied one is counted once.
        bytes: size of the weight files.
        macs: multiply-accumulates for one window, counted in the traced graph.
        perplexity: on the first text; None without one.
        speed: tokens per second for one sequence on this machine; where weights are brought into memory block by block,
            with the time that takes. None where it was not wanted.
        placement: where it ran; None for ONNX Runtime, which runs on the CPU.
        texts: perplexity on every text.
        tasks: what it reached in every task, by every metric.
        generations: what it writes after every prompt.
    """

    name: str
    format: str
    parameters: int
    bytes: int
    macs: int
    perplexity: Perplexity | None
    speed: Speed | None
    placement: Placement | None = None
    texts: tuple[TextScore, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    generations: tuple[Continuation, ...] = ()

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        figures = [f"{one.name} {one.perplexity.value:.2f}" for one in self.texts]
        figures += [f"{one.name} {one.metric} {one.value:.3f}" for one in self.tasks]
        return f"{self.name} ({'; '.join(figures) or 'nothing measured'})"

    def to_json(self) -> dict[str, Any]:
        """Without texts, tasks and generations, which :class:`~.comparison.Comparison` lists by what they are of."""
        perplexity = None if self.perplexity is None else dataclasses.asdict(self.perplexity)
        if perplexity is not None:
            del perplexity["by_window"]
        return {
            "name": self.name,
            "format": self.format,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            "perplexity": perplexity,
            "speed": None if self.speed is None else dataclasses.asdict(self.speed),
            "placement": self.placement.to_json() if self.placement else None,
        }
