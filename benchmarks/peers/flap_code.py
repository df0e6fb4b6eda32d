"""Run FLAP's own code on a Llama of transformers (arXiv 2312.11983): WIFV scores, AL-AM allocation, its compensation.

Needs a checkout of https://github.com/CASIA-IVA-Lab/FLAP, which is not a package. ``lib/prune.py`` is read as text, and
GROUPED lists what is replaced in it. FLAP knows heads of 128 columns with keys of their own; here its head is a kv head
with all query heads that read it: one mask for them, the mean of the standardised scores of their columns, and their
number of parameters as its weight. The rest is its code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "flap_lib"
FILES = ("layerwrapper", "prune")

GROUPED = {
    "repeat_interleave(128)": "repeat_interleave(WIDTH)",
    "reshape(len(layers), -1, 128)": "reshape(len(layers), -1, WIDTH)",
    "= 512.0 / 3": "= COST / 3",
    "self_attn.k_proj.weight.data[torch.where(attn_mask)[0]]": "self_attn.k_proj.weight.data"
    "[torch.where(attn_mask[::SHARED])[0]]",
    "self_attn.v_proj.weight.data[torch.where(attn_mask)[0]]": "self_attn.v_proj.weight.data"
    "[torch.where(attn_mask[::SHARED])[0]]",
    "type(torch.half)": "float()",
}
"""Text of its code -> what stands there instead. WIDTH: columns of the query heads of a kv head; SHARED: how many these
are; COST: parameters of a kv head and its query heads, in columns of the hidden width. Means stay in float32."""

NEAR = 0.005
"""How far the kept share may be from the one that is asked for."""


class NoAttention(torch.nn.Module):
    """What is left of attention without heads: the bias. Its code may remove all heads of a layer."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.layer_idx, self.bias = attention.layer_idx, attention.o_proj.bias

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> tuple[Tensor, Tensor | None]:
        """``[N, L, hidden]``; the cache is told how many tokens there were."""
        if past_key_values is not None:
            one = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past_key_values.update(one, one, self.layer_idx)
        out = torch.zeros_like(hidden_states)
        return (out if self.bias is None else out + self.bias), None


@dataclass(frozen=True)
class FLAP:
    """A checkout of FLAP.

    Attributes:
        checkout: the directory with ``lib/prune.py``.
    """

    checkout: Path

    def __post_init__(self) -> None:
        if not all((self.checkout / "lib" / f"{name}.py").is_file() for name in FILES):
            raise SystemExit(f"{self.checkout} has no lib/prune.py: give a checkout of github.com/CASIA-IVA-Lab/FLAP")

    def cut_to(self, model: Any, windows: Tensor, kept: float, *, compensated: bool) -> float:
        """Prune a Llama in place to a share of its parameters; returns the ratio that its code was given.

        Args:
            model: a Llama of transformers, in float32.
            windows: ``[N, L]`` int64, whose activations are scored.
            kept: share of all parameters, embeddings included; the biases that compensate count.
            compensated: whether the biases of its compensation are kept.

        Raises:
            SystemExit: where its code keeps another share.
        """
        whole = sum(parameter.numel() for parameter in model.parameters())
        layers = model.model.layers
        for layer in layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features), requires_grad=False)
        prunable = sum(m.weight.numel() for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear))
        biases = 2 * len(layers) * model.config.hidden_size if compensated else 0
        ratio = ((1 - kept) * whole + biases) / prunable
        model.seqlen = windows.shape[1]
        arguments = SimpleNamespace(
            metrics="WIFV", structure="AL-AM", pruning_ratio=ratio, nsamples=len(windows), seed=0, unstr=False
        )
        with _positions(model), torch.no_grad():
            self.code(model, windows).prune_flap(arguments, model, None, torch.device("cpu"))
        for layer in layers:
            if not compensated:
                layer.self_attn.o_proj.bias = layer.mlp.down_proj.bias = None
            if layer.self_attn.q_proj.weight.shape[0] == 0:
                layer.self_attn = NoAttention(layer.self_attn)
        left = sum(parameter.numel() for parameter in model.parameters()) / whole
        if abs(left - kept) > NEAR:
            raise SystemExit(f"FLAP's code keeps {left:.4f} of the parameters, not {kept:g}")
        return ratio

    def code(self, model: Any, windows: Tensor) -> Any:
        """Its ``lib.prune`` with GROUPED, which reads the windows instead of a data set.

        Raises:
            SystemExit: for other code than that of commit 9bbad71.
        """
        attention = model.model.layers[0].self_attn
        shared = attention.q_proj.out_features // attention.k_proj.out_features
        width = shared * attention.head_dim
        sizes = {"WIDTH": width, "SHARED": shared, "COST": 2.0 * width + 2.0 * attention.head_dim}
        data = ModuleType(f"{PACKAGE}.data")
        data.get_loaders = _loaders(windows)  # type: ignore[attr-defined]
        found = {PACKAGE: ModuleType(PACKAGE), f"{PACKAGE}.data": data}
        found[PACKAGE].__path__ = []  # type: ignore[attr-defined]
        sys.modules.update(found)
        for name in FILES:
            path = self.checkout / "lib" / f"{name}.py"
            text = path.read_text(encoding="utf-8")
            for old, new in GROUPED.items() if name == "prune" else ():
                if old not in text:
                    raise SystemExit(f"{path} has no {old!r}: take commit 9bbad71")
                text = text.replace(old, new)
            module = ModuleType(f"{PACKAGE}.{name}")
            module.__dict__.update(sizes, __package__=PACKAGE)
            sys.modules[module.__name__] = module
            exec(compile(text, str(path), "exec"), module.__dict__)
        return sys.modules[f"{PACKAGE}.prune"]


def _loaders(windows: Tensor) -> Callable[..., tuple[list[tuple[Tensor, None]], None]]:
    """In place of its loader of a data set: one window in a batch."""
    return lambda *_, **__: ([(window[None], None) for window in windows], None)


@contextmanager
def _positions(model: Any) -> Iterator[None]:
    """Its code calls layers without the rotary embedding, which transformers hands to them now."""

    def with_positions(_: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("position_embeddings") is None:
            kwargs["position_embeddings"] = model.model.rotary_emb(args[0], kwargs["position_ids"])
        return args, kwargs

    hooks = [layer.register_forward_pre_hook(with_positions, with_kwargs=True) for layer in model.model.layers]
    yield
    for hook in hooks:
        hook.remove()
