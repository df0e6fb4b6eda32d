"""Checking a written model the way its user will load it: in a fresh process, with transformers alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from ..ir.errors import FxpruneError, last_line
from ..runtime.tolerances import LOGITS_TOLERANCE, relative_difference

SCRIPT = Path(__file__).parent / "fresh_process.py"


@dataclass(frozen=True)
class Reference:
    """What the artifact must compute.

    Attributes:
        inputs: keyword arguments of the forward, all tensors; for a language model ``input_ids`` [batch, positions].
        logits: first output of the rewritten graph on them, float32.
        outputs: keys of what counts among the things that the model returns; empty when it is the first alone.
        others: the tensors under those keys that come after the first.
    """

    inputs: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    outputs: tuple[str, ...] = ()
    others: tuple[torch.Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is compared."""
        return (self.logits, *self.others)

    def compared(self, output: Any) -> list[torch.Tensor]:
        """Of what a model returned, the tensors that are compared; the fresh process picks them alike."""
        if not self.outputs:
            return [output[0]]
        leaves = pytree.tree_leaves([output[key] for key in self.outputs])
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def difference(self, tensors: Sequence[torch.Tensor]) -> float:
        """The worst :func:`relative_difference` of them; infinite when there are more or fewer."""
        if len(tensors) != len(self.tensors):
            return float("inf")
        return max(relative_difference(a, b) for a, b in zip(tensors, self.tensors, strict=True))


class VerificationError(FxpruneError):
    """The written model is not the one that was to be written."""


class DecodingError(VerificationError):
    """The written model decodes otherwise with a cache than without, or not at all."""


@dataclass(frozen=True)
class Job:
    """One directory to reload.

    Attributes:
        folder: a model directory.
        reference: inputs and the logits that they must give; None compares names and shapes only, without loading.
        auto_class: name of the transformers Auto class that loads it.
        trust: whether its user passes ``trust_remote_code=True``.
        decodes: whether decoding with a cache must give what decoding without one does.
    """

    folder: Path
    reference: Reference | None
    auto_class: str
    trust: bool
    decodes: bool = True


class FreshProcess:
    """A Python process in which fxprune cannot be imported; it imports transformers while what it will reload is being
    written. Used once, or closed without having been used."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="fxprune-verify-")
        self.scratch = Path(self._scratch.name)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(self.scratch / "modules")}
        command = [sys.executable, "-P", str(SCRIPT)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()
        self._scratch.cleanup()

    def run(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What it finds for each request; :class:`VerificationError` when it fails."""
        output, complaint = self._process.communicate(json.dumps(requests))
        if self._process.returncode != 0:
            why = last_line(complaint) or self._process.returncode
            raise VerificationError(
                f"a fresh Python process cannot load the written model: {why}",
                "load it by hand for the whole message; the transformers that is installed may differ",
            )
        reports: list[dict[str, Any]] = json.loads(last_line(output))
        return reports


def verify(jobs: Sequence[Job], fresh: FreshProcess | None = None) -> list[dict[str, Any]]:
    """Reload directories in one fresh process and compare each with its reference.

    Args:
        jobs: what to reload.
        fresh: one that was started earlier.

    Returns:
        For each the checks made, with the worst difference, for the record.

    Raises:
        VerificationError: when one does not load, a key is missing, unexpected or of the wrong shape, a value is not
            finite, the logits differ, or decoding with a cache gives other tokens than without.
    """
    with fresh or FreshProcess() as process:
        requests = [_request(job, process.scratch / str(number)) for number, job in enumerate(jobs)]
        reports = process.run(requests)
        logits = [_outputs(request["logits"]) if request["logits"] else None for request in requests]
    return [judge(report, got, job) for report, got, job in zip(reports, logits, jobs, strict=True)]


def _outputs(file: str) -> list[torch.Tensor]:
    """In the order in which they were written."""
    held = load_file(file)
    return [held[str(number)] for number in range(len(held))]


def judge(report: Mapping[str, Any], logits: Sequence[torch.Tensor] | None, job: Job) -> dict[str, Any]:
    """Turn what the fresh process found into the checks for the record, or the error."""
    for kind, keys in report["keys"].items():
        if keys:
            what = f"the written model has {kind.replace('_', ' ')}: {', '.join(keys[:3])}"
            raise VerificationError(what, "its configuration does not describe its weights")
    if report["not_finite"]:
        what = f"'{report['not_finite'][0]}' holds values that are not finite"
        raise VerificationError(what, "check the source for NaN, or lower the learning rate of the recovery")
    if job.reference is None or logits is None:
        return {"described_by": f"transformers.{job.auto_class}", "logits": "not compared", "all_finite": True}
    difference = job.reference.difference(logits)
    if not difference <= LOGITS_TOLERANCE:
        raise VerificationError(
            f"the written model's logits differ from the graph's by {difference:.3g} of their scale "
            f"(allowed {LOGITS_TOLERANCE:.0e})",
            "likely causes: the weights changed after the reference was computed, they are stored in a coarser dtype "
            "than it was computed in, or the model derives an attribute from its configuration",
        )
    generate = report["generate"]
    if job.decodes and generate:
        _check_decoding(generate)
    return {
        "loaded_by": f"transformers.{job.auto_class}",
        "logits_worst_difference": difference,
        "logits_tolerance": LOGITS_TOLERANCE,
        "all_finite": True,
        "cached_generate_equals_uncached": job.decodes if generate else None,
    }


def _check_decoding(generate: Mapping[str, Any]) -> None:
    hint = "the model's code for the cache reads a width that was not repaired"
    if "error" in generate:
        raise DecodingError(f"the written model does not decode: {generate['error']}", hint)
    if generate["gap"] > LOGITS_TOLERANCE:
        what = f"decoding with a cache gives {generate['cached']}, without one {generate['uncached']}"
        raise DecodingError(what, hint)


def verify_written(job: Job, source: Path | None, fresh: FreshProcess | None = None) -> dict[str, Any]:
    """Reload what was written, as :func:`verify`.

    Some models of transformers decode otherwise with a cache than without: where ``source``, from which this one was
    made, does too, it is held to its logits, and the checks say so.
    """
    try:
        (checks,) = verify([job], fresh)
    except DecodingError:
        if source is None or _decodes(replace(job, folder=source, auto_class=_class_in(source) or job.auto_class)):
            raise
        (checks,) = verify([replace(job, decodes=False)])
    return checks


def _class_in(folder: Path) -> str | None:
    """The class of transformers that a model directory names, if it does."""
    named: list[str] = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    return next((name for name in named if hasattr(transformers, name)), None)


def _decodes(job: Job) -> bool:
    """Whether a model decodes the same with a cache as without, in a fresh process."""
    with FreshProcess() as process:
        (report,) = process.run([_request(job, process.scratch / "0")])
    try:
        _check_decoding(report["generate"] or {"gap": 0.0})
    except DecodingError:
        return False
    return True


def _request(job: Job, scratch: Path) -> dict[str, Any]:
    request: dict[str, Any] = {
        "folder": str(job.folder),
        "auto": job.auto_class,
        "trust": job.trust,
        "inputs": "",
        "logits": "",
    }
    request["outputs"] = list(job.reference.outputs) if job.reference else []
    if job.reference is None:
        return request
    scratch.mkdir()
    inputs, logits = scratch / "inputs.safetensors", scratch / "logits.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in job.reference.inputs.items()}, inputs)
    return {**request, "inputs": str(inputs), "logits": str(logits)}
