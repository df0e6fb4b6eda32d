"""bench: how fast models are side by side, and how much of what was removed becomes speed.

Each model runs in a process of its own, so that its peak memory is its own. All are loaded first; then they are timed
in turn, round after round, each second round in reverse: whatever the machine does meanwhile happens to all of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..ir.errors import FxpruneError, RequestError, last_line
from .bench_process import Job
from .given import Model, is_path, list_models
from .progress import Progress, silent

BATCHES = (1, 8)


@dataclass(frozen=True)
class Spread:
    """A figure over rounds: their median, the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """One batch size.

    Attributes:
        batch: sequences at once.
        first_token: seconds from the prompt to the first new token.
        tokens_per_second: of decoding with a cache, all sequences together.
    """

    batch: int
    first_token: Spread
    tokens_per_second: Spread


@dataclass(frozen=True)
class Benchmark:
    """One model in one runtime.

    Attributes:
        name: the model as the user gave it.
        runtime: ``torch`` or ``onnxruntime``.
        parameters: elements of all parameters, a tied one counted once.
        bytes: of the files that hold the weights.
        macs: multiply-accumulates of reading one prompt.
        peak_memory: bytes that the process held at most beyond the interpreter with its libraries, None where the
            system does not tell.
        timings: by batch size.
        ideal: how many times fewer multiply-accumulates than the first model of the same runtime.
        speedups: how many times faster than that model, by batch size and figure; the median of the ratios of rounds
            that ran side by side.
        notes: where those speed-ups fall short: no faster, or within the spread.
    """

    name: str
    runtime: str
    parameters: int
    bytes: int
    macs: int
    peak_memory: int | None
    timings: tuple[Timing, ...]
    ideal: float
    speedups: dict[str, Spread]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Conditions:
    """What all models were asked.

    Attributes:
        prompt, new: tokens read and tokens written.
        rounds: how often each was timed, after one round that does not count.
        threads: of one operator, in torch and in ONNX Runtime alike.
        batches: sequences at once.
    """

    prompt: int
    new: int
    rounds: int
    threads: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """Models side by side, the first of each runtime being what the others are compared with."""

    conditions: Conditions
    models: tuple[Benchmark, ...]

    def to_json(self) -> dict[str, Any]:
        return {"conditions": dataclasses.asdict(self.conditions), "models": [row.to_json() for row in self.models]}


def bench(
    models: Sequence[Model] | Model,
    *,
    onnx: bool = False,
    prompt: int = 128,
    new: int = 32,
    rounds: int = 5,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Time models side by side, fairly: alternating, warmed up, with their spread.

    Args:
        models: Hugging Face model directories, Hub ids, ``demo``, what :func:`fxprune.export` wrote, or loaded models
            of transformers, which are written to the temporary directory first. The first is what the others are
            compared with.
        onnx: whether each that is no ONNX directory is exported too (float32, to a temporary directory) and timed in
            ONNX Runtime.
        prompt, new: tokens read and tokens written, random ones.
        rounds: how often each model is timed, after one round that does not count.
        batches: sequences at once.
        threads: of one operator; torch's choice for this machine when None.
        trust_remote_code: whether a model's own code may run.
        progress: told what is going on.

    Raises:
        RequestError: a model that cannot be found, one too short for ``prompt + new``, or a count below one.
        FxpruneError: a model that cannot be loaded, exported or run.
    """
    found = list_models(models)
    if not found or min(prompt, new, rounds, *batches, 1 if threads is None else threads) < 1:
        raise RequestError(
            f"nothing to time: {len(found)} models, prompt {prompt}, new {new}, rounds {rounds}, batches "
            f"{', '.join(map(str, batches))}, threads {threads}",
            "give at least 1 of each",
        )
    conditions = Conditions(prompt, new, rounds, threads or _threads(), tuple(batches))
    with tempfile.TemporaryDirectory(prefix="fxprune-bench-") as folder, ExitStack() as stack:
        jobs = [Job(*_place(model, stack, trust_remote_code), trust_remote_code) for model in found]
        if onnx:
            jobs += _exported(jobs, Path(folder), trust_remote_code, progress)
        workers = [stack.enter_context(_worker(job, conditions, progress)) for job in jobs]
        for worker in workers:
            worker.ready()
        progress("warming up")
        for worker in workers:
            worker.time()
        times: list[list[dict[str, list[float]]]] = [[] for _ in workers]
        for index in range(rounds):
            order = range(len(workers)) if index % 2 == 0 else reversed(range(len(workers)))
            for number in order:
                progress(f"round {index + 1} of {rounds}: {jobs[number].name}")
                times[number].append(workers[number].time())
        figures = [worker.figures() for worker in workers]
    return BenchmarkResult(conditions, tuple(_rows(jobs, figures, times, conditions)))


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _place(model: Any, stack: ExitStack, trust_remote_code: bool) -> tuple[str, str]:
    """What a model is called and where it lies; a loaded one is written for as long as ``stack`` lasts."""
    if is_path(model):
        return os.fspath(model), os.fspath(model)
    from .sources import open_source

    source = stack.enter_context(open_source(model, trust_remote_code=trust_remote_code))
    return source.name, str(source.directory)


def _exported(torch_jobs: Sequence[Job], folder: Path, trust_remote_code: bool, progress: Progress) -> list[Job]:
    from .exporting import export

    jobs = []
    for index, job in enumerate(torch_jobs):
        if not (Path(job.path) / "model.onnx").is_file():
            out = folder / str(index)
            export(job.path, out, trust_remote_code=trust_remote_code, progress=progress)
            jobs.append(Job(job.name, str(out), trust_remote_code))
    return jobs


class _Worker:
    """The process of one model: a line of JSON in, a line of JSON out."""

    def __init__(self, job: Job, process: subprocess.Popen[str], said: TextIO) -> None:
        self.job = job
        self.process = process
        self.said = said

    def ready(self) -> None:
        """Wait until the model is loaded."""
        self._answer()

    def time(self) -> dict[str, list[float]]:
        """Batch size -> seconds to the first token, seconds of all the others."""
        return self._ask("time")

    def figures(self) -> dict[str, Any]:
        """What the model is and the memory it took."""
        return self._ask("figures")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that is missing says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.said.seek(0)
            last = last_line(self.said.read())
            raise FxpruneError(
                f"the process of {self.job.name!r} ended with {code}{f': {last}' if last else ''}",
                "if the memory is too small for all models at once, time them two by two",
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind = RequestError if found["request"] else FxpruneError
            raise kind(found["error"], found["hint"])
        return found


@contextmanager
def _worker(job: Job, conditions: Conditions, progress: Progress) -> Iterator[_Worker]:
    progress(f"{job.name}: loading")
    package = __name__.rpartition(".")[0]
    told = json.dumps({"job": dataclasses.asdict(job), "conditions": dataclasses.asdict(conditions)})
    environment = {**os.environ, "OMP_NUM_THREADS": str(conditions.threads)}
    command = [sys.executable, "-m", f"{package}.bench_process", told]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process, which ends the others
        ) as process,
    ):
        try:
            yield _Worker(job, process, said)
        finally:
            process.kill()


def _rows(
    jobs: Sequence[Job],
    figures: Sequence[dict[str, Any]],
    times: Sequence[Sequence[dict[str, list[float]]]],
    conditions: Conditions,
) -> Iterator[Benchmark]:
    firsts: dict[str, int] = {}
    for number, job in enumerate(jobs):
        own = figures[number]
        first = firsts.setdefault(own["runtime"], number)
        speedups = {} if first == number else _speedups(times[first], times[number])
        yield Benchmark(
            name=job.name,
            runtime=own["runtime"],
            parameters=own["parameters"],
            bytes=own["bytes"],
            macs=own["macs"],
            peak_memory=own["peak"],
            timings=tuple(_timing(batch, times[number], conditions.new) for batch in conditions.batches),
            ideal=figures[first]["macs"] / own["macs"],
            speedups=speedups,
            notes=tuple(note for name, ratio in speedups.items() for note in _notes(name, ratio)),
        )


def _timing(batch: int, rounds: Sequence[dict[str, list[float]]], new: int) -> Timing:
    first, decode = zip(*(found[str(batch)] for found in rounds), strict=True)
    return Timing(batch, _spread(first), _spread([batch * new / seconds for seconds in decode]))


def _speedups(before: Sequence[dict[str, list[float]]], after: Sequence[dict[str, list[float]]]) -> dict[str, Spread]:
    """Ratios of times of the same round, ``<figure>, batch <size>`` -> spread."""
    found = {}
    for batch in before[0]:
        for index, figure in enumerate(("first token", "decode")):
            ratios = [old[batch][index] / own[batch][index] for old, own in zip(before, after, strict=True)]
            found[f"{figure}, batch {batch}"] = _spread(ratios)
    return found


def _notes(name: str, ratio: Spread) -> Iterator[str]:
    if ratio.high <= 1:
        yield f"{name}: slower, {ratio.median:.2f} times the speed"
    elif ratio.low <= 1:
        yield f"{name}: no difference beyond the spread, {ratio.low:.2f} to {ratio.high:.2f}"


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
