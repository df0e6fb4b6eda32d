"""Where the values of a model's tensors are, and what follows from that for comparing, writing and checking them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..ir.plan import Plan
from ..runtime.quiet import quiet
from ..runtime.tolerances import LOGITS_TOLERANCE, STORED_ROUNDINGS, relative_difference, roundings
from .config_search import Match
from .stand_ins import StandIns, hollow
from .stored import Checkpoint
from .streaming import StreamedWeights
from .verify import FreshProcess, Job, Reference, verify_written

LOGITS_LIMIT = 1 << 30
"""The most bytes of float32 weights with which a streamed model is loaded again as a whole, to compare logits. Above
it the fresh process compares every name and shape, and the values were looked at while they were written."""


class Values(Protocol):
    """The values of the tensors of a model that is being saved."""

    @property
    def dtype(self) -> torch.dtype:
        """What the configuration calls the dtype of the model."""

    def size(self, model: PreTrainedModel) -> int:
        """Bytes that will be written."""

    def same_function(self, model: PreTrainedModel) -> Callable[[Match], bool]:
        """Whether a configuration's own model, given the same weights, computes what ``model`` does."""

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        """Write the weights; ``plain`` under the names of the original checkpoint.

        Returns:
            File name -> sha256, of the files for which it is known already.
        """

    def check(
        self, folder: Path, auto_class: str, trust: bool, source: Path | None, fresh: FreshProcess | None
    ) -> dict[str, Any]:
        """Reload ``folder`` in a fresh process, ``fresh`` if there is one yet, and compare; ``source`` is the directory
        it was made from."""


@dataclass(frozen=True)
class Held:
    """In the module itself, in the dtype in which they are to be stored.

    Attributes:
        model: the module.
        reference: inputs, and the logits that the rewritten graph gives on them in float32.
    """

    model: PreTrainedModel
    reference: Reference

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    def size(self, model: PreTrainedModel) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())

    def same_function(self, model: PreTrainedModel) -> Callable[[Match], bool]:
        """In the dtype of ``model``; the bound is the coarser of the artifact's own and what the dtype resolves, since
        the fresh process checks in float32."""
        tolerance = LOGITS_TOLERANCE
        if model.dtype != torch.float32:
            tolerance = max(tolerance, roundings(STORED_ROUNDINGS, model.dtype))
        reference = self.reference

        def accept(match: Match) -> bool:
            state = dict(model.state_dict())
            with torch.no_grad(), quiet():
                candidate = match.model_class.from_pretrained(
                    None, config=copy.deepcopy(match.config), state_dict=state, dtype=model.dtype
                ).eval()
                try:
                    found = reference.compared(candidate(**reference.inputs))
                except Exception:  # a configuration that cannot run is not the one
                    return False
                expected = reference.compared(model(**reference.inputs))
            pairs = zip(found, expected, strict=True)
            return all(relative_difference(got, wanted) <= tolerance for got, wanted in pairs)

        return accept

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        # Code beside the weights counts as foreign to transformers, which then renames no key while loading.
        with quiet():
            model.save_pretrained(folder, max_shard_size=shard_size, save_original_format=plain)
        return {}

    def check(
        self, folder: Path, auto_class: str, trust: bool, source: Path | None, fresh: FreshProcess | None
    ) -> dict[str, Any]:
        return verify_written(Job(folder, self.reference, auto_class, trust), source, fresh)


@dataclass(frozen=True)
class Streamed:
    """In the source's files; the module has none.

    Attributes:
        weights: reads and writes them.
        plan: what was removed, by the names of the source.
        stand_ins: what the module runs on.
        inputs: keyword arguments of the forward.
        graph: float32 logits of the rewritten graph, given parameters by their first names.
    """

    weights: StreamedWeights
    plan: Plan
    stand_ins: StandIns
    inputs: Mapping[str, torch.Tensor]
    graph: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def size(self, model: PreTrainedModel) -> int:
        return self.weights.size(model)

    def same_function(self, model: PreTrainedModel) -> Callable[[Match], bool]:
        """On stand-ins for the weights, in float32."""
        known: list[torch.Tensor] = []

        def accept(match: Match) -> bool:
            if not known:
                known.append(self.stand_ins.logits(model, self.inputs))
            with quiet():
                candidate = hollow(match.model_class, copy.deepcopy(match.config))
            try:
                logits = self.stand_ins.logits(candidate, self.inputs)
            except Exception:  # a configuration that cannot run is not the one
                return False
            return relative_difference(logits, known[0]) <= LOGITS_TOLERANCE

        return accept

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return self.weights.write(model, self.plan, folder, plain=plain, shard_size=shard_size)

    def check(
        self, folder: Path, auto_class: str, trust: bool, source: Path | None, fresh: FreshProcess | None
    ) -> dict[str, Any]:
        files = sorted(folder.glob("model*.safetensors"))
        elements = sum(prod(stored.shape) for stored in Checkpoint(files).tensors.values())
        reference = self._reference(files) if 4 * elements <= LOGITS_LIMIT else None
        return verify_written(Job(folder, reference, auto_class, trust), source, fresh)

    def _reference(self, files: Iterable[Path]) -> Reference:
        first = {stored.name: name for name, stored in self.weights.stored.items()}
        tensors = {first[name]: tensor for file in files for name, tensor in load_file(file).items()}
        return Reference(self.inputs, self.graph(tensors))
