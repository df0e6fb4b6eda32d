"""Check a written model as its user will load it: in a fresh process, with transformers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from ..ir.errors import FxpruneError, last_line
from ..runtime.child_process import start_python
from ..runtime.consent import Consent
from ..runtime.scratch import ScratchDirectory
from ..runtime.tolerances import LOGITS_TOLERANCE, relative_difference

NOT_ASKED = "decoding_with_a_cache_not_asked_for"
"""Among the checks in the record: why decoding was not compared."""

SCRIPT = Path(__file__).parent / "fresh_process.py"


@dataclass(frozen=True)
class Reference:
    """The outputs that an artifact must give.

    Attributes:
        inputs: keyword arguments of forward, all tensors; for a language model ``input_ids`` [batch, positions].
        logits: first output of the rewritten graph on them, float32.
        outputs: keys of the outputs that are compared; empty when only the first output is.
        others: the tensors under those keys, without the first.
    """

    inputs: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    outputs: tuple[str, ...] = ()
    others: tuple[torch.Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors that are compared."""
        return (self.logits, *self.others)

    def compared(self, output: Any) -> list[torch.Tensor]:
        """The tensors in the output of a model that are compared. The fresh process selects them in the same way."""
        if not self.outputs:
            return [output[0]]
        leaves = pytree.tree_leaves([output[key] for key in self.outputs])
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def difference(self, tensors: Sequence[torch.Tensor]) -> float:
        """The largest :func:`relative_difference` of the tensors; infinite when their number differs."""
        if len(tensors) != len(self.tensors):
            return float("inf")
        return max(relative_difference(a, b) for a, b in zip(tensors, self.tensors, strict=True))


class VerificationError(FxpruneError):
    """The written model does not pass its check."""


class DecodingError(VerificationError):
    """The written model gives other tokens with a key-value cache than without, or cannot decode."""


@dataclass(frozen=True)
class Job:
    """One directory to check.

    Attributes:
        consent: a model directory, and what may run there.
        reference: inputs and their expected outputs; when None, only names and shapes are compared.
        auto_class: name of the transformers Auto class that loads it.
        decodes: whether decoding with a key-value cache must give the same tokens as without.
    """

    consent: Consent
    reference: Reference | None
    auto_class: str
    decodes: bool = True

    @property
    def folder(self) -> Path:
        """The model directory."""
        return self.consent.directory


class FreshProcess:
    """A Python process in which fxprune cannot be imported. It imports transformers while the model is being written.
    It can be used once."""

    def __init__(self) -> None:
        self._scratch = ScratchDirectory("fxprune-verify-")
        self.scratch = self._scratch.path
        settings = {"HF_MODULES_CACHE": str(self.scratch / "modules")}
        self._process = start_python([str(SCRIPT)], self.scratch, settings=settings)

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()
        self._scratch.remove()

    def run(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The report for each request.

        Raises:
            VerificationError: the process fails.
        """
        output, complaint = self._process.communicate(json.dumps(requests))
        if self._process.returncode != 0:
            why = last_line(complaint) or self._process.returncode
            raise VerificationError(
                f"a fresh Python process cannot load the written model: {why}",
                "check that the installed transformers and torch work together; otherwise report this as a bug",
            )
        reports: list[dict[str, Any]] = json.loads(last_line(output))
        return reports


def verify(jobs: Sequence[Job], fresh: FreshProcess | None = None) -> list[dict[str, Any]]:
    """Load directories in one fresh process, and compare each with its reference.

    Args:
        jobs: the directories to check.
        fresh: a process that was started earlier.

    Returns:
        For each directory, the checks and the largest difference, for the record.

    Raises:
        VerificationError: a directory does not load, a key is missing, unexpected or of the wrong shape, a value is not
            finite, the outputs differ, or decoding with a cache gives other tokens than without.
    """
    with fresh or FreshProcess() as process:
        requests = [_request(job, process.scratch / str(number)) for number, job in enumerate(jobs)]
        reports = process.run(requests)
        logits = [_outputs(request["logits"]) if request["logits"] else None for request in requests]
    return [judge(report, got, job) for report, got, job in zip(reports, logits, jobs, strict=True)]


def _outputs(file: str) -> list[torch.Tensor]:
    """The tensors in a file, in the order in which they were written."""
    held = load_file(file)
    return [held[str(number)] for number in range(len(held))]


def judge(report: Mapping[str, Any], logits: Sequence[torch.Tensor] | None, job: Job) -> dict[str, Any]:
    """Make the checks for the record from the report of the fresh process, or raise the error."""
    for kind, keys in report["keys"].items():
        if keys:
            what = f"the written model has {kind.replace('_', ' ')}: {', '.join(keys[:3])}"
            raise VerificationError(what, "the configuration does not describe the weights; please report the model")
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
            "likely causes: the weights have changed since the reference was computed, they are stored in a less "
            "precise dtype, or the code of the model computes a width from its configuration",
        )
    generate = report["generate"]
    if job.decodes and generate:
        _check_decoding(generate)
    refused = {"runs_without_cache_only": report["refuses_cache"]} if report.get("refuses_cache") else {}
    return {
        "loaded_by": f"transformers.{job.auto_class}",
        **refused,
        "logits_worst_difference": difference,
        "logits_tolerance": LOGITS_TOLERANCE,
        "all_finite": True,
        "cached_generate_equals_uncached": job.decodes if generate else None,
    }


def _check_decoding(generate: Mapping[str, Any]) -> None:
    hint = "likely cause: the code of the model for the cache reads a width that was not changed"
    if "error" in generate:
        raise DecodingError(f"the written model does not decode: {generate['error']}", hint)
    if generate["gap"] > LOGITS_TOLERANCE:
        what = f"decoding with a cache gives {generate['cached']}, without one {generate['uncached']}"
        raise DecodingError(what, hint)


def verify_written(job: Job, source: Consent | None, fresh: FreshProcess | None = None) -> dict[str, Any]:
    """Check a written model, as :func:`verify` does.

    Some models of transformers give other tokens with a cache than without. If the original model does so too, only the
    outputs of forward are compared, and the checks in the record say so.

    Args:
        job: the written model.
        source: what may run of the directory of the original model; None when there is none.
        fresh: a process that was started earlier.
    """
    try:
        (checks,) = verify([job], fresh)
    except DecodingError:
        why = "" if source is None else _why_not_decoding(_original(job, source))
        if not why:
            raise
        (checks,) = verify([replace(job, decodes=False)])
        return {**checks, NOT_ASKED: f"the source does not pass this check either: {why}"}
    return checks


def _original(job: Job, source: Consent) -> Job:
    """The same job for the original model: the class of transformers in its configuration loads it, or what loads the
    written model where its own code does."""
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    import transformers

    named = next((name for name in config.get("architectures") or [] if hasattr(transformers, name)), None)
    own = source.code and config.get("auto_map")
    return replace(job, consent=source, auto_class=job.auto_class if own else named or job.auto_class)


def _why_not_decoding(job: Job) -> str:
    """Why a model does not give the same tokens with a cache as without, in a fresh process; "" when it does. One that
    does not load there, such as one whose code may not run, is no excuse for another."""
    try:
        with FreshProcess() as process:
            (report,) = process.run([_request(job, process.scratch / "0")])
    except VerificationError:
        return ""
    generate = report["generate"] or {"gap": 0.0}
    try:
        _check_decoding(generate)
    except DecodingError as error:
        return str(generate.get("error", error.message.replace("the written model", "it")))
    return ""


def _request(job: Job, scratch: Path) -> dict[str, Any]:
    request: dict[str, Any] = {
        "folder": str(job.folder.absolute()),
        "auto": job.auto_class,
        "keywords": job.consent.keywords(job.folder),
        "pickle": job.consent.pickle,
        "written": dict(job.consent.written),
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
