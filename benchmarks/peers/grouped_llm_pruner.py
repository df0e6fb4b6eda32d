"""Run LLM-Pruner's own code on a Llama with grouped queries, as its ``llama3.py`` does (arXiv 2305.11627).

Groups begin at ``k_proj``, so that a kv head goes with the query heads that read it. Its scores fold the vector of the
query heads with ``view(query heads of a kv head, kv width).sum(0)``: of n kv heads, j is scored with the query heads j,
j + n, j + 2n, but removed with consecutive ones. :class:`Aligned` corrects this without a change of its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxprune.benchmarks.llm_pruner import LLMPruner

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = (4, 27)
"""The first layer that is pruned, and the one after the last, of 30. Its recipe is 4:30 of 32 for Llama 3, 4:18 of 22
for TinyLlama. With 4:28 of 30, no ratio keeps 0.8 of SmolLM2: it cuts one of three kv heads in all of these layers at
once, and jumps from 0.84 to 0.79."""

AT_ONCE = 8
"""Windows whose activations are in memory at a time; the mean gradient does not depend on it."""

NEAR = 0.005
"""How far the kept share may be from the one that is asked for."""


@dataclass(frozen=True)
class Aligned:
    """An importance of LLM-Pruner that scores every kv head with the query heads that are removed with it.

    While it scores, the rows of ``q_proj`` and the columns of ``o_proj`` are in an order in which its fold adds up the
    consecutive query heads of a kv head.

    Attributes:
        importance: of LLM-Pruner.
        attention: modules with ``q_proj``, ``k_proj``, ``o_proj`` and ``head_dim``.
    """

    importance: Any
    attention: Sequence[Any]

    def __call__(self, group: Any, **options: Any) -> Any:
        roots = {dep.target.module for dep, _ in group}
        for attention in self.attention:
            if attention.k_proj in roots:
                with _folded(attention):
                    return self.importance(group, **options)
        return self.importance(group, **options)


@contextmanager
def _folded(attention: Any) -> Iterator[None]:
    """Query heads in the order 0, n, 2n, ... for n heads of each kv head: the first of every kv head comes first."""
    import torch

    width, heads = attention.head_dim, attention.k_proj.out_features // attention.head_dim
    places = torch.arange(attention.q_proj.out_features).view(heads, -1, width).transpose(0, 1).flatten()
    back = places.argsort()
    for order in (places, back):
        for weight, dim in ((attention.q_proj.weight, 0), (attention.o_proj.weight, 1)):
            for tensor in (weight.data, weight.grad, getattr(weight, "acc_grad", None)):
                if tensor is not None:
                    tensor.copy_(tensor.index_select(dim, order))
        if order is places:
            yield


@dataclass(frozen=True)
class GroupedLLMPruner(LLMPruner):
    """A checkout of LLM-Pruner, for grouped queries.

    Attributes:
        layers: the first layer that is pruned, and the one after the last.
    """

    layers: tuple[int, int] = LAYERS

    def cut_to(self, model: Any, windows: Tensor, criterion: str, kept: float, *, corrected: bool) -> float:
        """Prune a Llama in place to a share of its parameters; returns the ratio that its code was given.

        Args:
            model: a Llama of transformers, in float32.
            windows: ``[N, L]`` int64, for the gradients.
            criterion: one of CRITERIA.
            kept: share of all parameters, embeddings included.
            corrected: whether kv heads are scored with their own query heads.
        """
        ratio = self.ratio(model, kept)
        importance = self.importance(criterion)
        if corrected:
            importance = Aligned(importance, [layer.self_attn for layer in model.model.layers[slice(*self.layers)]])
        with _as_its_code_expects(model):
            self.step(
                model, windows, criterion, ratio,
                importance=importance, layers=self.layers, projection="k_proj", at_once=AT_ONCE,
            )  # fmt: skip
        return ratio

    def ratio(self, model: Any, kept: float) -> float:
        """The ratio with which its code keeps a share of all parameters; it cuts equal widths in all layers.

        Raises:
            SystemExit: where no ratio comes near.
        """
        whole = sum(parameter.numel() for parameter in model.parameters())
        layer = model.model.layers[self.layers[0]]
        count, inner = self.layers[1] - self.layers[0], layer.mlp.gate_proj.out_features
        width, keys = layer.self_attn.head_dim, layer.self_attn.k_proj.out_features
        per_head = sum(p.numel() for p in layer.self_attn.parameters()) // (keys // width)
        per_channel = sum(p.numel() for p in layer.mlp.parameters()) // inner

        def share(ratio: float) -> float:
            heads = (keys - int(keys * (1 - ratio))) // width
            return 1 - count * (heads * per_head + (inner - int(inner * (1 - ratio))) * per_channel) / whole

        # Halves, so that rounding down never depends on the last digit.
        found = min(((at + 0.5) / inner for at in range(inner - 1)), key=lambda ratio: abs(share(ratio) - kept))
        if abs(share(found) - kept) > NEAR:
            raise SystemExit(f"LLM-Pruner's layers {self.layers} keep {share(found):.4f} or so, not {kept:g}")
        return found


@contextmanager
def _as_its_code_expects(model: Any) -> Iterator[None]:
    """Attention whose operations autograd can follow, and only tensors as outputs; gradients are gone afterwards."""
    was, cached = model.config._attn_implementation, model.config.use_cache
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    model.requires_grad_(True)
    yield
    model.zero_grad()
    model.requires_grad_(False)
    for parameter in model.parameters():
        if hasattr(parameter, "acc_grad"):
            del parameter.acc_grad
    model.set_attn_implementation(was)
    model.config.use_cache = cached
