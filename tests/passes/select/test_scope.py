"""Which heads a pass cuts where there are few of them, and what is said about the share that went."""

from __future__ import annotations

from typing import Any

import pytest

from fxprune.api.terminal.shares import shares
from fxprune.ir import RequestError
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.state import State

from ...states import decoder_state
from .test_select import tiny


def pruned(kv_heads: int, queries: int, **options: Any) -> State:
    """A model with so many kv heads and so many query heads in each, after a pass."""
    state = decoder_state(tiny(heads=kv_heads * queries, kv_heads=kv_heads, width=4 * kv_heads * queries))
    state.before.graph = state.subject.graph  # as the manager keeps it
    Magnitude(**options).run(state)
    return state


def kinds(state: State) -> dict[str, float]:
    return {kind: found["share"] for kind, found in state.ledger.report["magnitude"]["removed"].items()}


@pytest.mark.parametrize(
    ("kv_heads", "queries", "options", "expected"),
    [
        (4, 2, {"ratio": 0.25}, {"kv_heads": 0.25}),
        (2, 7, {"ratio": 0.25}, {"query_heads": 1 / 7}),
        (2, 7, {"ratio": 0.5}, {"kv_heads": 0.5}),
        (2, 7, {"ratio": 0.25, "heads": "query"}, {"query_heads": 1 / 7}),
        (2, 7, {"ratio": 0.25, "heads": "kv"}, {"kv_heads": 0}),
        (3, 3, {"ratio": 0.25}, {"kv_heads": 0}),  # neither has a unit to spare
        (2, 8, {"target": "params=0.8"}, {"query_heads": None}),
        (8, 2, {"target": "params=0.8"}, {"kv_heads": None}),
        (8, 1, {"ratio": 0.25}, {"heads": 0.25}),
    ],
)
def test_query_heads_take_over_where_kv_heads_are_too_few(
    kv_heads: int, queries: int, options: dict[str, Any], expected: dict[str, float | None]
) -> None:
    found = kinds(pruned(kv_heads, queries, **options))
    assert found.keys() == {*expected, "width"}
    for kind, share in expected.items():
        assert share is None or found[kind] == pytest.approx(share, abs=1e-6)


def test_the_share_of_every_kind_is_said() -> None:
    (said,) = shares(pruned(3, 3, ratio=0.25).ledger.report)
    assert said == "magnitude removed 0.0% of kv_heads (3 in a group), 25.0% of width; ratio=0.25"
    (said,) = shares(pruned(2, 8, target="params=0.8").ledger.report)
    assert "asked" not in said
    assert " of query_heads, " in said


def test_a_ratio_that_removes_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match=r"ratio 0\.25 is less than one step in groups of kv_heads 3"):
        pruned(3, 3, ratio=0.25, ffn=False)
