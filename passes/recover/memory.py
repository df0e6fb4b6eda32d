"""What recovery training needs of memory, and whether there is so much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ...ir.errors import RequestError
from ...runtime.place.devices import CPU
from ...runtime.place.memory import device_memory, host_memory, size_text
from ...runtime.place.needs import needs_of
from ...runtime.streaming.residence import Residence
from ..model.blocks import find_blocks

TRAINED_COPIES = 3
"""For every number that AdamW trains, in float32: its gradient and two moments."""


@dataclass(frozen=True)
class TrainingMemory:
    """What training needs of memory, in bytes.

    Attributes:
        weights: all parameters of the model.
        optimizer: gradients and moments of what is trained, and the adapters, if it has some.
        block: activations of one block for one forward pass, and the hidden states between all blocks.
        blocks: activations of all blocks for one forward pass, as a graph for the backward keeps them.
        logits: of one forward pass.
    """

    weights: int
    optimizer: int
    block: int
    blocks: int
    logits: int

    @property
    def least(self) -> int:
        """With the activations of one block at a time: those of the others are computed again."""
        return self.weights + self.optimizer + self.block + self.logits

    @property
    def usual(self) -> int:
        """With the activations of all blocks."""
        return self.weights + self.optimizer + self.blocks + self.logits


def training_memory(
    model: PreTrainedModel, *, dtype: torch.dtype, trained: int, batch: int, length: int
) -> TrainingMemory:
    """What training needs of memory.

    Args:
        model: on any device, also the meta device.
        dtype: of the weights while they are trained.
        trained: how many numbers are trained.
        batch, length: examples, and tokens in each, of one forward pass.
    """
    try:
        blocks: Sequence[nn.Module] = find_blocks(model).modules
    except RequestError:
        blocks = ()
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or 0
    needs = needs_of(model, blocks, dtype=dtype, stored=dtype, batch=batch, length=length, vocabulary=vocabulary)
    return TrainingMemory(
        weights=needs.weights,
        optimizer=TRAINED_COPIES * torch.float32.itemsize * trained,
        block=needs.activations,
        blocks=needs.activations * max(1, len(blocks)),
        logits=needs.logits,
    )


def free_memory(device: torch.device, max_memory: int | None = None) -> int | None:
    """What may still be used on a device, in bytes; None if the system cannot tell and nothing was said."""
    memory = host_memory() if device == CPU else device_memory(device)
    known = [amount for amount in (memory.free if memory is not None else None, max_memory) if amount is not None]
    return min(known, default=None)


def require_room(who: str, memory: TrainingMemory, residence: Residence) -> None:
    """Check that a model whose weights are elsewhere can be trained where it runs.

    Raises:
        RequestError: with what is missing.
    """
    free = free_memory(residence.device, residence.max_memory)
    if free is None or memory.least <= free:
        return
    allowed = "--max-memory allows" if free == residence.max_memory else f"{residence.device} has free"
    raise RequestError(
        f"{who} trains with all weights in memory: {size_text(memory.weights)}, gradients and moments "
        f"{size_text(memory.optimizer)}, activations and logits {size_text(memory.block + memory.logits)}; that is "
        f"{size_text(memory.least - free)} more than the {size_text(free)} that {allowed}",
        "give fewer examples in one forward pass (micro_batch) or shorter ones (length), lora instead of training all "
        "weights, a --device with more memory, or leave the pass out",
    )
