"""``generation_config.json``: what cannot work is refused before any work, and what can decides no check."""

from __future__ import annotations

from pathlib import Path

import pytest

import fxprune
from fxprune.backends.artifact import read_record
from fxprune.backends.huggingface.load import load as load_artifact
from fxprune.ir.errors import RequestError
from fxprune.tracer.fitting import check_fit
from fxprune.tracer.model import resolve

from ..strangers import content, copied, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("generation") / "model")


def with_generation(model: Path, folder: Path, data: str) -> Path:
    content("generation_config.json", data)(copied(model, folder))
    return folder


REFUSED = {
    "more than greedy gives": '{"num_return_sequences": 3}',
    "settings of a compiler": '{"compile_config": {"x": 1}}',
    "a watermark that is none": '{"watermarking_config": {"a": 1}}',
    "a cache that is none": '{"cache_implementation": "owner/cache"}',
    "no new tokens": '{"max_new_tokens": 0}',
    "padding that is a text": '{"pad_token_id": "x"}',
    "an end that is a text": '{"eos_token_id": ["</s>"]}',
    "an end that no tensor holds": f'{{"eos_token_id": [{10**30}]}}',
    "a text as temperature": '{"temperature": "x", "do_sample": true}',
    "words that are no tokens": '{"bad_words_ids": [["a"]]}',
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_cannot_generate_is_refused_before_any_work(model: Path, tmp_path: Path, data: str) -> None:
    folder = with_generation(model, tmp_path / "model", data)
    with pytest.raises(RequestError, match=r"generation_config\.json") as caught:
        check_fit(resolve(folder))
    assert caught.value.hint == "correct it, or remove it"
    with pytest.raises(RequestError, match=r"generation_config\.json"):
        fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


TAKEN = {
    "sampling": '{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "num_return_sequences": 2}',
    "beams": '{"num_beams": 2, "length_penalty": 2.0, "early_stopping": true}',
    "ends, padding and lengths": '{"eos_token_id": [0, 1], "pad_token_id": 0, "max_length": 3, "min_length": 2}',
    "forced tokens": '{"forced_bos_token_id": 1, "forced_eos_token_id": 1, "suppress_tokens": [2]}',
    "an assistant": '{"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "penalty_alpha": 0.6, "top_k": 4}',
    "what it does not know": '{"chat_format": "raw", "stop_words": ["a"]}',
}


@pytest.mark.first_rows(2)
@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN)
def test_what_can_generate_does_not_decide_the_check(model: Path, tmp_path: Path, data: str) -> None:
    folder = with_generation(model, tmp_path / "model", data)
    fxprune.apply(folder, "magnitude", ratio=0.5, out=tmp_path / "out")
    assert read_record(tmp_path / "out")["checks"]["cached_generate_equals_uncached"] is True
    assert load_artifact(tmp_path / "out") is not None
