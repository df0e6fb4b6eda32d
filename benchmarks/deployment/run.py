"""Run a pruned model in a runtime that people deploy, and compare what it decodes with torch.

The scripts in ``runners/`` run in environments of their own, without fxprune; ``runtimes.json`` has what they need.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import fxprune
from fxprune.ir.errors import FxpruneError

from .browser import decode, installed
from .environment import Environment
from .pruned_forms import Pruned
from .runners.decoding import chosen

FOLDER = Path(__file__).parent
FACTS: dict[str, Any] = json.loads((FOLDER / "runtimes.json").read_text(encoding="utf-8"))
RUNTIMES: dict[str, dict[str, Any]] = FACTS["runtimes"]
BOUNDS: dict[str, float] = FACTS["bounds"]
"""Type -> the largest difference of a log-probability from torch in float32 that rounding may make."""

LIMIT = 900
"""Seconds that one model may take in one runtime."""

_ERROR = re.compile(r"^(\S+ )*\w*(Error|Exception|Failure)\b")
"""A line that names an exception; loggers and launchers write words before it."""

PRECISIONS = {"float32": "f32", "float16": "f32", "int8": "f32"}
"""In which OpenVINO computes with a graph of a type; its own default on some processors is bfloat16."""


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        runtime, form, type: what was run.
        outcome: ``equal`` (all tokens, and log-probabilities to the bound of float32), ``bounded`` (to that of its
            type), ``differs``, or ``refused``.
        tokens, equal: tokens that torch decodes, and those of them that the runtime does.
        difference: the largest one of a log-probability; None where the runtime gave none.
        version: of the runtime.
        message: of a refusal.
    """

    runtime: str
    form: str
    type: str
    outcome: str
    tokens: int = 0
    equal: int = 0
    difference: float | None = None
    version: str = ""
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def run(runtime: str, form: str, kind: str, pruned: Pruned, environments: Path) -> Result:
    """Decode in a runtime.

    Args:
        runtime: a key of :data:`RUNTIMES`.
        form: what ``pruned`` is.
        kind: the type of weights, one of the runtime's.
        pruned: the model.
        environments: where the environments of the runtimes are, or will be made.

    Raises:
        NotInstalledError: the runtime cannot be installed; NoBrowserError likewise.
    """
    row = RUNTIMES[runtime]
    try:
        answer = (
            HERE[row["here"]](pruned, kind, environments) if "here" in row else _apart(row, pruned, kind, environments)
        )
    except FxpruneError as error:
        return Result(runtime, form, kind, "refused", message=error.message.replace(pruned.directory, "OUT"))
    if "message" in answer:
        return Result(runtime, form, kind, "refused", message=answer["message"].replace(pruned.directory, "OUT"))
    compared = answer["compared"] if "compared" in answer else _compared(answer, pruned)
    near = compared.difference is None or compared.difference <= BOUNDS["float32"]
    exact = compared.equal == compared.tokens and near
    bounded = kind != "float32" and compared.difference is not None and compared.difference <= BOUNDS[kind]
    outcome = "equal" if exact else "bounded" if bounded else "differs"
    return Result(runtime, form, kind, outcome, **asdict(compared), version=answer["version"])


@dataclass(frozen=True)
class _Compared:
    """Tokens, those that are equal, and the largest difference of a log-probability."""

    tokens: int
    equal: int
    difference: float | None


def _compared(answer: dict[str, Any], pruned: Pruned) -> _Compared:
    equal = sum(one == other for one, other in zip(answer["tokens"], pruned.expected, strict=True))
    differences = (abs(one - other) for one, other in zip(answer["logprobs"], pruned.logprobs, strict=False))
    return _Compared(len(pruned.expected), equal, max(differences, default=None))


def environment_of(row: dict[str, Any], environments: Path) -> Environment:
    """The environment in which a runtime runs, made when it is not there."""
    facts = FACTS["environments"][row["environment"]]
    folder = environments / row["environment"]
    found = Environment(folder, facts["needs"], facts["constrained"], facts.get("without", ()))
    found.make()
    return found


def _apart(row: dict[str, Any], pruned: Pruned, kind: str, environments: Path) -> dict[str, Any]:
    """The answer of a script in its environment; or the last line that it wrote, as the message of a refusal."""
    python = environment_of(row, environments).python.absolute()
    job = {**asdict(pruned), "type": kind, "precision": PRECISIONS.get(kind, "f32")}
    if row["script"] == "openvino_onnx":
        job["onnx"] = str(pruned.export("onnx", dtype=kind, optimize="none"))
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [str(python), str(FOLDER / "runners" / f"{row['script']}.py")],
            input=json.dumps({**job, "scratch": scratch}), capture_output=True, text=True, check=False, timeout=LIMIT,
            cwd=scratch, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch},
        )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.search(line)]
        return {"message": (errors or lines or [f"it ended with {done.returncode}"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _onnx(pruned: Pruned, kind: str, _: Path) -> dict[str, Any]:
    from fxprune.backends.onnx.runtime import OnnxDecoder

    decoder = OnnxDecoder(pruned.export("onnx", dtype=kind))
    fed = np.array([[*pruned.prompt, *pruned.expected[:-1]]], np.int64)
    logits, _ = decoder.step(fed, decoder.empty_cache(1))
    logprobs = chosen(logits[0, len(pruned.prompt) - 1 :].astype(np.float64), pruned.expected)
    tokens = decoder.generate(pruned.prompt, len(pruned.expected))
    return {"tokens": tokens, "logprobs": logprobs, "version": version("onnxruntime")}


def _gguf(pruned: Pruned, kind: str, _: Path) -> dict[str, Any]:
    """What the exporter finds itself: it follows its own prompt in llama.cpp."""
    out = Path(f"{pruned.directory}.gguf")
    report: Any = fxprune.export(
        pruned.directory, out, format="gguf", dtype=kind, trust_remote_code=pruned.own_code, force=True
    )
    found = report.llama_cpp
    return {
        "compared": _Compared(found.greedy_tokens, found.greedy_equal, found.worst_difference),
        "version": f"xllamacpp {version('xllamacpp')}",
    }


def _browser(pruned: Pruned, kind: str, environments: Path) -> dict[str, Any]:
    out = pruned.export("onnx", dtype=kind, layout="transformers.js")
    job = {"prompt": pruned.prompt, "expected": pruned.expected}
    return decode(out, job, installed(environments / "javascript"))


HERE: dict[str, Callable[[Pruned, str, Path], dict[str, Any]]] = {"onnx": _onnx, "gguf": _gguf, "browser": _browser}
"""Runtimes of fxprune's own formats, which need no other environment of Python."""
