"""On-disk weights: a model larger than memory as a module without values, and files that are read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...backends.huggingface.streamed_weights import StreamedWeights, obstacle
from ...backends.huggingface.synthetic_weights import SyntheticWeights
from ...backends.huggingface.weight_source import OnDiskWeights
from ...ir.plan import Plan
from ...passes.base import Pass
from ...passes.data import Weights
from ...passes.state import Ledger
from ...runtime.mapped_files import Checkpoint
from ...tracer.checkpoint import weight_files
from ...tracer.model import ModelSource, build_meta

GraphLogits = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

SAFETENSORS = ".safetensors"


class StreamedModel:
    """A model whose weights stay in its files.

    Attributes:
        module: the model, with parameters on the meta device and buffers with values.
        weights: reads and writes the weights.
        synthetic: synthetic weights, on which the module can run.
    """

    def __init__(self, checkpoint: Checkpoint, module: Any) -> None:
        self.module = module
        self.weights = StreamedWeights(checkpoint, module)
        self.synthetic = SyntheticWeights(module)

    def reader(self, ledger: Ledger) -> Weights:
        """A function that reads weights, without the units that were removed so far."""

        def read(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
            return self.weights.read(names, ledger.plan)

        return read

    @contextmanager
    def synthetic_parameters(self) -> Iterator[None]:
        """While the block runs, the parameters of the module are synthetic weights; for tracing."""
        values = self.synthetic.tensors(self.module)
        first = {id(parameter): name for name, parameter in self.module.named_parameters()}
        real: list[tuple[nn.Module, str, nn.Parameter]] = []
        made: dict[str, nn.Parameter] = {}
        for module in self.module.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    name = first[id(parameter)]
                    made.setdefault(name, nn.Parameter(values[name], requires_grad=parameter.requires_grad))
                    real.append((module, leaf, parameter))
        try:
            for module, leaf, parameter in real:
                module._parameters[leaf] = made[first[id(parameter)]]
            yield
        finally:
            for module, leaf, parameter in real:
                module._parameters[leaf] = parameter

    def values(self, plan: Plan, inputs: Mapping[str, torch.Tensor], graph: GraphLogits) -> OnDiskWeights:
        """What the backend needs to write the weights."""
        return OnDiskWeights(self.weights, plan, self.synthetic, inputs, graph)


def checkpoint_of(source: ModelSource) -> Checkpoint | None:
    """The safetensors files of the source; None when its weights are a pickle."""
    files = weight_files(source.directory, allow_pickle=source.allow_pickle)
    return Checkpoint(files) if files[0].suffix == SAFETENSORS else None


def open_streamed_model(
    source: ModelSource, config: Any, checkpoint: Checkpoint | None, pipeline: Sequence[Pass]
) -> StreamedModel | None:
    """On-disk weights, if no pass needs the whole model in memory and the files name tensors as the module does."""
    if checkpoint is None or not all(step.streams for step in pipeline):
        return None
    module = build_meta(config, trust_remote_code=source.trust_remote_code, buffers=True)
    return None if obstacle(checkpoint, module) else StreamedModel(checkpoint, module)
