"""compensate: the closed form is the optimum, what is not determined stays, and sequential refitting helps."""

from __future__ import annotations

import copy
import re
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fxprune.demo import MODEL_DIR, text
from fxprune.ir import FxpruneError, RequestError
from fxprune.passes.calibrate.least_squares import Moments, ObsSolver, refit
from fxprune.passes.model.measure import perplexity
from fxprune.passes.recover.compensate import Compensate
from fxprune.passes.score.magnitude import Magnitude
from fxprune.passes.score.obs import Obs
from fxprune.passes.score.random import Random
from fxprune.passes.state import State
from fxprune.tracer.texts.corpus import from_string

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...nets import Plain
from ...states import decoder_state, module_state, run_passes

VOCAB = 53
TEXT = RandomTokens(VOCAB)


def make(kind: str = "llama") -> Any:
    shared = special_tokens(VOCAB)
    config: Any = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=64, **shared)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            **shared,
        )  # fmt: skip
    return random_decoder(config, 0.3)


def observe(model: Any, path: str, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``[T, k]`` and outputs ``[T, n]`` of one module, by a plain hook."""
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda _m, args, out: seen.extend((args[0].flatten(0, -2), out.flatten(0, -2)))
    )
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    hook.remove()
    return seen[0], seen[1]


def fitted(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, damping: float) -> torch.Tensor:
    """The refit of a weight whose inputs are ``x`` and whose outputs should be ``y``."""
    found = Moments.empty(x.shape[1])
    for part, wanted in zip(x.split(7), y.split(7), strict=True):
        found.add(part, wanted - part @ weight.to(part).T)
    return refit(found, weight, damping)


def test_without_damping_it_is_the_least_squares_optimum() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    expected = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T
    found = fitted(x, y, torch.zeros(5, 9), damping=0.0)
    assert np.abs(found.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()


def test_permuting_the_inputs_permutes_the_answer() -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = (torch.randn(n, 9, generator=generator, dtype=torch.float64) for n in (40, 5))
    y = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    plain = fitted(x, y, w, 0.05)
    assert torch.allclose(fitted(x[:, order], y, w[:, order], 0.05), plain[:, order], rtol=0, atol=1e-12)


def test_damping_keeps_what_the_data_leave_open() -> None:
    x = torch.zeros(8, 4, dtype=torch.float64)
    x[:, 0] = 1
    w = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    found = fitted(x, x @ w.T + 3, w, 0.01)
    assert torch.allclose(found[:, 1:], w[:, 1:])
    assert torch.allclose(found[:, 0], w[:, 0] + 3, atol=0.01)


@pytest.mark.parametrize("passes", [[Random(ratio=0.5), Compensate(samples=8, length=16)], [Obs(samples=8, length=16)]])
def test_statistics_of_one_map_are_in_memory_at_a_time(passes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    references: list[weakref.ref[Any]] = []
    most = 0

    def watched(kind: Any, maker: str) -> None:
        make_one = getattr(kind, maker)

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal most
            found = make_one(*args, **kwargs)
            references.append(weakref.ref(found))
            most = max(most, sum(reference() is not None for reference in references))
            return found

        monkeypatch.setattr(kind, maker, counted)

    watched(Moments, "empty")
    watched(ObsSolver, "of")
    run_passes(decoder_state(make()), *passes)
    solvers = isinstance(passes[0], Obs)
    # Four maps; a surgeon is made while the moments it is made of are there.
    assert (len(references), most) == ((8, 2) if solvers else (4, 1))


ADDED_TO = {
    "llama": {
        "model.layers.0.self_attn.o_proj": "model.layers.0.post_attention_layernorm",
        "model.layers.0.mlp.down_proj": "model.layers.1.input_layernorm",
        "model.layers.1.self_attn.o_proj": "model.layers.1.post_attention_layernorm",
        "model.layers.1.mlp.down_proj": "model.norm",
    },
    "gpt2": {
        "transformer.h.0.attn.c_proj": "transformer.h.0.ln_2", "transformer.h.0.mlp.c_proj": "transformer.h.1.ln_1",
        "transformer.h.1.attn.c_proj": "transformer.h.1.ln_2", "transformer.h.1.mlp.c_proj": "transformer.ln_f",
    },
}  # fmt: skip
"""A map into the residual stream -> the module that reads the sum."""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_every_refitted_map_is_the_optimum_given_all_before_it(kind: str, channels: bool, residual: bool) -> None:
    """Weights and bias together: no linear map of the pruned inputs comes closer to the dense outputs, or stream."""
    model = make(kind)
    # What a layer norm with a bias puts out lies in a plane: with a constant beside it the moments are singular.
    damping = 1e-11 if kind == "gpt2" and channels else 0.0
    refit_all = Compensate(samples=12, length=16, damping=damping, residual=residual)
    state = run_passes(decoder_state(model), Random(ratio=0.5, channels=channels), refit_all)
    assert state.ledger.plan is not None
    assert state.before.same_layers is not None
    tokens = TEXT.windows(16, 12)
    refitted = state.ledger.report["compensate"]["refitted"]
    assert len(refitted) >= 4
    for tensor in refitted:
        path = tensor.removesuffix(".weight")
        x, y = observe(model, path, tokens)
        _, dense = observe(state.before.same_layers, path, tokens)
        kept = state.ledger.plan.slices.get((tensor, 1 if kind == "gpt2" else 0))
        dense = dense if kept is None else dense[:, kept]
        if residual and path in ADDED_TO[kind]:
            before, after = (observe(m, ADDED_TO[kind][path], tokens)[0] for m in (state.before.same_layers, model))
            dense = (before if kept is None else before[:, kept]) - (after - y)
        ones = np.ones((len(x), 1)) if model.get_submodule(path).bias is not None else np.ones((len(x), 0))
        design = np.concatenate([x.numpy(), ones], axis=1)
        best = design @ np.linalg.lstsq(design, dense.numpy(), rcond=None)[0]
        reached, possible = (float(((a - dense.numpy()) ** 2).sum()) for a in (y.numpy(), best))
        assert reached == pytest.approx(possible, rel=1e-6, abs=1e-12), tensor


def test_a_ratio_of_zero_changes_not_a_bit() -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run_passes(decoder_state(model), Magnitude(ratio=0.0), Compensate(samples=2, length=8))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_bias_makes_the_mean_output_the_dense_one() -> None:
    model = make("gpt2")
    state = run_passes(
        decoder_state(model), Random(ratio=0.5, heads="off"), Compensate(method="bias", samples=6, length=16)
    )
    assert state.before.same_layers is not None
    tokens = TEXT.windows(16, 6)
    refitted = state.ledger.report["compensate"]["refitted"]
    assert refitted
    for path in refitted:
        module = path.removesuffix(".weight")
        assert torch.allclose(
            observe(model, module, tokens)[1].mean(0), observe(state.before.same_layers, module, tokens)[1].mean(0)
        )


def one_shot(model: Any, original: Any, state: State, tokens: torch.Tensor) -> None:
    """Every map fitted to the dense model's own inputs, as if nothing before it had changed."""
    assert state.ledger.plan is not None
    for tensor, dim in state.ledger.consumers:
        path = tensor.removesuffix(".weight")
        x, y = observe(original, path, tokens)
        kept = state.ledger.plan.slices[tensor, dim]
        weight = model.get_parameter(tensor)
        with torch.no_grad():
            weight.copy_(fitted(x[:, kept], y, weight.detach(), 0.01))


def test_it_helps_a_trained_model_and_one_map_after_the_other_is_better_than_all_at_once() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    held_out = from_string("evaluation", text("evaluation"), tokenizer).windows(128, 40)
    recovery = from_string("recovery", text("recovery"), tokenizer)
    values = {}
    for way in ("cut", "one-shot", "sequential"):
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
        original = copy.deepcopy(model)
        state = decoder_state(model, calibration=recovery)
        run_passes(state, Magnitude(ratio=0.4), *([Compensate(samples=48)] if way == "sequential" else []))
        if way == "one-shot":
            one_shot(model, original, state, recovery.windows(128, 48))
        values[way] = perplexity(model, held_out).value
    assert values["sequential"] < values["one-shot"] < values["cut"]


def mixture() -> Any:
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, **special_tokens(VOCAB),
    )  # fmt: skip
    model = random_decoder(config, 0.3)
    model.set_experts_implementation("batched_mm")
    return model


def test_every_expert_is_refitted_on_the_tokens_that_it_is_given() -> None:
    """Given what the pruned model routes to it, no down projection comes closer to the dense expert."""
    model = mixture()
    state = run_passes(
        decoder_state(model), Random(ratio=0.5, heads="off"), Compensate(samples=16, length=16, damping=0.0)
    )
    assert state.before.same_layers is not None
    tensor = "model.layers.1.mlp.experts.down_proj"
    assert tensor in state.ledger.report["compensate"]["refitted"]
    assert state.ledger.report["compensate"]["left"] == []
    assert model.config._experts_implementation == "batched_mm"
    entered: list[Any] = []
    experts, dense = (m.get_submodule("model.layers.1.mlp.experts") for m in (model, state.before.same_layers))
    experts.register_forward_pre_hook(lambda _m, args: entered.append(args))
    with torch.no_grad():
        model(input_ids=TEXT.windows(16, 16), use_cache=False)
    hidden, chosen, _ = entered[0]

    def inner(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = (rows @ module.gate_up_proj[expert].T).detach().chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    for expert in range(4):
        rows = hidden[(chosen == expert).any(1)]
        x, y = inner(experts, expert, rows), inner(dense, expert, rows) @ dense.down_proj[expert].T.detach()
        best = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T
        np.testing.assert_allclose(experts.down_proj[expert].detach().numpy(), best, rtol=1e-5, atol=1e-9)


def test_convolutions_and_what_follows_a_flatten_are_refitted() -> None:
    torch.manual_seed(0)
    model = Plain().double().eval()
    x = torch.randn(40, 3, 16, 16, dtype=torch.float64)
    state = module_state(model, x, losses=[lambda m: m(x[:20]), lambda m: m(x[20:])])
    dense = copy.deepcopy(model)
    run_passes(state, Random(ratio=0.5, channels=True), Compensate(damping=1e-9))
    refitted = state.ledger.report["compensate"]["refitted"]
    assert refitted == ["features.3.0.weight", "classifier.0.weight", "classifier.3.weight"]
    with torch.no_grad():
        conv = model.features[3][0]
        got = conv(model.features[:3](x)).movedim(1, -1)
        rows = state.ledger.plan.slices["features.3.0.weight", 0]  # type: ignore[union-attr]
        wanted = dense.features[:3](x)
        wanted = dense.features[3][0](wanted).movedim(1, -1)[..., rows]
        patches = torch.nn.functional.unfold(model.features[:3](x), 3, padding=1).mT.flatten(0, 1)
        design = torch.cat([patches, patches.new_ones(len(patches), 1)], 1).numpy()
    target = wanted.flatten(0, 2).numpy()
    best = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    assert float(((got.flatten(0, 2).numpy() - target) ** 2).sum()) == pytest.approx(
        float(((best - target) ** 2).sum()), rel=1e-6
    )


def test_padding_has_no_say() -> None:
    """Windows padded on the right, with anything, give the weights that they give unpadded."""
    found = []
    for fill in (None, 3, 9):
        model = make()
        state = decoder_state(model)
        ids = TEXT.windows(12, 6)
        mask = torch.ones_like(ids)
        if fill is not None:
            ids = torch.cat([ids, torch.full((6, 5), fill)], 1)
            mask = torch.cat([mask, torch.zeros(6, 5, dtype=mask.dtype)], 1)
        state.data.losses = [lambda m, ids=ids, at=mask: m(input_ids=ids, attention_mask=at, use_cache=False).logits]
        run_passes(state, Random(ratio=0.5), Compensate())
        found.append(model.model.layers[1].mlp.down_proj.weight.detach().clone())
    assert torch.allclose(found[1], found[0], rtol=0, atol=1e-10)
    assert torch.equal(found[1], found[2])


def test_a_tied_output_layer_is_left_alone_and_said() -> None:
    model = make("gpt2")
    state = run_passes(decoder_state(model), Random(ratio=0.5, channels=True), Compensate(samples=8, length=16))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" not in state.ledger.report["compensate"]["refitted"]


def test_experts_without_tokens_stay_and_are_said() -> None:
    state = run_passes(decoder_state(mixture()), Random(ratio=0.5, heads="off"), Compensate(samples=1, length=1))
    notes = [note for note in state.ledger.report["compensate"]["notes"] if "layers.1.mlp" in note]
    assert sum(bool(re.search(r"no token reached experts \[\d, \d\]; they stay as they are", n)) for n in notes) == 1
    assert sum("1 calibration inputs for 8 unknowns of an output, 7 too few" in note for note in notes) == 2


def with_original(kind: str = "llama") -> tuple[State, Any]:
    """A model that was pruned, and the one from which it was."""
    state = decoder_state(make(kind))
    run_passes(state, Random(heads="off"), Compensate(samples=2, length=8))
    return state, state.before.same_layers


def broken(kind: str = "llama") -> State:
    state, original = with_original(kind)
    last = original.transformer.h[0].mlp.c_proj if kind == "gpt2" else original.model.layers[0].mlp.down_proj
    last.weight.data.fill_(float("nan"))
    return state


def otherwise() -> State:
    """The original does not run a part that the pruned model runs."""
    state, original = with_original()
    original.model.layers[0].mlp.forward = lambda x: x
    return state


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: run_passes(decoder_state(make()), Compensate()), "no pruning pass before it"),
        (lambda: Compensate(damping=-1.0).check(), "compensate: damping=-1 is below 0"),
        (lambda: Compensate(samples=0).check(), "compensate: samples=0 is below 1"),
        (
            lambda: run_passes(decoder_state(make()), Random(), Compensate(method="bias", samples=2)),
            "has no bias to correct",
        ),
        (
            lambda: run_passes(decoder_state(make()), Random(), Compensate(damping=0, samples=1, length=4)),
            "4 calibration inputs",
        ),
        (lambda: Compensate(samples=2, length=8).run(broken()), "are not finite"),
        (lambda: Compensate(method="bias", samples=2, length=8).run(broken("gpt2")), "the mean outputs are not finite"),
        (
            lambda: Compensate(samples=2, length=8).run(otherwise()),
            r"the dense and the pruned model use .*\.down_proj\.weight differently on the same text",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(attempt: Any, message: str) -> None:
    with pytest.raises(FxpruneError, match=message) as caught:
        attempt()
    assert caught.value.hint


def test_too_little_text_is_said() -> None:
    state = run_passes(decoder_state(make()), Random(), Compensate(samples=1, length=4))
    assert "14 too few; damping holds the rest at its value; more" in state.ledger.report["compensate"]["notes"][0]


def test_without_text_it_is_refused() -> None:
    state = decoder_state(make(), calibration=None)
    with pytest.raises(RequestError, match="compensate needs calibration text"):
        run_passes(state, Random(), Compensate())


def test_experts_that_stay_make_up_for_those_that_went() -> None:
    """The mixture comes closer to the dense one on text that the fit has not seen, also where channels went too."""
    for cut in ("reap{ratio=0.25,samples=16,length=16}", "reap{ratio=0.25},fisher{heads=off,ratio=0.34}"):
        dense, ids = mixture(), TEXT.windows(16, 60)[40:]
        errors = []
        for more in ("", ",compensate{samples=32,length=16,damping=0.0001}"):
            state = run_passes(decoder_state(mixture()), cut + more)
            with torch.no_grad():
                found, wanted = (m(input_ids=ids, use_cache=False).logits for m in (state.subject.model, dense))
            errors.append(float((found - wanted).square().mean()))
        refitted = state.ledger.report["compensate"]["refitted"]
        assert refitted == [f"model.layers.{layer}.mlp.experts.down_proj" for layer in range(2)]
        assert errors[1] < 0.9 * errors[0]
