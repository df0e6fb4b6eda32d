"""The process of one model under :func:`fxprune.bench`: it loads, times itself when told to, and says what it held.

Run as a module with one JSON argument. It answers each line of its input with a line of JSON: first, unasked, that it
is ready; to ``time``, seconds by batch size; to ``figures``, what the model is and the memory it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..ir.errors import FxpruneError, RequestError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from ..tracer.model import Source

    # The module that its config describes, (ids [B, n], cache) -> (best next token [B, 1], cache), the bytes of its
    # files, and the peak memory before it was loaded.
    _Opened = tuple[Module, Callable[[Tensor, Any], tuple[Tensor, Any]], int, int | None]

_SEED = 0


@dataclass(frozen=True)
class Job:
    """What one process times.

    Attributes:
        name: the model as the user gave it.
        path: the same, or the ONNX directory that was made from it.
        trust_remote_code: whether the model's own code may run.
    """

    name: str
    path: str
    trust_remote_code: bool


class _Timed:
    """A loaded model."""

    def __init__(self, job: Job, conditions: Mapping[str, Any]) -> None:
        import torch

        from ..tracer.model import load_config, resolve
        from . import evaluation

        torch.set_num_threads(conditions["threads"])
        self.conditions = conditions
        onnx = (Path(job.path) / evaluation.MODEL_FILE).is_file()
        source = resolve(job.path, weights=not onnx, trust_remote_code=job.trust_remote_code)
        config = load_config(source).get_text_config()
        self.vocabulary = int(config.vocab_size)
        wanted, context = conditions["prompt"] + conditions["new"], getattr(config, "max_position_embeddings", None)
        if context is not None and wanted > context:
            raise RequestError(
                f"{wanted} tokens do not fit into the context of {job.name!r}, {context}",
                "give a smaller --prompt or --new",
            )
        self.runtime = "onnxruntime" if onnx else "torch"
        self.module, self.step, self.bytes, self.before = (_open_onnx if onnx else _open_torch)(source, conditions)

    def time(self) -> dict[str, list[float]]:
        """Batch size -> seconds to the first token, seconds of all the others."""
        import torch

        found = {}
        generator = torch.Generator().manual_seed(_SEED)
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
        """What the model is, and what it held; last, since counting takes memory too."""
        from ..passes.measure import parameter_count
        from . import evaluation

        peak = self.peak()
        return {
            "runtime": self.runtime,
            "parameters": parameter_count(self.module),
            "bytes": self.bytes,
            "macs": evaluation._macs(self.module, self.conditions["prompt"]),
            "peak": peak,
        }

    def peak(self) -> int | None:
        after = _peak()
        return None if after is None or self.before is None else after - self.before


def _open_torch(source: Source, _conditions: Mapping[str, Any]) -> _Opened:
    from . import evaluation

    before = _peak()
    opened = evaluation._open_torch(source)
    module: Any = opened.module

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output = module(input_ids=ids, past_key_values=cache, use_cache=True)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    return module, step, opened.bytes, before


def _open_onnx(source: Source, conditions: Mapping[str, Any]) -> _Opened:
    import torch

    from ..backends.onnx_runtime import MODEL_FILE, OnnxDecoder
    from ..tracer.model import build_meta, load_config

    module = build_meta(load_config(source), trust_remote_code=source.trust_remote_code)
    before = _peak()
    decoder = OnnxDecoder(source.directory, threads=conditions["threads"])

    def step(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, after = decoder.step(ids.numpy(), decoder.empty_cache(len(ids)) if cache is None else cache)
        return torch.from_numpy(logits[:, -1:].argmax(-1)), after

    return module, step, sum(file.stat().st_size for file in source.directory.glob(f"{MODEL_FILE}*")), before


def _peak() -> int | None:
    """Most bytes this process has held. Linux counts them for a program; ``getrusage`` would count its parent's too."""
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
    """Answer until the questions end."""

    def say(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    asked = json.loads(told)
    try:
        timed = _Timed(Job(**asked["job"]), asked["conditions"])
        say({"ready": True})
        for line in questions:
            say(timed.time() if line.strip() == "time" else timed.figures())
    except FxpruneError as error:
        say({"error": error.message, "hint": error.hint, "request": isinstance(error, RequestError)})
    except Exception as error:
        said = f"{asked['job']['name']!r} cannot be timed: {type(error).__name__}: {error}"
        say({"error": said, "hint": "check that the model runs: fxprune eval", "request": False})


if __name__ == "__main__":
    # Whatever libraries print goes to stderr: stdout carries answers only.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from .screen import hush

    hush()
    serve(sys.argv[1], sys.stdin, own)
