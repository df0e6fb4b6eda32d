"""Texts are read as the model wants them, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxprune.api.inputs.seen_texts import text_of
from fxprune.ir.errors import RequestError
from fxprune.tracer.model import resolve

from ...families.causal_lm import tiny_model
from ...tracer.test_texts import byte_tokenizer


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("llama", "makes token 220 from 'built-in calibration text', but the model has 131 tokens"),
        ("musicgen", "a musicgen_decoder model does not read text, but 4 rows of codes at a time"),
    ],
)
def test_a_text_for_another_model_is_refused(family: str, message: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=message):
        _ = text_of(None, "calibration", resolve(tmp_path, weights=False)).ids
