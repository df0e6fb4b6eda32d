"""A budget of time: contractions are timed once per shape, the prediction is theirs plus what stays, and it is met."""

from __future__ import annotations

import pytest
import torch

from fxprune.api.terminal.tables import latencies
from fxprune.ir import FxpruneError, RequestError
from fxprune.ir.cost import macs_of
from fxprune.ir.graph import DType, Op, Value
from fxprune.passes.couple.coupling import couple
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.select import latency
from fxprune.passes.select.target import Target
from fxprune.passes.select.latency import TOKENS, Clock, Latency, forward_seconds
from fxprune.passes.state import State
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm, trace_model

from ...states import decoder_state, run_passes
from .test_allocate import make

START, PER_MAC = 500, 3
"""Nanoseconds of the made-up machine: to start an operator, and of every multiply-accumulate."""

WHOLE = 0.05
"""Seconds that it takes for a run, whatever the model."""


def nanoseconds(op: Op) -> int:
    return START + PER_MAC * macs_of(op)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Op]:
    """A machine whose times are known; grows by every operator that it times."""
    timed: list[Op] = []

    def time(_clock: Clock, op: Op) -> int:
        timed.append(op)
        return nanoseconds(op)

    monkeypatch.setattr(Clock, "_timed", time)
    monkeypatch.setattr(latency, "forward_seconds", lambda _state: WHOLE)
    monkeypatch.setattr("fxprune.passes.prune.forward_seconds", lambda _state: WHOLE / 2)
    return timed


def state_of(kind: str = "llama") -> State:
    model = make(kind).float()
    traced = trace_causal_lm(model)
    return decoder_state(model, traced, whole=traced.graph)


def contractions(state: State) -> int:
    """Of a run on TOKENS tokens, by a trace of that length."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    graph = trace_model(state.subject.model, {"input_ids": ids, "use_cache": False}).graph
    return sum(nanoseconds(op) for op in graph.ops if macs_of(op))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_prediction_is_what_the_narrower_model_takes_to_contract_and_all_that_stays(
    kind: str, machine: list[Op]
) -> None:
    state = state_of(kind)
    before = contractions(state)
    run_passes(state, "magnitude{target=latency:0.8,by=global}")
    report = state.ledger.report["magnitude"]
    found = report["allocation"]
    whole = round(WHOLE * 1e9)
    assert found["budget"] == round(0.8 * whole)
    assert abs(found["reached"] - 0.8 * whole) <= 0.005 * 0.8 * whole
    assert found["reached"] == pytest.approx(contractions(state) + whole - before, abs=20)  # a rounding per operator
    assert report["seconds"] == {
        "before": WHOLE, "predicted": pytest.approx(found["reached"] / 1e9), "after": WHOLE / 2,
    }  # fmt: skip
    assert "seconds" not in found
    shapes = {(op.packet, tuple(v.shape for v in (*op.operands, *op.made))) for op in machine}
    assert len(shapes) == len(machine)  # each shape is timed once


def test_the_budget_counts_from_the_model_before_layers_went(machine: list[Op]) -> None:
    del machine
    state = state_of()
    run_passes(state, "drop{layers=1,samples=2,length=8},magnitude{target=latency:0.6,by=global}")
    found = state.ledger.report["magnitude"]["allocation"]
    shallow = round(WHOLE * 1e9)
    assert found["budget"] > 0.7 * shallow  # of three layers, where two take WHOLE
    assert abs(found["reached"] - found["budget"]) <= 0.005 * found["budget"]


def test_wider_is_never_quicker_whatever_one_timing_says(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = iter(range(10**6, 0, -1))
    monkeypatch.setattr(Clock, "_timed", lambda *_: next(odd))
    monkeypatch.setattr(latency, "forward_seconds", lambda _state: WHOLE)
    state = state_of()
    coupling = couple(state.subject.graph)
    group = next(g for g in coupling.groups.values() if g.kind.value == "width")
    costs = Latency(coupling, [group.name], state.subject)
    found = [costs.of({group.name: count}) for count in range(1, group.size + 1)]
    assert found == sorted(found)


def test_this_machine_is_timed_on_the_model_and_its_operators() -> None:
    state = state_of()
    seconds = forward_seconds(state.subject)
    assert seconds is not None
    assert 1e-5 < seconds < 10
    coupling = couple(state.subject.graph)
    clock = Clock(state.subject.runner)
    small, large = (clock(linear(8, width)) for width in (8, 1024))
    assert 0 < small < large
    assert Latency(coupling, [], state.subject).whole(state.subject.graph) > 0


def test_what_was_predicted_and_measured_is_shown() -> None:
    found = {"seconds": {"before": 0.04, "predicted": 0.032, "after": 0.0311}}
    assert latencies({"drop": {}, "taylor": found, "lora": {"seconds": 3.0}}) == [
        "taylor: latency target 32 ms (dense 40 ms); measured 31.1 ms"
    ]
    found["seconds"]["before"] = found["seconds"]["after"] = None  # type: ignore[assignment]
    assert latencies({"taylor": found}) == ["taylor: latency target 32 ms; the result was not timed"]


def test_a_model_without_weights_is_predicted_and_not_run() -> None:
    state = state_of()
    state.subject.model.to("meta")
    assert forward_seconds(state.subject) is None


def linear(rows: int, width: int, columns: int | None = None) -> Op:
    x, y = (Value(name, DType("f32"), (rows, width)) for name in "xy")
    return Op("aten.linear", (x, Value("w", DType("f32"), (width, columns or width))), {}, (y,))


def test_a_target_of_seconds_and_an_operator_that_does_not_run_are_refused() -> None:
    with pytest.raises(RequestError, match="target 'latency=5' is not a share") as caught:
        Target.parse("latency=5")
    assert "latency=0.8" in caught.value.hint
    with pytest.raises(FxpruneError, match=r"aten\.linear cannot be timed by itself") as failed:
        Clock(BlockRunner(make().float()))(linear(2, 4, columns=5))
    assert "macs" in failed.value.hint


def test_the_option_is_checked_before_anything_runs() -> None:
    with pytest.raises(RequestError, match="is not a share"):
        Magnitude(target="latency=7").check()
