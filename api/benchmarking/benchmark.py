"""``bench``: compare the speed of models, and how much of the removed computation becomes speed.

Each model runs in its own process, so that its peak memory can be measured. All models are loaded first. Then they are
timed in turn, for several rounds, every second round in reverse order, so that other load on the machine affects all of
them alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ...backends.artifact import refuse_module
from ...demo import MODEL_DIR
from ...ir.errors import FxpruneError, RequestError, last_line
from ...ir.extras import EXTRAS, require
from ...runtime.adapter_files import find_adapter
from ...runtime.child_process import module_arguments, start_python
from ...runtime.consent import Consent
from ...runtime.place.choices import AUTO
from ...runtime.place.placement import PlacementRequest
from ...runtime.scratch import ScratchDirectory
from ..progress import Progress, silent
from ..request_checks import Model, check_at_least_one, check_counts, is_path, list_models
from ..runnable import is_onnx
from .process import TimingJob
from .timings import BenchmarkResult, Conditions, baselines_of, compared

if TYPE_CHECKING:
    import subprocess

    import torch

BATCHES = (1, 8)


def bench(
    models: Sequence[Model] | Model,
    *,
    onnx: bool = False,
    baseline: str | None = None,
    prompt: int = 128,
    new: int = 32,
    rounds: int = 5,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    device: str | torch.device = AUTO,
    dtype: str | torch.dtype = AUTO,
    offload: str = AUTO,
    max_memory: str | int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Time models side by side, fairly: alternating, warmed up, with their spread.

    Args:
        models: as in :func:`fxprune.evaluate`.
        onnx: whether each that is no ONNX directory is exported too, in float32, and timed in ONNX Runtime.
        baseline: the one of ``models`` that the others are compared with; in each runtime the one with most parameters
            when None.
        prompt, new: tokens read and tokens written, random ones.
        rounds: how often each model is timed, after one round that does not count.
        batches: sequences at once.
        threads: of one operator; torch's choice for this machine when None.
        device, dtype, offload, max_memory: where the models run, as in :func:`fxprune.apply`; ONNX Runtime: on the CPU.
        trust_remote_code, allow_pickle, merge_adapter, progress: as in :func:`fxprune.evaluate`.

    Raises:
        RequestError: a model that is not found or is damaged, one too short for ``prompt + new``, or a count below one.
        FxpruneError: a model that cannot be loaded, exported or run.
    """
    request = PlacementRequest.parse(device=device, dtype=dtype, offload=offload, max_memory=max_memory)
    _check_kinds(prompt=prompt, new=new, rounds=rounds, threads=threads, batches=batches)
    found = _listed(models, merge_adapter=merge_adapter, onnx=onnx)
    _require_work(found, batches, prompt=prompt, new=new, rounds=rounds, threads=threads)
    allowed = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "merge_adapter": merge_adapter}
    conditions = Conditions(prompt, new, rounds, threads or _threads(), tuple(batches))
    with ScratchDirectory("fxprune-bench-") as folder, ExitStack() as stack:
        where = dataclasses.asdict(request)
        jobs = [TimingJob(*_place(model, stack, allowed, progress), where) for model in found]
        if onnx:
            jobs += _exported(jobs, folder, progress)
        _check_baseline(baseline, jobs)
        return _timed(jobs, conditions, baseline, stack, progress)


def _listed(models: Any, *, merge_adapter: bool, onnx: bool) -> list[Any]:
    """The models; refuses to time in ONNX Runtime where that is not installed."""
    found = list_models(models, merge_adapter=merge_adapter)
    if onnx or any(is_path(model) and is_onnx(model) for model in found):
        require("--onnx" if onnx else "an ONNX directory", *EXTRAS["onnx"])
    return found


def _check_baseline(baseline: str | None, jobs: Sequence[TimingJob]) -> None:
    names = dict.fromkeys(job.name for job in jobs)
    if baseline is not None and baseline not in names:
        raise RequestError(f"--baseline {baseline} is none of the models", f"give one of {', '.join(names)}")


def _check_kinds(*, batches: object, **counts: object) -> None:
    check_counts(**counts)
    if not isinstance(batches, Sequence) or isinstance(batches, str) or not batches:
        raise RequestError(f"batches is {batches!r}", "give one size or several, such as (1, 8)")
    check_counts(**{f"batches[{at}]": size for at, size in enumerate(batches)})


def _require_work(models: Sequence[Any], batches: Sequence[int], **counts: int | None) -> None:
    if not models:
        raise RequestError("nothing to time: there are no models", "give at least one model")
    check_at_least_one(**counts)
    if min(batches) < 1:
        raise RequestError(f"nothing to time with batches {', '.join(map(str, batches))}", "give sizes of at least 1")


def _timed(
    jobs: Sequence[TimingJob], conditions: Conditions, baseline: str | None, stack: ExitStack, progress: Progress
) -> BenchmarkResult:
    """Load all models, time them in turn, and compare them; their processes end with ``stack``."""
    workers = [stack.enter_context(_worker(job, conditions, progress)) for job in jobs]
    for worker in workers:
        worker.ready()
    progress("warming up")
    for worker in workers:
        worker.time()
    times: list[list[dict[str, list[float]]]] = [[] for _ in workers]
    for index in range(conditions.rounds):
        order = range(len(workers)) if index % 2 == 0 else reversed(range(len(workers)))
        for number in order:
            progress(f"round {index + 1} of {conditions.rounds}: {jobs[number].name}")
            times[number].append(workers[number].time())
    figures = [worker.figures() for worker in workers]
    bases = baselines_of([job.name for job in jobs], figures, baseline)
    rows = tuple(compared([job.name for job in jobs], figures, times, conditions, bases))
    return BenchmarkResult(conditions, rows, {runtime: jobs[number].name for runtime, number in bases.items()})


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _place(model: Any, stack: ExitStack, allowed: Mapping[str, bool], progress: Progress) -> tuple[str, Consent]:
    """What a model is called, where it lies and what may run there; a loaded one is written for as long as ``stack``
    lasts, and so is one with an adapter merged into it."""
    # Its own process says what is wrong with a directory. This one need not import transformers, which takes seconds.
    if is_path(model):
        name = os.fspath(model)
        directory = Path(MODEL_DIR) if name == "demo" else Path(name).expanduser()
        onnx = (directory / "model.onnx").is_file()
        merged = allowed["merge_adapter"] and not onnx and find_adapter(directory) is not None
        refuse_module(directory)
        if directory.is_dir() and not merged:
            code, pickle = allowed["trust_remote_code"], allowed["allow_pickle"]
            return name, Consent.of_user(directory.absolute(), code=code, pickle=pickle)
    from ..sources import open_source

    source = stack.enter_context(open_source(model, progress=progress, **allowed))
    return source.name, source.consent


def _exported(torch_jobs: Sequence[TimingJob], folder: Path, progress: Progress) -> list[TimingJob]:
    from ...tracer.model import found_source
    from ..exporting import export
    from ..runnable import require_tokens

    jobs = []
    for job in torch_jobs:
        require_tokens(found_source(job.name, job.consent, weights=False))
    for index, job in enumerate(torch_jobs):
        if not (job.consent.directory / "model.onnx").is_file():
            out = folder / str(index)
            _refuse_pickle(job)
            report: Any = export(job.consent.directory, out, trust_remote_code=job.consent.code, progress=progress)
            jobs.append(TimingJob(job.name, Consent.of_written(out, report.code)))
    return jobs


def _refuse_pickle(job: TimingJob) -> None:
    """Of a pickle that may be read: any other is refused by the export, which says so."""
    from ...tracer.checkpoint import weight_files

    if job.consent.pickle and weight_files(job.consent.directory, allow_pickle=True)[0].suffix != ".safetensors":
        raise RequestError(
            f"--onnx: {job.name!r} has its weights in a pickle, and an export reads safetensors",
            "convert it to safetensors, or leave --onnx out",
        )


class _Worker:
    """The process of one model, which answers every line with a line of JSON."""

    def __init__(self, job: TimingJob, process: subprocess.Popen[str], said: TextIO) -> None:
        self.job = job
        self.process = process
        self.said = said

    def ready(self) -> None:
        """Wait until the model is loaded."""
        self._answer()

    def time(self) -> dict[str, list[float]]:
        """Batch size -> seconds to the first token, and seconds for all other tokens."""
        return self._ask("time")

    def figures(self) -> dict[str, Any]:
        """Size, MACs and peak memory of the model."""
        return self._ask("figures")

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading its answer fails below, with the reason
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.said.seek(0)
            last = last_line(self.said.read())
            raise FxpruneError(
                f"the process of {self.job.name!r} ended with exit code {code}{f': {last}' if last else ''}",
                "if memory is too small for all models at once, compare two models at a time",
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind = RequestError if found["request"] else FxpruneError
            raise kind(found["error"], found["hint"])
        return found


@contextmanager
def _worker(job: TimingJob, conditions: Conditions, progress: Progress) -> Iterator[_Worker]:
    progress(f"{job.name}: loading")
    told = json.dumps({"job": job.to_json(), "conditions": dataclasses.asdict(conditions)})
    arguments = module_arguments(f"{__name__.rpartition('.')[0]}.process", told)
    settings = {"OMP_NUM_THREADS": str(conditions.threads)}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        ScratchDirectory("fxprune-bench-") as folder,
        # Ctrl-C reaches this process only, and it ends the others.
        start_python(arguments, Path(folder), stderr=said, settings=settings, own_session=True) as process,
    ):
        try:
            yield _Worker(job, process, said)
        finally:
            process.kill()
