"""A teacher that is not in memory while the student learns: its predictions are computed once and kept in files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from ...ir.errors import FxpruneError, RequestError
from ...runtime.model.keywords import caching
from ...runtime.model.training_rows import IGNORED, Example
from ...runtime.place.memory import size_text
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.streaming.store import write_tensors
from ...runtime.streaming.turns import Feed
from .teacher import Teacher
from .training import pad

Key = tuple[int, ...]
"""The tokens of an example and which of them count."""


@dataclass(frozen=True)
class _Place:
    """Where the answers for an example are: rows ``start`` to ``end`` of a file."""

    file: Path
    start: int
    end: int


@dataclass(frozen=True)
class Answers:
    """Next-token distributions, for ``N`` tokens.

    Attributes:
        log_probs: logarithms of the probabilities, ``[N, k]``; of all tokens of the vocabulary when ``tokens`` is None.
        tokens: which tokens they are of, int64 ``[N, k]``: the most probable ones.
        rest: logarithm of the probability of all other tokens together, ``[N]``.
    """

    log_probs: Tensor
    tokens: Tensor | None = None
    rest: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, top_k: int) -> Answers:
        """The distributions of logits ``[N, V]``; with ``top_k`` 0 or no less than ``V``, all of them."""
        if not 0 < top_k < logits.shape[-1]:
            return cls(functional.log_softmax(logits, dim=-1))
        tokens = logits.topk(top_k, dim=-1).indices
        log_probs, rest = _of_tokens(logits, tokens)
        return cls(log_probs, tokens, rest)

    def distance(self, logits: Tensor) -> Tensor:
        """``KL(these || softmax(logits))``, summed over the ``N``, in nats; tokens that are not here count as one."""
        if self.tokens is None or self.rest is None:
            return _divergence(functional.log_softmax(logits, dim=-1), self.log_probs)
        log_probs, rest = _of_tokens(logits, self.tokens)
        return _divergence(log_probs, self.log_probs) + _divergence(rest, self.rest)


def _of_tokens(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of these tokens, ``[N, k]``, and of all others together, ``[N]``."""
    whole = logits.logsumexp(dim=-1, keepdim=True)
    others = logits.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1)
    return logits.gather(-1, tokens) - whole, others - whole.squeeze(-1)


def _divergence(now: Tensor, then: Tensor) -> Tensor:
    """Summed; where the teacher is certain that something does not come, it adds nothing."""
    finite = then.clamp(min=torch.finfo(then.dtype).min)
    return functional.kl_div(now, finite, reduction="sum", log_target=True)


class RecordedTeacher(Teacher):
    """A teacher whose predictions are in files.

    By the chain rule ``KL = KL(with the rest as one token) + m KL(inside the rest)``, ``m`` being the teacher's
    probability of the rest. The second term is what ``top_k`` costs; :attr:`mass` tells how large ``m`` is.

    Attributes:
        mass: the teacher's probability of what is kept, on average: ``1 - m``.

    Args:
        share, temperature: as for every teacher.
        top_k: how many of the most probable tokens are kept for each predicted token; 0 for all.
        folder: an empty directory for the files, which stay until someone removes it.
    """

    def __init__(self, share: float, temperature: float, top_k: int, folder: Path) -> None:
        super().__init__(share, temperature)
        self.top_k, self.folder = top_k, folder
        self.mass = 1.0
        self._places: dict[Key, _Place] = {}
        self._answers: list[Answers] = []

    def keep_predictions(
        self, runner: BlockRunner, examples: Sequence[Example], *, batch: int, device: torch.device, bfloat16: bool
    ) -> None:
        """Compute the predictions for all examples.

        Args:
            runner: runs the teacher.
            examples: the text.
            batch: examples in one forward pass.
            device: where the teacher runs.
            bfloat16: whether to use bfloat16 autocast.

        Raises:
            RequestError: the disk has no room for them.
            FxpruneError: the teacher predicts what is not finite.
        """
        distinct = list({_key(example["input_ids"], example["labels"]): example for example in examples}.values())
        self._require_room(runner.model, distinct)
        batches = [distinct[start : start + batch] for start in range(0, len(distinct), batch)]
        sums: list[float] = []
        feeds = [self._feed(number, part, device, sums) for number, part in enumerate(batches)]

        def around(_: int) -> AbstractContextManager[Any]:
            """Not inside a feed, since the forwards of several batches take turns."""
            return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()

        runner.run(feeds, around, restart=sums.clear)
        count = sum(place.end - place.start for place in self._places.values())
        self.mass = sum(sums) / max(1, count)

    def _feed(self, number: int, examples: Sequence[Example], device: torch.device, sums: list[float]) -> Feed:
        def feed(model: nn.Module) -> None:
            inputs = {name: tensor.to(device) for name, tensor in pad(examples).items()}
            counted = inputs.pop("labels")[:, 1:] != IGNORED
            logits = model(**inputs, **caching(model, False)).logits[:, :-1][counted].float()
            if not bool(logits.isfinite().all()):
                raise FxpruneError(
                    "the dense model's predictions are not finite", "run in float32; look for NaN in its weights"
                )
            answers = Answers.of(logits / self.temperature, self.top_k)
            sums.append(float(answers.log_probs.double().exp().sum()))
            path = self.folder / f"{number:06}.safetensors"
            self._keep(path, answers)
            start = 0
            for example, row in zip(examples, counted, strict=True):
                end = start + int(row.sum())
                self._places[_key(example["input_ids"], example["labels"])] = _Place(path, start, end)
                start = end

        return feed

    def _keep(self, path: Path, answers: Answers) -> None:
        tensors = {"log_probs": answers.log_probs}
        if answers.tokens is not None and answers.rest is not None:
            tensors |= {"tokens": answers.tokens.int(), "rest": answers.rest}
        write_tensors(path, tensors, "make room on this disk, or give a smaller top_k, or less text")

    def _require_room(self, model: Any, examples: Sequence[Example]) -> None:
        vocabulary = int(model.config.get_text_config().vocab_size)
        tokens = sum(sum(label != IGNORED for label in example["labels"][1:]) for example in examples)
        every = 8 * self.top_k + 4 if 0 < self.top_k < vocabulary else 4 * vocabulary
        free = shutil.disk_usage(self.folder).free
        if tokens * every > free:
            raise RequestError(
                f"the dense model's predictions for {tokens} tokens take {size_text(tokens * every)}, and the disk "
                f"of {self.folder} has {size_text(free)}",
                "give a smaller top_k, such as 64, or less text",
            )

    def answer(self, inputs: Mapping[str, Tensor]) -> None:
        """Read the predictions."""
        rows = [inputs[name].tolist() for name in ("input_ids", "labels", "attention_mask")]
        self._answers = []
        for ids, labels, mask in zip(*rows, strict=True):
            length = sum(mask)
            place = self._places[_key(ids[:length], labels[:length])]
            if place.end > place.start:
                self._answers.append(_read(place))

    def distance(self, student: Tensor, counted: Tensor) -> Tensor:
        """From what was kept of the distribution."""
        del counted  # only these are kept
        columns = zip(*((one.log_probs, one.tokens, one.rest) for one in self._answers), strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column).to(student.device) for column in columns]
        return Answers(*joined).distance(student) if joined else student.sum() * 0


def _key(ids: Sequence[int], labels: Sequence[int]) -> Key:
    """The first label predicts nothing, whatever it is."""
    return (*ids, *(int(label != IGNORED) for label in labels[1:]))


def _read(place: _Place) -> Answers:
    with safe_open(place.file, framework="pt") as file:
        names = file.keys()
        parts = {name: file.get_slice(name)[place.start : place.end] for name in names}
    tokens = parts.get("tokens")
    return Answers(parts["log_probs"], None if tokens is None else tokens.long(), parts.get("rest"))
