"""What an analysis says of a cut is what the cut model shows, and its budget follows from what was measured."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.ir import RequestError
from fxprune.passes.analyze.analyze import Analyze
from fxprune.passes.analyze.reading import costly_layers, layer_losses, loss_at, short_names, spared_layers
from fxprune.passes.score_cache import CURVE, ScoreCache
from fxprune.passes.select.sensitivity import PROBES, MeasuredAllocation
from fxprune.passes.shrink.cut import cut
from fxprune.passes.state import State

from ... import nets
from ...corpora import RandomTokens
from ...decoders import VOCABULARY, llama
from ...states import decoder_state, module_state, run_passes

SCORED = "wanda{samples=4,length=8}"
TEXT = RandomTokens(VOCABULARY)


@functools.cache
def analyzed() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """A decoder, what was measured of it, and its tensors before."""
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = decoder_state(model)
    return model, run_passes(state, Analyze(scores=SCORED, bound=0.05)).ledger.report["analyze"], before


def log_probabilities(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TEXT.windows(8, 4)).logits.log_softmax(-1)


def divergence(dense: Tensor, other: Any) -> float:
    return float((dense.exp() * (dense - log_probabilities(other))).sum(-1).mean())


def best(group: dict[str, Any], count: int) -> Any:
    rows = np.array(group["scores"]).reshape(-1, group["units"])
    units = np.argsort(-rows, axis=1, kind="stable")[:, :count] + np.arange(len(rows))[:, None] * group["units"]
    return np.sort(units.ravel())


def test_the_model_stays() -> None:
    model, report, before = analyzed()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert report["recommended"] is not None


def test_a_cut_costs_what_the_cut_model_shows() -> None:
    model, report, _ = analyzed()
    dense = log_probabilities(model)
    kinds = {group["kind"]: group for group in report["groups"]}
    assert "width" in kinds
    for group in kinds.values():
        small = decoder_state(copy.deepcopy(model))
        count, loss = group["counts"][0], group["losses"][0]
        cut(small, small.subject.coupling, {group["name"]: best(group, count)})  # type: ignore[arg-type]
        now = divergence(dense, small.subject.model)
        rising = group["losses"][0] > group["losses"][1]  # else it was lifted to the curve's next value
        assert loss == pytest.approx(now, rel=1e-4, abs=1e-7) if rising else loss >= now - 1e-6


def test_a_layer_costs_what_the_model_without_it_shows() -> None:
    model, report, _ = analyzed()
    layers = [part for part in report["parts"] if part["kind"] == "layer"]
    assert [part["layer"] for part in layers] == list(range(len(model.model.layers)))
    for part in layers:
        small = copy.deepcopy(model)
        kept = [layer for at, layer in enumerate(small.model.layers) if at != part["layer"]]
        for at, layer in enumerate(kept):
            layer.self_attn.layer_idx = at
        small.model.layers = nn.ModuleList(kept)
        small.config.num_hidden_layers = len(kept)
        assert part["loss"] == pytest.approx(divergence(log_probabilities(model), small), rel=1e-4)
        assert part["parameters"] == sum(p.numel() for p in model.model.layers[part["layer"]].parameters())
    assert {part["kind"] for part in report["parts"]} == {"layer", "attention", "mlp"}


def test_the_recommended_budget_is_the_smallest_within_the_bound() -> None:
    _, report, _ = analyzed()
    found, tried = report["recommended"], {round(100 * one["share"]): one for one in report["budgets"]}
    percent = round(100 * found["share"])
    assert tried[percent] == found
    assert found["measured"] <= report["bound"]
    assert percent - 1 not in tried or tried[percent - 1]["measured"] > report["bound"]
    assert abs(found["reached"] - percent / 100 * report["whole"]) <= 0.005 * report["whole"]
    alone = sum(loss_at(group, 1 - group["kept"] / group["units"]) or 0.0 for group in report["groups"])
    assert found["predicted"] == pytest.approx(alone, abs=1e-6)


def test_a_bound_that_no_cut_meets_recommends_nothing() -> None:
    report = run_passes(decoder_state(llama()), Analyze(scores=SCORED, bound=1e-9)).ledger.report["analyze"]
    assert report["recommended"] is None
    assert report["equal_widths"] == []
    assert report["budgets"]


def test_what_was_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ScoreCache("scores.safetensors")
    model = llama()
    step = Analyze(scores=SCORED, bound=0.05)
    report = run_passes(decoder_state(model, scores=kept), step).ledger.report["analyze"]
    assert sum(name.startswith(CURVE) for name in kept.arrays) == len(report["groups"])
    assert report["pass"].startswith("wanda{")
    assert "by=search" in report["pass"]
    measured: list[int] = []
    distance = MeasuredAllocation.distance
    monkeypatch.setattr(
        MeasuredAllocation, "distance", lambda self, counts: measured.append(len(counts)) or distance(self, counts)
    )
    again = ScoreCache("scores.safetensors", kept.arrays, kept.record, loaded=True)
    target = f"target=params:{report['recommended']['share']}"
    run_passes(decoder_state(model, scores=again), report["pass"][:-1] + f",{target},moves=0}}")
    assert 1 not in measured, "of single groups"
    assert measured
    assert not again.changed


def test_measurements_of_another_text_are_refused() -> None:
    kept, step = ScoreCache("kept"), Analyze(scores="magnitude", bound=0.05)
    report = run_passes(decoder_state(llama(), scores=kept), step).ledger.report["analyze"]
    assert [read["count"] for read in kept.record["read"]] == [10]
    again = ScoreCache("kept", kept.arrays, kept.record, loaded=True)
    state = decoder_state(llama(), scores=again, calibration=RandomTokens(VOCABULARY - 1))
    with pytest.raises(RequestError, match="kept holds scores that were computed on another text"):
        run_passes(state, report["pass"][:-1] + ",target=params:0.8}")


def test_equal_widths_cost_what_the_search_measured() -> None:
    """In all layers, as the mask measures it when every group of a kind keeps as many units."""
    step = Analyze(scores=SCORED[:-1] + ",tolerance=0.05}", bound=0.05)
    report = run_passes(decoder_state(llama()), step).ledger.report["analyze"]
    (even, *others) = report["equal_widths"]
    assert even["layers"] is None
    assert min([even["measured"], *(one["measured"] for one in others)]) >= 0
    small = run_passes(decoder_state(llama()), SCORED[:-1] + f",target=params:{report['recommended']['share']},"
        "tolerance=0.05,heads=" + report["pass"].split("heads=")[1].split(",")[0] + "}")  # fmt: skip
    assert even["measured"] == pytest.approx(divergence(log_probabilities(llama()), small.subject.model), rel=1e-4)


def test_channels_of_a_convolutional_net_cost_what_the_cut_net_shows() -> None:
    net, batch = nets.build("depthwise"), nets.images(4)

    def state_of(module: nn.Module) -> State:
        return module_state(module, batch, losses=(lambda one: nets.quadratic(one, batch),))

    def loss(module: nn.Module) -> float:
        with torch.no_grad():
            return float(nets.quadratic(module, batch))

    scored = "taylor{channels=true}"
    report = run_passes(state_of(copy.deepcopy(net)), Analyze(scores=scored, bound=0.5)).ledger.report["analyze"]
    channels = [group for group in report["groups"] if group["kind"] == "channels"]
    assert channels
    assert (report["unit"], report["parts"]) == ("increase of the loss", [])
    for group in channels:
        at = len(group["counts"]) // 2
        small = state_of(copy.deepcopy(net))
        cut(small, small.subject.coupling, {group["name"]: best(group, group["counts"][at])})  # type: ignore[arg-type]
        now = loss(small.subject.model) - loss(net)
        assert group["losses"][at] >= now - 1e-6
        assert group["losses"][at] == pytest.approx(now, rel=1e-4) or group["losses"][at] == group["losses"][at + 1]


def test_curves_are_probed_at_a_few_counts() -> None:
    _, report, _ = analyzed()
    assert max(len(group["counts"]) for group in report["groups"]) == PROBES
    assert {group["losses"][-1] for group in report["groups"]} == {0}


def test_an_analysis_is_read_between_its_counts() -> None:
    group = {"units": 8, "counts": [2, 4, 8], "losses": [6.0, 2.0, 0.0], "layer": 3, "kept": 8}
    assert [loss_at(group, share) for share in (0.0, 0.25, 0.5, 0.625, 0.75, 0.9)] == [0.0, 1.0, 2.0, 4.0, 6.0, None]
    assert spared_layers([group, {**group, "layer": 1, "kept": 7}, {**group, "layer": 1}]) == [3]
    assert short_names(["a.b.0.c:width", "a.b.10:layer"]) == {"a.b.0.c:width": "0.c:width", "a.b.10:layer": "10:layer"}


def test_layers_that_cost_most_are_those_to_spare() -> None:
    def group(layer: int | None, half: float) -> dict[str, object]:
        return {"units": 8, "counts": [4, 8], "losses": [half, 0.0], "layer": layer, "kept": 4}

    losses = layer_losses(
        [group(0, 0.5), group(0, 0.5), group(2, 0.25), group(1, 0.1), group(3, 0.1), group(None, 9)], 0.5
    )
    assert losses == {0: 1.0, 1: 0.1, 2: 0.25, 3: 0.1}
    assert costly_layers(losses) == [0], "the median is 0.175, and layer 2 costs less than twice that"
    assert costly_layers({}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": "taylor{target=params:0.8}"}, r"target in 'taylor\{target=params:0.8\}' has no effect"),
        ({"scores": "taylor{ratio=0.5}"}, "ratio in"),
        ({"scores": "taylor{by=global}"}, "by in"),
        ({"scores": "taylor,wanda"}, "analyze takes one pass that scores units, not 'taylor,wanda'"),
        ({"scores": "drop"}, "analyze takes one pass that scores units, not 'drop'"),
        ({"bound": 0.0}, "bound=0 is not above 0"),
        ({"measure": "latency"}, "measure"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        Analyze(**options).check()
    assert caught.value.hint


def test_what_cannot_be_measured_is_refused() -> None:
    step = Analyze(scores="wanda{samples=4,length=8,heads=off,ffn=false,channels=true}")
    with pytest.raises(RequestError, match="a normalisation runs over its units"):
        run_passes(decoder_state(llama()), step)
    with pytest.raises(RequestError, match="needs calibration text"):
        run_passes(decoder_state(llama(), calibration=None), Analyze(scores="magnitude"))
