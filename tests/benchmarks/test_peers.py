"""Peers' own code on grouped queries: what is changed for it, on checkouts that stand for theirs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fxprune.benchmarks.known_models.cut import cut
from fxprune.benchmarks.known_models.runs import CHOICES, Run
from fxprune.benchmarks.peers.flap_code import FLAP, GROUPED, PACKAGE, NoAttention
from fxprune.benchmarks.peers.grouped_llm_pruner import Aligned, GroupedLLMPruner

WIDTH, HEADS, SHARED = 8, 3, 2
HIDDEN = WIDTH * HEADS * SHARED


@pytest.fixture
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=6, num_attention_heads=HEADS * SHARED,
        num_key_value_heads=HEADS, vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def no_peers() -> Iterator[None]:
    """What a test imports of a checkout is forgotten after it."""
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("LLMPruner", PACKAGE):
            del sys.modules[name]


def folded(group: Any, **_: Any) -> torch.Tensor:
    """Scores of kv channels as LLM-Pruner sums them up: the vector of queries is folded to the width of the keys."""
    query, key = (dep.target.module.weight for dep, _ in group)
    of_query = (query * query.grad).abs().sum(1)
    return (key * key.grad).abs().sum(1) + of_query.view(-1, len(key)).sum(0)


def test_kv_heads_are_scored_with_their_own_query_heads(model: Any) -> None:
    """The first kv head has the first query heads; weights and gradients are as they were afterwards."""
    attention = model.model.layers[0].self_attn
    for linear in (attention.q_proj, attention.k_proj, attention.o_proj):
        linear.weight.grad = torch.randn_like(linear.weight)
    attention.q_proj.weight.acc_grad = torch.rand_like(attention.q_proj.weight)
    before = [attention.q_proj.weight.grad.clone(), attention.o_proj.weight.detach().clone()]
    group = [
        (SimpleNamespace(target=SimpleNamespace(module=each)), []) for each in (attention.q_proj, attention.k_proj)
    ]

    query, key = attention.q_proj.weight, attention.k_proj.weight
    own = (query * query.grad).abs().sum(1).view(HEADS, SHARED * WIDTH).sum(1)
    expected = own + (key * key.grad).abs().sum(1).view(HEADS, WIDTH).sum(1)
    with torch.no_grad():
        found = Aligned(folded, [attention])(group).view(HEADS, WIDTH).sum(1)
        misaligned = folded(group).view(HEADS, WIDTH).sum(1)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert not torch.allclose(misaligned, expected, rtol=1e-2)
    assert torch.equal(attention.q_proj.weight.grad, before[0])
    assert torch.equal(attention.o_proj.weight, before[1])
    other = model.model.layers[1].self_attn
    with torch.no_grad():
        assert torch.equal(Aligned(folded, [other])(group), folded(group))


LLM_PRUNER = """
class MetaPruner:
    def __init__(self, model, example, *, importance, ch_sparsity, consecutive_groups, root_instances, **options):
        self.model, self.importance, self.ratio, self.roots = model, importance, ch_sparsity, root_instances
        self.groups = consecutive_groups

    def step(self):
        for root in self.roots:
            assert root.weight.grad is not None
            width = self.groups.get(root, 1)
            assert root in self.groups or root.out_features == 96
            gone = (root.out_features - int(root.out_features * (1 - self.ratio))) // width * width
            SEEN.append((root.out_features, gone))

SEEN = []
pruner = type("pruner", (), {"MetaPruner": MetaPruner})
"""


@pytest.mark.usefixtures("no_peers")
def test_llm_pruner_is_called_as_its_script_does(model: Any, tmp_path: Path) -> None:
    """Roots are the keys and the gates of the layers, with gradients, and the ratio that keeps the share."""
    package = tmp_path / "LLMPruner"
    for folder in (package, package / "pruner"):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (package / "torch_pruning.py").write_text(LLM_PRUNER)
    (package / "pruner" / "hf_llama_pruner.py").write_text(
        "hf_rmsnorm_pruner = None\ndef TaylorImportance(**options):\n    return options\n"
    )
    windows = torch.randint(0, 64, (4, 16))
    peer = GroupedLLMPruner(tmp_path, layers=(1, 5))
    peer.cut_to(model, windows, "element1", 0.8, corrected=True)
    seen = sys.modules["LLMPruner.torch_pruning"].SEEN
    assert [width for width, _ in seen] == [HEADS * WIDTH] * 4 + [96] * 4
    layer, whole = model.model.layers[0], sum(p.numel() for p in model.parameters())
    per_head = sum(p.numel() for p in layer.self_attn.parameters()) / HEADS
    gone = 4 * (seen[0][1] / WIDTH * per_head + seen[4][1] * 3 * HIDDEN)
    assert 1 - gone / whole == pytest.approx(0.8, abs=0.005)
    assert model.config.use_cache
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    with pytest.raises(SystemExit, match=r"not 0\.1"):
        peer.ratio(model, 0.1)


PRUNE = """
import torch
from .layerwrapper import start
from .data import get_loaders

def prune_flap(args, model, tokenizer, device):
    batches, _ = get_loaders("wikitext2", nsamples=args.nsamples)
    assert [batch[0].shape for batch in batches] == [(1, model.seqlen)] * args.nsamples
    layers = model.model.layers
    hidden, places = model.model.embed_tokens(batches[0][0]), torch.arange(model.seqlen)[None]
    assert layers[0](hidden, attention_mask=None, position_ids=places).shape == hidden.shape
    assert torch.zeros(len(layers), 48).reshape(len(layers), -1, 128).shape == (6, 3, 16)
    assert start.type(torch.half).dtype == torch.float32
    weights = torch.zeros(1)
    weights[0] = 512.0 / 3
    heads = 3 * weights[0]
    gone = args.pruning_ratio * 6 * (heads + 96) - heads
    mlp_mask = torch.arange(96) >= int(gone / 6)
    for at, layer in enumerate(layers):
        attn_mask = torch.tensor([at > 0] * 3).repeat_interleave(128)
        attn_mask = attn_mask.to(device)
        layer.self_attn.q_proj.weight.data = layer.self_attn.q_proj.weight.data[torch.where(attn_mask)[0]]
        layer.self_attn.k_proj.weight.data = layer.self_attn.k_proj.weight.data[torch.where(attn_mask)[0]]
        layer.self_attn.v_proj.weight.data = layer.self_attn.v_proj.weight.data[torch.where(attn_mask)[0]]
        layer.self_attn.o_proj.weight.data = layer.self_attn.o_proj.weight.data[:, torch.where(attn_mask)[0]]
        layer.self_attn.o_proj.bias.data += 1
        layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data[torch.where(mlp_mask)[0]]
        layer.mlp.gate_proj.weight.data = layer.mlp.gate_proj.weight.data[torch.where(mlp_mask)[0]]
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data[:, torch.where(mlp_mask)[0]]
"""


def flap(where: Path, prune: str = PRUNE) -> FLAP:
    (where / "lib").mkdir()
    (where / "lib" / "layerwrapper.py").write_text("import torch\nstart = torch.zeros(3)\n")
    (where / "lib" / "prune.py").write_text(prune)
    return FLAP(where)


@pytest.mark.usefixtures("no_peers")
@pytest.mark.parametrize("compensated", [True, False])
def test_flap_cuts_kv_heads_with_their_query_heads(model: Any, tmp_path: Path, compensated: bool) -> None:
    """To the share that is asked for; a layer without heads still runs, token by token as at once."""
    whole = sum(p.numel() for p in model.parameters())
    windows = torch.randint(0, 64, (4, 16))
    flap(tmp_path).cut_to(model, windows, 0.7, compensated=compensated)
    assert sum(p.numel() for p in model.parameters()) / whole == pytest.approx(0.7, abs=0.005)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    assert isinstance(first, NoAttention)
    assert (second.q_proj.weight.shape[0], second.k_proj.weight.shape[0]) == (HIDDEN, HEADS * WIDTH)
    assert (second.o_proj.bias is not None) == (first.bias is not None) == compensated
    with torch.no_grad():
        at_once = model(windows[:1]).logits
        before = model(windows[:1, :10], use_cache=True)
        after = model(windows[:1, 10:], past_key_values=before.past_key_values).logits
        other = copy.deepcopy(model)
        other.model.layers[0].self_attn.bias = torch.nn.Parameter(torch.full((HIDDEN,), 5.0))
        assert not torch.allclose(other(windows[:1]).logits, at_once, atol=1e-3)
    assert torch.allclose(after, at_once[:, 10:], atol=1e-4)


@pytest.mark.usefixtures("no_peers")
def test_other_code_is_refused(model: Any, tmp_path: Path) -> None:
    windows = torch.randint(0, 64, (4, 16))
    old = next(iter(GROUPED))
    with pytest.raises(SystemExit, match="take commit 9bbad71"):
        flap(tmp_path, PRUNE.replace(old, "repeat_interleave(64)")).cut_to(model, windows, 0.7, compensated=True)
    (tmp_path / "lib" / "prune.py").write_text(PRUNE.replace("args.pruning_ratio", "0"))
    with pytest.raises(SystemExit, match=r"keeps .* not 0\.7"):
        FLAP(tmp_path).cut_to(model, windows, 0.7, compensated=True)


@pytest.mark.parametrize("name", ["LLM-Pruner's code", "FLAP's code"])
def test_a_missing_checkout_is_said(name: str, tmp_path: Path) -> None:
    class Text:
        def windows(self, length: int, count: int, seed: int) -> torch.Tensor:
            return torch.zeros(count, length, dtype=torch.int64) + seed

    run = Run("m", f"{name}: {next(iter(CHOICES[name]))}", 0.8)
    with pytest.raises(SystemExit, match="give --code"):
        cut(run, None, Text(), None)
    with pytest.raises(SystemExit, match=r"give a checkout of github\.com"):
        cut(run, None, Text(), tmp_path)
