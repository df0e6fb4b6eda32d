"""On-disk weights: a model larger than memory as a module without values, and files that are read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...backends.huggingface.streamed_weights import StreamedWeights
from ...backends.huggingface.synthetic_weights import SyntheticWeights
from ...backends.huggingface.weight_source import ConvertedWeights, OnDiskWeights
from ...passes.base import Pass
from ...runtime.place.placement import NO_OFFLOAD, Placement
from ...runtime.streaming.mapped_files import Checkpoint
from ...runtime.streaming.residence import map_large_tensors
from ...runtime.streaming.store import Scratch
from ...tracer.model import ModelSource, build_meta
from ..offloading import Files, find_files, residence_of
from ..placing import stored_dtype
from ..progress import Progress, silent

GraphLogits = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class StreamedModel:
    """A model whose weights stay in its files, or in the host's memory as they are in the files.

    Attributes:
        module: the model, with parameters on the meta device and buffers with values.
        weights: reads and writes the weights.
        residence: brings them into memory, for passes that run the model.
        synthetic: synthetic weights, on which the module can run.
        converted: whether the files are not the source's: transformers writes the names of the source again.
    """

    def __init__(self, files: Files, module: Any, placement: Placement, scratch: Scratch) -> None:
        self.module, self.converted = module, files.converted
        self.residence = residence_of(module, files.checkpoint, placement, scratch)
        self.weights = StreamedWeights(self.residence.store, files.checkpoint.metadata)
        self.synthetic = SyntheticWeights(module)

    def values(self, inputs: Mapping[str, torch.Tensor], graph: GraphLogits) -> OnDiskWeights:
        """What the backend needs to write the weights."""
        kind = ConvertedWeights if self.converted else OnDiskWeights
        return kind(self.weights, self.synthetic, inputs, graph)


def open_streamed_model(
    source: ModelSource,
    config: Any,
    checkpoint: Checkpoint | None,
    pipeline: Sequence[Pass],
    *,
    placement: Placement,
    scratch: Scratch,
    language: bool = True,
    progress: Progress = silent,
) -> StreamedModel | str:
    """A model whose weights stay where they are, if that was chosen or no pass needs more than one of them at a time.

    Args:
        source: the model.
        config: its configuration.
        checkpoint: its safetensors files; None when its weights are a pickle.
        pipeline: the passes that will run.
        placement: where they run.
        scratch: where weights that they change may be kept.
        language: whether it is a causal language model.
        progress: told that the weights are converted.

    Returns:
        The model; or why all of it has to be loaded, "" when that was chosen.
    """
    if placement.offload == NO_OFFLOAD and any(step.loads_model for step in pipeline):
        return ""
    if not language:
        return "it is not a causal language model"
    map_large_tensors(placement.device)  # each parameter is made once before it becomes a shape
    module = build_meta(config, consent=source.consent, buffers=True)
    dtype, runs = stored_dtype(checkpoint, config), any(step.loads_model for step in pipeline)
    files = find_files(source, module, checkpoint, dtype, scratch=scratch if runs else None, progress=progress)
    return StreamedModel(files, module, placement, scratch) if isinstance(files, Files) else files
