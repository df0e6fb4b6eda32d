"""What a fresh process finds in a written model, and what is said about it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.backends import verify as verify_module
from fxprune.backends.verify import FreshProcess, Job, Reference, VerificationError, judge, verify
from fxprune.runtime.consent import Consent
from fxprune.runtime.tolerances import LOGITS_TOLERANCE

pytestmark = pytest.mark.usefixtures("real_processes")

NOTHING = Consent.nothing(Path("out"))
FINE: dict[str, Any] = {"keys": {"missing_keys": []}, "not_finite": [], "generate": None}


@pytest.mark.parametrize(
    ("report", "got", "message", "hint"),
    [
        ({"keys": {"missing_keys": ["a", "b"]}}, 1.0, "the written model has missing keys: a, b", "configuration"),
        ({"keys": {"unexpected_keys": ["a"]}}, 1.0, "the written model has unexpected keys: a", "configuration"),
        ({"not_finite": ["a.weight"]}, 1.0, "'a.weight' holds values that are not finite", "NaN"),
        ({}, 1.1, "logits differ from the graph's by 0.1 of their scale", "weights have changed since"),
        ({}, float("nan"), "logits differ from the graph's by inf of their scale", "less precise dtype"),
        (
            {"generate": {"cached": [1, 2], "uncached": [1, 3], "gap": 0.2}},
            1.0,
            r"decoding with a cache gives \[1, 2\], without one \[1, 3\]",
            "was not changed",
        ),
        (
            {"generate": {"error": "IndexError: index 9 is out of range"}},
            1.0,
            "the written model does not decode: IndexError: index 9 is out of range",
            "was not changed",
        ),
    ],
)
def test_what_a_fresh_process_finds(report: dict[str, Any], got: float, message: str, hint: str) -> None:
    job = Job(NOTHING, Reference({}, torch.ones(3)), "AutoModel")
    with pytest.raises(VerificationError, match=message) as caught:
        judge({**FINE, **report}, [torch.full((3,), got)], job)
    assert hint in caught.value.hint
    tie = {**FINE, "generate": {"cached": [1], "uncached": [2], "gap": LOGITS_TOLERANCE / 2}}
    assert judge(tie, [torch.ones(3)], job)["cached_generate_equals_uncached"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What runs in place of the fresh process's own script."""
    monkeypatch.setattr(verify_module, "SCRIPT", tmp_path / "script.py")
    return verify_module.SCRIPT


def test_a_fresh_process_that_fails(script: Path) -> None:
    script.write_text("raise ValueError('unknown architecture')")
    with pytest.raises(
        VerificationError, match=r"fresh Python process cannot load .*: ValueError: unknown architecture"
    ):
        verify([Job(NOTHING, Reference({}, torch.ones(1)), "AutoModel")])


def test_a_process_that_was_started_ahead_is_given_the_jobs(script: Path) -> None:
    report = {**FINE, "keys": {"missing_keys": ["a"]}}
    script.write_text(f"import json, sys; jobs = json.load(sys.stdin); print('noise'); print(json.dumps([{report}]))")
    with FreshProcess() as fresh:
        with pytest.raises(VerificationError, match="missing keys: a"):
            verify([Job(NOTHING, None, "AutoModel")], fresh)
        assert not fresh.scratch.exists()


def test_a_process_that_is_not_needed_ends(script: Path, tmp_path: Path) -> None:
    noted = tmp_path / "id"
    script.write_text(f"import os, time; open({str(noted)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    with FreshProcess() as fresh:
        while not noted.is_file() or not noted.read_text():
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
    assert not fresh.scratch.exists()
