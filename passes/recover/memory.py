"""What recovery training needs of memory, and whether there is so much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...ir.errors import RequestError
from ...runtime.model.kinds import is_pretrained
from ...runtime.place.devices import CPU
from ...runtime.place.memory import device_memory, host_memory, size_text
from ...runtime.place.needs import needs_of
from ...runtime.streaming.block_runner import BlockRunner
from ..model.blocks import find_blocks

TRAINED_COPIES = 3
"""For every number that AdamW trains, in float32: its gradient and two moments."""


@dataclass(frozen=True)
class TrainingMemory:
    """What training needs of memory, in bytes.

    Attributes:
        weights: all parameters of the model.
        optimizer: gradients and moments of what is trained, and the adapters, if it has some.
        activations: the fewest that are in memory at once, for one forward pass: those of one block, and the hidden
            states between all; where they are not computed again, those of all blocks.
        blocks: activations of all blocks, as a graph for the backward keeps them.
        logits: of one forward pass.
    """

    weights: int
    optimizer: int
    activations: int
    blocks: int
    logits: int

    @property
    def least(self) -> int:
        """With the fewest activations."""
        return self.weights + self.optimizer + self.activations + self.logits

    @property
    def usual(self) -> int:
        """With the activations of all blocks."""
        return self.weights + self.optimizer + self.blocks + self.logits


def training_memory(
    model: nn.Module, *, dtype: torch.dtype, trained: int, batch: int, length: int, checkpointing: bool
) -> TrainingMemory:
    """What training needs of memory.

    Args:
        model: on any device, also the meta device.
        dtype: of the weights while they are trained.
        trained: how many numbers are trained.
        batch, length: examples, and tokens in each, of one forward pass.
        checkpointing: whether activations may be computed again.
    """
    try:
        blocks: Sequence[nn.Module] = find_blocks(model).modules
    except RequestError:
        blocks = ()
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", None) or 0 if is_pretrained(model) else 0
    needs = needs_of(model, blocks, dtype=dtype, stored=dtype, batch=batch, length=length, vocabulary=vocabulary)
    every = needs.activations * max(1, len(blocks))
    return TrainingMemory(
        weights=needs.weights,
        optimizer=TRAINED_COPIES * torch.float32.itemsize * trained,
        activations=needs.activations if checkpointing else every,
        blocks=every,
        logits=needs.logits,
    )


@dataclass(frozen=True)
class Holder:
    """Where a model is trained.

    Attributes:
        device, dtype: of its weights.
        max_memory: the most memory that may be used, in bytes; None for all that is free.
    """

    device: torch.device
    dtype: torch.dtype
    max_memory: int | None = None

    @classmethod
    def of(cls, runner: BlockRunner) -> Holder:
        """Where a model runs."""
        residence = runner.residence
        if residence is not None:
            return cls(residence.device, residence.dtype, residence.max_memory)
        held = [parameter for parameter in runner.model.parameters() if parameter.is_floating_point()]
        return cls(held[0].device, held[0].dtype) if held else cls(CPU, torch.float32)

    @property
    def free(self) -> int | None:
        """What is free on the device, in bytes; None if the system cannot tell."""
        memory = host_memory() if self.device == CPU else device_memory(self.device)
        return None if memory is None else memory.free

    def holds(self, whole: int, *, there: int = 0) -> bool:
        """Whether something fits, as far as the system can tell.

        Args:
            whole: its size in bytes.
            there: how much of it is in memory already.
        """
        free = self.free
        return (free is None or whole - there <= free) and (self.max_memory is None or whole <= self.max_memory)


def require_room(who: str, memory: TrainingMemory, place: Holder) -> None:
    """Check that a model whose weights are elsewhere can be trained where it runs.

    Raises:
        RequestError: with what is missing.
    """
    if place.holds(memory.least):
        return
    free = min(amount for amount in (place.free, place.max_memory) if amount is not None)
    allowed = "--max-memory allows" if free == place.max_memory else f"{place.device} has free"
    raise RequestError(
        f"{who} trains with all weights in memory: {size_text(memory.weights)}, gradients and moments "
        f"{size_text(memory.optimizer)}, activations and logits {size_text(memory.activations + memory.logits)}; that "
        f"is {size_text(memory.least - free)} more than the {size_text(free)} that {allowed}",
        "give fewer examples in one forward pass (micro_batch) or shorter ones (length), lora instead of training all "
        "weights, a --device with more memory, or leave the pass out",
    )
