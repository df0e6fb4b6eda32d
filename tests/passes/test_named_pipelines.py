"""--pass best and --pass paper stand for passes, with the options that are given to them."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from fxprune.ir import RequestError
from fxprune.passes.named_pipelines import NAMED_PIPELINES
from fxprune.passes.pipeline import parse_pipeline
from fxprune.passes.registry import PASSES
from fxprune.passes.select.scope import counted_from_start

from ..decoders import random_decoder, special_tokens
from ..states import decoder_state

BEST = next(pipeline.text for pipeline in NAMED_PIPELINES if pipeline.name == "best")

VALUES = "by=global,values=true,samples=16"


@pytest.mark.parametrize("pipeline", NAMED_PIPELINES, ids=lambda pipeline: pipeline.name)
def test_a_name_is_its_text(pipeline: Any) -> None:
    assert parse_pipeline(pipeline.name, PASSES) == parse_pipeline(pipeline.text, PASSES)
    assert parse_pipeline(pipeline.name, PASSES, uniform=True) == parse_pipeline(pipeline.uniform, PASSES)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("best{samples=16}", "obs{by=global,samples=16},compensate{samples=16,damping=auto}"),
        (
            "best{by=search,method=lstsq}",
            "obs{by=search,samples=128},compensate{samples=128,method=lstsq,damping=auto}",
        ),
        ("best_values{samples=16}", f"turn{{samples=16}},obs{{{VALUES}}},compensate{{samples=16,damping=auto}}"),
        ("generate,best,lora", f"generate,{BEST},lora"),
        ("paper{layers=4:30},lora", "taylor{variant=element1,samples=10,layers=4:30},lora"),
    ],
)
def test_options_go_to_the_passes_that_have_them(text: str, meant: str) -> None:
    assert parse_pipeline(text, PASSES) == parse_pipeline(meant, PASSES)


def test_what_all_passes_share_reaches_them() -> None:
    found = parse_pipeline("best", PASSES, {"target": "params:0.8"})
    assert found == parse_pipeline(
        "obs{by=global,samples=128,target=params:0.8},compensate{samples=128,damping=auto}", PASSES
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("best{sample=3}", "has no option 'sample'\n  best{sample=3}\n       ^^^^^^", "samples"),
        ("best{samples=0}", "samples=0 is below 1\n  best{samples=0}\n       ^", "samples"),
        ("bests", "unknown pass 'bests'", "did you mean 'best' or 'best_values'?"),
    ],
)
def test_what_is_wrong_is_shown_where_it_is_written(text: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_pipeline(text, PASSES)
    assert message.split("\n", maxsplit=1)[0] in error.value.message
    assert [line for line in error.value.message.splitlines() if set(line.strip()) == {"^"}]
    assert hint in error.value.hint or hint in error.value.message


@pytest.mark.parametrize("text", ["0:0", "2:0", "-1:3", "3:2"])
def test_ends_that_are_no_range(text: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_pipeline(f"taylor{{layers={text}}}", PASSES)
    assert "START:END" in (error.value.hint or "")


def test_an_end_from_the_back() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = random_decoder(transformers.LlamaConfig(**sizes, **special_tokens(37)), 0.2)
    coupling = decoder_state(model).subject.coupling
    assert coupling is not None
    groups = list(coupling.groups.values())
    assert counted_from_start((1, -1), groups) == (1, 3)
    assert counted_from_start((1, 3), groups) == (1, 3)
    assert counted_from_start(None, groups) is None
    with pytest.raises(RequestError, match="leaves no layer: the model has 4"):
        counted_from_start((2, -2), groups)
    with pytest.raises(RequestError, match="the model has 0"):
        counted_from_start((0, -1), [])
