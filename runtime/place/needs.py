"""What a model needs of memory, computed from its shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

LOGITS_BYTES = 8
"""Of one logit: float32, and again for its logarithm or its gradient."""


@dataclass(frozen=True)
class Needs:
    """What a model needs of memory, in bytes. Tensors that modules share count once.

    Attributes:
        weights: all parameters in the dtype of the arithmetic.
        stored: all parameters in the dtype of the checkpoint.
        outside: parameters outside the blocks, such as embeddings, in the dtype of the arithmetic.
        largest_block: parameters of the largest block, in that dtype.
        largest_gradient: of a single parameter, in that dtype.
        activations: inputs and outputs of the linear maps of one block for one batch, and the hidden states of that
            batch between all blocks.
        logits: of one batch.
    """

    weights: int
    stored: int
    outside: int
    largest_block: int
    largest_gradient: int
    activations: int
    logits: int

    @property
    def one_block(self) -> int:
        """The least that has to be in memory at once: what is outside the blocks, a block, and a gradient."""
        return self.outside + self.largest_block + self.largest_gradient

    @property
    def beside(self) -> int:
        """What a run needs beside the weights."""
        return self.largest_gradient + self.activations + self.logits


def needs_of(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    *,
    dtype: torch.dtype,
    stored: torch.dtype,
    batch: int,
    length: int,
    vocabulary: int,
) -> Needs:
    """What a model needs of memory.

    Args:
        model: on any device, also the meta device.
        blocks: its blocks; without any, the whole model counts as one.
        dtype: of the arithmetic.
        stored: of the checkpoint.
        batch, length: sequences, and tokens in each, of one forward pass.
        vocabulary: logits of a token; 0 for a model without.
    """
    size, tokens = dtype.itemsize, batch * length
    whole = _distinct(model.parameters())
    parts = [_distinct(block.parameters()) for block in blocks] or [whole]
    inside = {id(parameter) for part in parts for parameter in part}
    widths = max((_widths(part) for part in parts), default=0)
    hidden = max((parameter.shape[-1] for parameter in whole if id(parameter) not in inside), default=0)
    return Needs(
        weights=size * _elements(whole),
        stored=stored.itemsize * _elements(whole),
        outside=size * _elements(parameter for parameter in whole if id(parameter) not in inside),
        largest_block=size * max(map(_elements, parts)),
        largest_gradient=size * max((parameter.numel() for parameter in whole), default=0),
        activations=size * tokens * (widths + len(parts) * hidden),
        logits=LOGITS_BYTES * tokens * vocabulary,
    )


def _distinct(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(parameter): parameter for parameter in parameters}.values())


def _elements(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _widths(parameters: Iterable[nn.Parameter]) -> int:
    """Numbers that go in and out of the matrices, for one token; of a stack of experts, of one."""
    return sum(parameter.shape[-1] + parameter.shape[-2] for parameter in parameters if parameter.dim() > 1)
