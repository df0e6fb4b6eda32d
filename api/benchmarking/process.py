"""The process in which :func:`fxprune.bench` runs one model.

It is run as a module with one JSON argument. First it writes a line of JSON when the model is loaded. Then it answers
each line of its input with a line of JSON: ``time`` with seconds by batch size, ``figures`` with the size of the model
and its peak memory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ...ir.errors import FxpruneError, RequestError, ends_program
from ...runtime.consent import Consent
from ...runtime.place.memory import peak_of

if TYPE_CHECKING:
    from torch import Tensor

    from ...tracer.model import ModelSource
    from ..runnable import Runnable

    # The model; a function (ids [B, n], cache) -> (best next token [B, 1], cache), on the CPU; and the peak memory
    # before loading.
    _Opened = tuple[Runnable, Callable[[Tensor, Any], tuple[Tensor, Any]], int | None]

_PROMPT_SEED = 0


@dataclass(frozen=True)
class TimingJob:
    """The model that one process times.

    Attributes:
        name: the model as the user gave it.
        consent: where it is loaded from, the model's directory or an ONNX directory that was exported from it, and what
            may run there.
        request: where the user wants it to run, the fields of a
            :class:`~fxprune.runtime.place.placement.PlacementRequest`.
    """

    name: str
    consent: Consent
    request: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON data, for the process."""
        return {"name": self.name, "consent": self.consent.to_json(), "request": dict(self.request)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TimingJob:
        """The inverse of :meth:`to_json`."""
        return cls(data["name"], Consent.from_json(data["consent"]), data["request"])


class _Timed:
    """A loaded model."""

    def __init__(self, job: TimingJob, conditions: Mapping[str, Any]) -> None:
        import torch

        from ...tracer.fitting import check_fit
        from ...tracer.model import found_source, load_config
        from ..runnable import is_onnx, require_tokens

        torch.set_num_threads(conditions["threads"])
        self.conditions = conditions
        onnx = is_onnx(job.consent.directory)
        source = found_source(job.name, job.consent, weights=not onnx)
        require_tokens(source)
        if not onnx:
            check_fit(source)
        config = load_config(source).get_text_config()
        self.vocabulary = int(config.vocab_size)
        wanted, context = conditions["prompt"] + conditions["new"], getattr(config, "max_position_embeddings", None)
        if context is not None and wanted > context:
            raise RequestError(
                f"--prompt and --new together are {wanted} tokens, but {job.name!r} has a context of {context}",
                "give a smaller --prompt or --new",
            )
        self.runtime = "onnxruntime" if onnx else "torch"
        self.model, self.step, self.before = (_open_onnx if onnx else _open_torch)(source, conditions, job.request)

    def time(self) -> dict[str, list[float]]:
        """Batch size -> seconds to the first token, and seconds for all other tokens."""
        from ...runtime.streaming.block_runner import BlockRunner

        runner = self.model.step
        if not isinstance(runner, BlockRunner):
            return self._time()

        def called() -> dict[str, list[float]]:
            with runner.session():
                return self._time()

        return runner.again(called)

    def _time(self) -> dict[str, list[float]]:
        import torch

        found = {}
        generator = torch.Generator().manual_seed(_PROMPT_SEED)
        with torch.no_grad():
            for batch in self.conditions["batches"]:
                shape = (batch, self.conditions["prompt"])
                ids = torch.randint(self.vocabulary, shape, generator=generator)
                start = time.perf_counter()
                token, cache = self.step(ids, None)
                read = time.perf_counter()
                for _ in range(self.conditions["new"]):
                    token, cache = self.step(token, cache)
                found[str(batch)] = [read - start, time.perf_counter() - read]
        return found

    def figures(self) -> dict[str, Any]:
        """Size, MACs and peak memory of the model. To be called last, since counting MACs takes memory too."""
        from ...passes.model.measure import parameter_count

        peak, placement = self.peak(), self.model.placement
        return {
            "runtime": self.runtime,
            "parameters": parameter_count(self.model.module),
            "bytes": self.model.bytes,
            "macs": self.model.macs(self.conditions["prompt"]),
            "peak": peak,
            "placement": placement.to_json() if placement is not None else None,
        }

    def peak(self) -> int | None:
        placement = self.model.placement
        if placement is not None and placement.device.type != "cpu":
            return peak_of(placement.device)
        after = _peak()
        return None if after is None or self.before is None else after - self.before


def _open_torch(source: ModelSource, conditions: Mapping[str, Any], request: Mapping[str, Any]) -> _Opened:
    from ...passes.model.forward import decoded
    from ...runtime.place.placement import PlacementRequest
    from ..progress import silent
    from ..runnable import open_torch

    before, prompt = _peak(), conditions["prompt"]
    forward = (max(conditions["batches"]), prompt + conditions["new"])
    opened = open_torch(source, PlacementRequest(**request), forward, silent, window=prompt)
    module: Any = opened.module

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, after = decoded(module, ids, cache)
        return logits[:, -1:].argmax(-1).cpu(), after  # which waits for the device

    return opened, step, before


def _open_onnx(source: ModelSource, conditions: Mapping[str, Any], _request: Mapping[str, Any]) -> _Opened:
    from ...tracer.model import build_meta, load_config
    from ..runnable import open_onnx

    build_meta(load_config(source), consent=source.consent)  # what importing its code takes
    before = _peak()
    opened = open_onnx(source, threads=conditions["threads"])
    decode: Any = opened.step

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, after = decode(ids, cache)
        return logits[:, -1:].argmax(-1), after

    return opened, step, before


def _peak() -> int | None:
    """Peak memory of this process in bytes. On Linux ``getrusage`` would include the parent's, so ``/proc`` is read."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def serve(told: str, questions: TextIO, answers: TextIO) -> None:
    """Answer questions until the input ends."""

    def say(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    asked = json.loads(told)
    try:
        from ...runtime.place.placement import WHOLE, told_when_out_of_memory

        timed = _Timed(TimingJob.from_json(asked["job"]), asked["conditions"])
        say({"ready": True})
        for line in questions:
            with told_when_out_of_memory(timed.model.placement or WHOLE):
                say(timed.time() if line.strip() == "time" else timed.figures())
    except FxpruneError as error:
        say({"error": error.message, "hint": error.hint, "request": isinstance(error, RequestError)})
    except BaseException as error:
        if ends_program(error):
            raise
        said = f"cannot time {asked['job']['name']!r}: {type(error).__name__}: {error}"
        say({"error": said, "hint": "check with `fxprune eval` that the model runs", "request": False})


if __name__ == "__main__":
    # What other libraries print goes to stderr: stdout is for answers only.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from ..progress import silence

    silence()
    serve(sys.argv[1], sys.stdin, own)
