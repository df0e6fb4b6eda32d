"""Stands in for torchvision, which has no build for every machine: what timm imports of it, and the one layer it uses.

timm reads images with torchvision; the benchmark gives its models tensors, so names of ``torchvision.transforms`` and
the like need to exist and no more.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import nn

_MODULES = (
    "torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms",
    "torchvision.transforms.functional", "torchvision.datasets", "torchvision.utils",
)  # fmt: skip


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with statistics that stay as they are; ``[batch, channels, height, width]``."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class InterpolationMode(enum.Enum):
    """How images are resized; timm makes tables of it when it is imported."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Stub(ModuleType):
    """A module in which every name is a class that does nothing."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__module__": self.__name__})


def stand_in() -> None:
    """Make ``import torchvision`` give the stub, where no torchvision is installed."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    for name in _MODULES:
        stub = sys.modules[name] = _Stub(name)
        stub.__spec__ = ModuleSpec(name, None)  # for whoever asks whether there is a torchvision
        owner, _, own = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], own, stub)
    vars(sys.modules["torchvision.ops.misc"])["FrozenBatchNorm2d"] = FrozenBatchNorm2d
    for name in ("torchvision.transforms", "torchvision.transforms.functional"):
        vars(sys.modules[name])["InterpolationMode"] = InterpolationMode
