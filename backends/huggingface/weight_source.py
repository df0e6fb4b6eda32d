"""In-memory and on-disk weights: how to compare, write and check a model depends on where its weights are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from ...runtime.consent import Consent
from ...runtime.quiet import quiet
from ...runtime.streaming.mapped_files import STORED_DTYPES, Checkpoint
from ...runtime.tensors import Places
from ...runtime.tolerances import LOGITS_TOLERANCE, STORED_ROUNDINGS, relative_difference, roundings
from ..verify import FreshProcess, Job, Reference, VerificationError, verify_written
from .config_search import ConfigMatch
from .streamed_weights import StreamedWeights
from .synthetic_weights import SyntheticWeights, meta_model

LOGITS_LIMIT = 1 << 30
"""The largest size in bytes, as float32, at which a model with on-disk weights is loaded completely to compare logits.
For larger models the fresh process compares all names and shapes, and values are checked while they are written."""


class WeightSource(Protocol):
    """The weights of a model that is being saved."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model in its configuration."""

    def size(self, model: PreTrainedModel) -> int:
        """Number of bytes that will be written."""

    def same_function(self, model: PreTrainedModel) -> Callable[[ConfigMatch], bool]:
        """A function that tells whether the model of a configuration, with the same weights, computes the same."""

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        """Write the weights; with ``plain`` under the names of the original checkpoint.

        Returns:
            File name -> sha256, for those files whose digest was computed on the way.
        """

    def check(self, written: Job, source: Consent | None, fresh: FreshProcess | None) -> dict[str, Any]:
        """Load what was written in a fresh process (``fresh``, if given) and compare it with the reference that is
        missing in the job; ``source`` is for the directory of the original model."""


@dataclass(frozen=True)
class InMemoryWeights:
    """In-memory weights: they are in the module, in the dtype in which they are stored.

    Attributes:
        model: the module.
        reference: inputs, and the float32 logits of the rewritten graph on them.
    """

    model: PreTrainedModel
    reference: Reference

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    def size(self, model: PreTrainedModel) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())

    def same_function(self, model: PreTrainedModel) -> Callable[[ConfigMatch], bool]:
        """Compares outputs in the dtype of ``model``. If this is not float32, the tolerance is larger than that of the
        fresh process, which compares in float32."""
        kinds = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
        dtype = model.dtype if len(kinds) == 1 else torch.float32  # a model of several cannot run in all of them
        tolerance = LOGITS_TOLERANCE
        if dtype != torch.float32:
            tolerance = max(tolerance, roundings(STORED_ROUNDINGS, dtype))
        reference = self.reference

        def accept(match: ConfigMatch) -> bool:
            known: dict[int, torch.Tensor] = {}  # tied tensors stay the same one
            state = {
                name: known.setdefault(id(t), t.detach().to(dtype) if t.is_floating_point() else t)
                for name, t in model.state_dict(keep_vars=True).items()
            }
            with torch.no_grad(), quiet():
                candidate = match.model_class.from_pretrained(
                    None, config=copy.deepcopy(match.config), state_dict=dict(state), dtype=dtype
                ).eval()
                try:
                    found = reference.compared(candidate(**reference.inputs))
                except Exception:  # a configuration whose model cannot run is not the right one
                    return False
                expected = reference.compared(functional_call(model, state, (), dict(reference.inputs)))
            pairs = zip(found, expected, strict=True)
            return all(relative_difference(got, wanted) <= tolerance for got, wanted in pairs)

        return accept

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        # If there is a modelling file, transformers renames no keys when it loads the weights.
        with quiet():
            model.save_pretrained(folder, max_shard_size=shard_size, save_original_format=plain)
        return {}

    def check(self, written: Job, source: Consent | None, fresh: FreshProcess | None) -> dict[str, Any]:
        return verify_written(replace(written, reference=self.reference), source, fresh)


@dataclass(frozen=True)
class OnDiskWeights:
    """On-disk weights: they are in the files of the source, not in the module.

    Attributes:
        weights: reads and writes them.
        synthetic: synthetic weights, on which the module runs.
        inputs: keyword arguments of forward.
        graph: a function from parameters by their first names to the float32 logits of the rewritten graph.
    """

    weights: StreamedWeights
    synthetic: SyntheticWeights
    inputs: Mapping[str, torch.Tensor]
    graph: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def size(self, model: PreTrainedModel) -> int:
        return self.weights.size(model)

    def same_function(self, model: PreTrainedModel) -> Callable[[ConfigMatch], bool]:
        """Compares outputs with synthetic weights, in float32."""
        known: list[torch.Tensor] = []

        def accept(match: ConfigMatch) -> bool:
            if not known:
                known.append(self.synthetic.logits(model, self.inputs))
            with quiet():
                candidate = meta_model(match.model_class, copy.deepcopy(match.config))
            try:
                logits = self.synthetic.logits(candidate, self.inputs)
            except Exception:  # a configuration whose model cannot run is not the right one
                return False
            return relative_difference(logits, known[0]) <= LOGITS_TOLERANCE

        return accept

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return self.weights.write(model, folder, plain=plain, shard_size=shard_size)

    def check(self, written: Job, source: Consent | None, fresh: FreshProcess | None) -> dict[str, Any]:
        files = sorted(written.folder.glob("model*.safetensors"))
        elements = sum(prod(stored.shape) for stored in Checkpoint(files, keep_open=False).tensors.values())
        reference = self._reference() if 4 * elements <= LOGITS_LIMIT else None
        return verify_written(replace(written, reference=reference), source, fresh)

    def _reference(self) -> Reference:
        """From the files of the source: what was written is what is checked."""
        return Reference(self.inputs, self.graph(dict(self._stored())))

    def _stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self.weights.read(self.weights.store.source):
            yield name, value.to(STORED_DTYPES[self.weights.store.source[name].dtype])


@dataclass(frozen=True)
class ConvertedWeights(OnDiskWeights):
    """On-disk weights in files of fxprune's own, by the names of the module; transformers converts and writes them."""

    def write(self, model: PreTrainedModel, folder: Path, *, plain: bool, shard_size: str) -> Mapping[str, str]:
        places = Places(model)
        for name, value in self._stored():
            if not bool(value.isfinite().all()):
                raise VerificationError(
                    f"'{name}' holds values that are not finite", "repair or download the checkpoint again"
                )
            places.replace(name, value)
        with quiet():
            model.save_pretrained(folder, max_shard_size=shard_size, save_original_format=plain)
        return {}
