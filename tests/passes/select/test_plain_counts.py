"""The nearest counts that a configuration can say: of made-up configurations, and of transformers' own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from fxprune import api
from fxprune.api.terminal.shares import shares
from fxprune.ir import RequestError
from fxprune.ir.groups import Group, Kind
from fxprune.passes.select.costs import Counts
from fxprune.passes.select.plain_counts import first_units, nearest_counts

from ...decoders import random_decoder

HEADS, CHANNELS, WIDTH = Kind.HEADS, Kind.CHANNELS, Kind.WIDTH
Held = Mapping[Kind, int]
SIZES = {HEADS: 8, CHANNELS: 128, WIDTH: 512}


def groups(*kinds: Kind, layers: int = 2) -> list[Group]:
    many = [(kind, layer) for kind in kinds for layer in range(1 if kind is CHANNELS else layers)]
    return [Group(f"{layer}:{kind.value}", at, SIZES[kind], kind, ()) for at, (kind, layer) in enumerate(many)]


def asked(many: list[Group], ratio: float) -> dict[str, int]:
    return {group.name: group.size - int(group.size * ratio) for group in many}


def found(many: list[Group], ratio: float, says: Callable[[Held], bool], step: int = 1) -> tuple[Any, int]:
    """Kind -> count, and how often the configuration was asked; ``says``: whether it can say so many units of each."""
    questions = 0

    def why_not(counts: Counts) -> str:
        nonlocal questions
        questions += 1
        held = {**SIZES, **{group.kind: counts[group.name] for group in many}}
        return "" if says(held) else "no"

    counts, moved = nearest_counts(many, asked(many, ratio), {g.name: step for g in many}, [8], why_not)
    kinds = {group.kind: counts[group.name] for group in many}
    assert {(one.kind, one.kept) for one in moved} == {
        (group.kind.value, counts[group.name]) for group in many if counts[group.name] != asked(many, ratio)[group.name]
    }
    return kinds, questions


def test_counts_that_can_be_said_stay_and_are_asked_for_once() -> None:
    assert found(groups(HEADS, WIDTH), 0.25, lambda _: True) == ({HEADS: 6, WIDTH: 384}, 1)


def test_the_nearest_divisor_is_picked_and_widths_stay() -> None:
    """Of two equally near counts the one that removes something."""
    kinds, _ = found(groups(HEADS, WIDTH), 0.25, lambda n: n[CHANNELS] % n[HEADS] == 0)
    assert kinds == {HEADS: 4, WIDTH: 384}


def test_heads_that_only_change_with_the_width_change_with_it() -> None:
    kinds, _ = found(groups(HEADS, CHANNELS, WIDTH), 0.4, lambda n: n[HEADS] * 16 == n[CHANNELS])
    assert kinds == {HEADS: 5, CHANNELS: 80, WIDTH: 308}


def test_a_width_that_heads_must_divide_moves_to_a_multiple() -> None:
    kinds, _ = found(groups(CHANNELS), 0.4, lambda n: n[CHANNELS] % n[HEADS] == 0)
    assert kinds == {CHANNELS: 80}


def test_what_cannot_be_said_at_any_count_stays_whole() -> None:
    kinds, questions = found(
        groups(HEADS, CHANNELS, WIDTH), 0.25, lambda n: n[HEADS] == 8 and n[CHANNELS] % n[HEADS] == 0
    )
    assert kinds == {HEADS: 8, CHANNELS: 96, WIDTH: 384}
    assert questions < 60


def test_counts_are_multiples_of_the_step() -> None:
    kinds, _ = found(groups(WIDTH), 0.25, lambda n: n[WIDTH] in (300, 320, 380), step=64)
    assert kinds == {WIDTH: 320}


def test_where_nothing_can_be_said_the_request_is_refused() -> None:
    with pytest.raises(RequestError, match="no plain configuration describes a smaller model: no"):
        found(groups(HEADS, WIDTH), 0.25, lambda n: n[HEADS] == 8 and n[WIDTH] == 512)


def refused(counts: Counts) -> RequestError:
    """What is said where a configuration can only say equal widths, and none but 512."""
    steps = {group.name: 1 for group in groups(WIDTH)}
    with pytest.raises(RequestError) as caught:
        nearest_counts(groups(WIDTH), counts, steps, [], lambda held: "" if set(held.values()) == {512} else "no")
    return caught.value


def test_a_refusal_names_by_kinds_where_layers_were_to_differ() -> None:
    assert "by=kinds" in refused({"0:width": 300, "1:width": 400}).hint
    assert "by=kinds" not in refused({"0:width": 300, "1:width": 300}).hint


def test_a_refusal_names_the_multiple_that_a_width_was_rounded_up_to() -> None:
    many = groups(HEADS, WIDTH)
    counts = {group.name: 6 if group.kind is HEADS else 512 for group in many}
    steps = {group.name: 1 if group.kind is HEADS else 256 for group in many}
    with pytest.raises(RequestError, match="in multiples of 256, all 512 units of width stay; no") as caught:
        nearest_counts(many, counts, steps, [], lambda held: "" if held == {g.name: g.size for g in many} else "no")
    assert "a smaller multiple_of" in caught.value.hint
    assert "multiple_of" not in refused({"0:width": 300, "1:width": 300}).hint


def test_a_plan_of_shapes_keeps_the_first_units_of_every_parent() -> None:
    parent = groups(HEADS)[0]
    nested = Group("nested", 9, 3, Kind.QUERY_HEADS, (), parent)
    assert first_units([nested], {"nested": 2})["nested"].tolist() == [
        unit for head in range(8) for unit in (3 * head, 3 * head + 1)
    ]


IDS: dict[str, Any] = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 96, "num_hidden_layers": 2}
ROTARY: dict[str, Any] = {**PLAIN, **IDS, "max_position_embeddings": 64, "head_dim": 16}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(n_embd=128, n_head=8, n_layer=2, n_positions=64, **IDS),
    "bert": lambda: transformers.BertConfig(**PLAIN, **IDS, max_position_embeddings=64, is_decoder=True),
    "gemma3": lambda: transformers.Gemma3TextConfig(**ROTARY, num_key_value_heads=8),
    "gemma2": lambda: transformers.Gemma2Config(**ROTARY, num_key_value_heads=4),
}


@pytest.mark.parametrize(
    ("name", "passes", "fields", "said"),
    [
        pytest.param(
            "gemma3", "magnitude{ratio=0.25,ffn=false}", {"num_attention_heads": (8, 4), "num_key_value_heads": (8, 4)},
            "heads 8 to 4, not 6, .*hidden size .128. is not a multiple of the number of attention heads .6",
            id="gemma3",
        ),
        pytest.param(
            "gemma2", "magnitude{ratio=0.25}",
            {"intermediate_size": (96, 72), "num_attention_heads": (8, 4), "num_key_value_heads": (4, 2)},
            "kv_heads 4 to 2, not 3, .*not a multiple of the number of attention heads .6",
            id="gemma2", marks=pytest.mark.slow,
        ),
        pytest.param(
            "gpt2", "magnitude{ratio=0.4,channels=true}",
            {"n_embd": (128, 80), "n_head": (8, 5), "n_inner": (None, 308)}, "channels 128 to 80, not 77",
            id="gpt2 with its width", marks=pytest.mark.slow,
        ),
        pytest.param(
            "gpt2", "magnitude{ratio=0.25}", {"n_inner": (None, 384)},
            "8 heads stay, not 6, .*`embed_dim`: 128 and `num_heads`: 6", id="gpt2", marks=pytest.mark.slow,
        ),
        pytest.param(
            "bert", "magnitude{ratio=0.4,channels=true}",
            {"hidden_size": (128, 80), "intermediate_size": (96, 58), "num_attention_heads": (8, 5)},
            "channels 128 to 80, not 77, .*The hidden size .77. is not a multiple", id="bert with its width",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bert", "magnitude{target=params:0.9}", {"intermediate_size": (96, 53)},
            "8 heads stay", id="bert, a budget", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_uniform_form_picks_what_the_configuration_can_say(
    name: str, passes: str, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    random_decoder(CONFIGS[name](), 0.2).float().save_pretrained(tmp_path / "model")
    result = api.apply(tmp_path / "model", passes, out=tmp_path / "out", form="uniform")
    assert result.saved is not None
    assert result.saved.form == "uniform"
    assert dict(result.saved.config_changes) == fields
    lines = [line for line in shares(result.report) if "the nearest that a plain configuration can say" in line]
    assert any(re.search(said, line) for line in lines), lines
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record["passes"]["magnitude"]["nearest"] == result.report["magnitude"]["nearest"]


@pytest.mark.parametrize("form", ["auto", "free"])
def test_other_forms_take_the_counts_that_were_asked_for(form: Any, tmp_path: Path) -> None:
    random_decoder(CONFIGS["gemma3"](), 0.2).float().save_pretrained(tmp_path / "model")
    result = api.apply(tmp_path / "model", "magnitude{ratio=0.25,ffn=false}", dry_run=True, form=form)
    assert {(change.before, change.after) for change in result.groups} == {(8, 6)}
    assert "nearest" not in result.report["magnitude"]
