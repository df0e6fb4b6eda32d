"""flap{by=global} keeps in every layer what FLAP's adaptive structure search keeps, computed here as its code does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from ...corpora import RandomTokens
from ...decoders import random_decoder, special_tokens
from ...states import decoder_state, run_passes

VOCAB = 37
TEXT = RandomTokens(VOCAB)
WIDTH, INNER, HEADS, LAYERS = 32, 96, 8, 4


def varied() -> torch.nn.Module:
    """A Llama whose layers differ in size, so that a threshold cuts them differently."""
    model = random_decoder(
        transformers.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, **special_tokens(VOCAB),
        ),
        0.3,
    )  # fmt: skip
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= torch.rand(INNER) ** 2
            layer.self_attn.o_proj.weight *= torch.rand(WIDTH)
    return model


def metrics(model: torch.nn.Module, tokens: torch.Tensor, path: str) -> np.ndarray:
    """The standardised score of every column of a weight."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].double()))
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    handle.remove()
    found = seen[0].flatten(0, 1).var(0, correction=0) * module.weight.detach().double().square().sum(0)
    found = found.square() if path.endswith("o_proj") else found
    return ((found - found.mean()) / found.std()).numpy()


def kept_by_flap(model: torch.nn.Module, tokens: torch.Tensor, kept: float) -> tuple[list[int], list[int]]:
    """Heads and inner channels that each layer keeps: one threshold on all scores, where the weights of the units above
    it, a head counting as many channels as it costs, come closest to the share that is kept."""
    layers = range(LAYERS)
    heads = [
        metrics(model, tokens, f"model.layers.{i}.self_attn.o_proj").reshape(HEADS, -1).mean(1) for i in layers
    ]  # fmt: skip
    inner = [metrics(model, tokens, f"model.layers.{i}.mlp.down_proj") for i in layers]
    scores = np.concatenate([*heads, *inner])
    weights = np.ones(len(scores))
    weights[: HEADS * LAYERS] = 4 * (WIDTH // HEADS) / 3
    order = np.argsort(-scores)
    at = np.argmin(np.abs(weights[order].cumsum() - kept * weights.sum()))
    least = scores[order[at]]
    return [int((part >= least).sum()) for part in heads], [int((part >= least).sum()) for part in inner]


@pytest.mark.parametrize("removed", [0.2, 0.4])
def test_the_layers_keep_what_flap_keeps(removed: float) -> None:
    model = varied()
    prunable = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    whole = sum(p.numel() for p in model.parameters())
    heads, inner = kept_by_flap(model, TEXT.windows(16, 12), 1 - removed)
    assert len(set(inner)) > 1, "the layers must differ, or a uniform cut would pass too"
    state = decoder_state(model, calibration=TEXT)
    target = 1 - removed * prunable / whole
    run_passes(state, f"flap{{target=params:{target:.6f},by=global,samples=12,length=16,tolerance=0.02}}")
    layers = state.subject.model.model.layers
    found = [len(layer.self_attn.q_proj.weight) // (WIDTH // HEADS) for layer in layers]
    assert found == heads
    widths = [len(layer.mlp.up_proj.weight) for layer in layers]
    assert np.abs(np.subtract(widths, inner)).max() <= 1, (widths, inner)
