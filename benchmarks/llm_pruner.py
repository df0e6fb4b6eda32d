"""Run LLM-Pruner's own code on a Llama (arXiv 2305.11627), to compare it with fxprune.

It is called as its ``hf_prune.py`` does in block-wise mode: heads and inner widths of some layers, the same share of
each, scores summed within a group. Needs a checkout of https://github.com/horseee/LLM-Pruner, which is not a package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CRITERIA: Mapping[str, str | None] = {
    "L2": None,
    "vector": "vectorize",
    "element1": "param_first",
    "element2": "param_mix",
    "second": "param_second",
}
"""Name in the paper -> value of ``--taylor``; None for a criterion that uses weights only."""

LAYERS = (1, 7)
"""The first layer that is pruned, and the one after the last."""

AT_ONCE = 160
"""Number of windows whose activations are in memory at a time; the mean gradient does not depend on it."""

SQUARED = ("param_mix", "param_second")


@dataclass(frozen=True)
class LLMPruner:
    """A checkout of LLM-Pruner.

    Attributes:
        checkout: the directory with the package ``LLMPruner``.
    """

    checkout: Path

    def __post_init__(self) -> None:
        if not (self.checkout / "LLMPruner").is_dir():
            raise SystemExit(f"{self.checkout} has no LLMPruner: give a checkout of github.com/horseee/LLM-Pruner")

    def modules(self) -> tuple[Any, Any]:
        """Its Torch-Pruning, and its scores for a Llama."""
        if str(self.checkout) not in sys.path:
            sys.path.insert(0, str(self.checkout))
        names = ("torch_pruning", "pruner.hf_llama_pruner")
        pruning, scores = (importlib.import_module(f"LLMPruner.{name}") for name in names)
        return pruning, scores

    def cut(self, model: Any, windows: Tensor, criterion: str, ratio: float) -> None:
        """Prune a Llama in place.

        Args:
            model: a Llama of transformers, in float32.
            windows: ``[N, L]`` int64, for the gradients; its code uses one batch, here at most AT_ONCE at a time.
            criterion: one of CRITERIA.
            ratio: the share of the heads and of the inner width to remove in each of LAYERS.
        """
        model.set_attn_implementation("eager")
        model.config.use_cache = False  # its graph is read off the outputs, of which all must be tensors
        model.requires_grad_(True)
        self.step(
            model, windows, criterion, ratio, importance=self.importance(criterion), layers=LAYERS, projection="q_proj"
        )
        model.zero_grad()

    def importance(self, criterion: str) -> Any:
        """Its scores by one of CRITERIA."""
        scores, taylor = self.modules()[1], CRITERIA[criterion]
        if taylor is None:
            return scores.MagnitudeImportance(p=2)
        return scores.TaylorImportance(group_reduction="sum", taylor=taylor)

    def step(
        self, model: Any, windows: Tensor, criterion: str, ratio: float, *,
        importance: Any, layers: tuple[int, int], projection: str, at_once: int = AT_ONCE,
    ) -> None:  # fmt: skip
        """One step of its pruner.

        Args:
            model, windows, criterion, ratio: as in :meth:`cut`.
            importance: its scores, or what stands for them.
            layers: the first layer that is pruned, and the one after the last.
            projection: the linear map by whose rows heads are found.
            at_once: number of windows whose activations are in memory at a time.
        """
        pruning, scores = self.modules()
        blocks, taylor = list(model.model.layers), CRITERIA[criterion]
        between = slice(*layers)
        heads = [getattr(block.self_attn, projection) for block in blocks]
        pruner = pruning.pruner.MetaPruner(
            model,
            windows[:2, :8],
            importance=importance,
            global_pruning=False,
            iterative_steps=1,
            ch_sparsity=ratio,
            ignored_layers=[],
            channel_groups={},
            consecutive_groups={head: block.self_attn.head_dim for head, block in zip(heads, blocks, strict=True)},
            customized_pruners={type(model.model.norm): scores.hf_rmsnorm_pruner},
            root_module_types=None,
            root_instances=[*heads[between], *(block.mlp.gate_proj for block in blocks[between])],
        )
        model.zero_grad()
        if taylor is not None:
            differentiate(model, windows, squares=taylor in SQUARED, at_once=at_once)
        pruner.step()


def differentiate(model: Any, windows: Tensor, *, squares: bool, at_once: int = AT_ONCE) -> None:
    """Set gradients of all parameters: of the mean loss as ``grad``, the mean of their squares as ``acc_grad``."""
    for window in windows.split(1) if squares else ():
        model(window, labels=window).loss.backward()
        for parameter in model.parameters():
            square = parameter.grad.square() / len(windows)
            parameter.acc_grad = getattr(parameter, "acc_grad", 0) + square
        model.zero_grad()
    for piece in windows.split(at_once):
        (model(piece, labels=piece).loss * (len(piece) / len(windows))).backward()
