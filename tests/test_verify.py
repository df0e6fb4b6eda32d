"""What a fresh process finds in a written model, and what is said about it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.backends.verify import LOGITS_TOLERANCE, Job, Reference, VerificationError, judge, verify

FINE: dict[str, Any] = {"keys": {"missing_keys": []}, "not_finite": [], "generate": None}


@pytest.mark.parametrize(
    ("report", "got", "message", "hint"),
    [
        ({"keys": {"missing_keys": ["a", "b"]}}, 1.0, "the written model has missing keys: a, b", "configuration"),
        ({"keys": {"unexpected_keys": ["a"]}}, 1.0, "the written model has unexpected keys: a", "configuration"),
        ({"not_finite": ["a.weight"]}, 1.0, "'a.weight' holds values that are not finite", "NaN"),
        ({}, 1.1, "logits differ from the graph's by 0.1 of their scale", "weights changed after"),
        ({}, float("nan"), "logits differ from the graph's by inf of their scale", "coarser dtype"),
        (
            {"generate": {"cached": [1, 2], "uncached": [1, 3], "gap": 0.2}},
            1.0,
            r"decoding with a cache gives \[1, 2\], without one \[1, 3\]",
            "not repaired",
        ),
        (
            {"generate": {"error": "IndexError: index 9 is out of range"}},
            1.0,
            "the written model does not decode: IndexError: index 9 is out of range",
            "not repaired",
        ),
    ],
)
def test_what_a_fresh_process_finds(report: dict[str, Any], got: float, message: str, hint: str) -> None:
    job = Job(Path("out"), Reference({}, torch.ones(3)), "AutoModel", False)
    with pytest.raises(VerificationError, match=message) as caught:
        judge({**FINE, **report}, [torch.full((3,), got)], job)
    assert hint in caught.value.hint
    tie = {**FINE, "generate": {"cached": [1], "uncached": [2], "gap": LOGITS_TOLERANCE / 2}}
    assert judge(tie, [torch.ones(3)], job)["cached_generate_equals_uncached"]


def test_a_fresh_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nValueError: unknown architecture\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        VerificationError, match=r"fresh Python process cannot load .*: ValueError: unknown architecture"
    ):
        verify([Job(Path("out"), Reference({}, torch.ones(1)), "AutoModel", False)])
