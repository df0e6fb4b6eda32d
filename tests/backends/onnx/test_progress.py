"""What an export tells while it works: every stage with its number, and how far long ones have come."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fxprune.backends.onnx.artifact import OnnxRequest
from fxprune.backends.onnx.decoder import export_onnx
from fxprune.runtime.consent import Consent
from fxprune.runtime.reporting import Count, listening

from .onnx_models import build


@pytest.mark.wide
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_every_stage_is_told_with_its_number(dtype: str, tmp_path: Path) -> None:
    source = build(tmp_path / "model", "llama")
    said: list[str] = []
    counted: dict[str, tuple[int, int | None]] = {}

    def heard(count: Count) -> None:
        counted[count.unit] = (count.done, count.total)

    with listening(heard):
        consent = Consent.of_user(source, code=False)
        export_onnx(OnnxRequest(source, tmp_path / "onnx", dtype=dtype, consent=consent), progress=said.append)
    numbers = [re.fullmatch(r"(.+) \((\d+) of (\d+)\)", text) for text in said]
    assert [match and match.groups()[1:] for match in numbers] == [
        (str(number), str(len(said))) for number in range(1, len(said) + 1)
    ]
    assert any("tracing" in text for text in said)
    assert counted["tokens"][0] == counted["tokens"][1] == 32
    done, total = counted["tensors"]
    assert done == total
    assert done > 5
