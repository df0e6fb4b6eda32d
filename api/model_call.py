"""How a model is called while it is pruned, and which of its outputs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..backends.graph_module import raise_graph
from ..backends.verify import Reference
from ..ir.errors import FxpruneError, RequestError, class_and_first_line
from ..ir.graph import Graph
from ..passes.base import Pass
from ..passes.data import TokenCut
from ..passes.recover.base import Recovery
from ..passes.registry import all_passes
from ..runtime.model.embeddings import vocabulary
from ..runtime.place.memory import is_out_of_memory
from ..runtime.streaming.left_as_found import left_as_found
from ..runtime.tensors import tensors_by_every_name
from ..tracer.example import example_inputs, trace_call, uncached
from ..tracer.export import Traced, trace_causal_lm
from ..tracer.input_file import check_input_file
from ..tracer.model import predicts_next_token, reads_images

Tensors = Mapping[str, torch.Tensor]

DATA_KINDS = (
    "DATA: a folder of images or sounds, texts, a `datasets` id, a .safetensors or .npz file of inputs by name, or a \
package.module:function that yields batches"
)


class ModelCall:
    """The inputs of one transformers model, and how the model and its graph run on them.

    Args:
        config: its configuration.
        example: example inputs as text or the name of a file with them, for a model that is not a causal language
            model, or for one that reads images too; when None, they are made from the configuration.

    Raises:
        RequestError: ``example`` was given for a causal language model that reads text alone, or names a
            file that is not there.
    """

    def __init__(self, config: Any, example: str | None = None) -> None:
        self.config, self.example = config, example
        self.language = predicts_next_token(config)
        if self.language and example is not None:
            if not reads_images(config):
                raise RequestError(
                    f"--example has no effect on a causal language model such as {config.model_type!r}",
                    "leave --example out; the model is called with token ids",
                )
            self.language = False
        if example is not None:
            check_input_file(example)
        self.inputs: dict[str, torch.Tensor] = {}

    def trace(self, module: torch.nn.Module) -> Traced:
        """Trace the model, and keep inputs with values, on which outputs are compared later."""
        if not self.language:
            self.inputs = self.inputs or example_inputs(module, self.example)
            return trace_call(module, self.inputs)
        traced = trace_causal_lm(module)
        generator = torch.Generator().manual_seed(0)
        self.inputs = {
            "input_ids": torch.randint(vocabulary(module), traced.example["input_ids"].shape, generator=generator)
        }
        return traced

    def renumber(self, cut: TokenCut) -> None:
        """Call the model with tokens that it still has, among them those that it looks for itself."""
        rows, looked_for = len(cut.renumbering.kept), [cut.renumbering.new(number) for number in sorted(cut.compared)]
        for name in cut.arguments & self.inputs.keys():
            ids = self.inputs[name]
            found = [cut.renumbering.new(number) for number in ids.flatten().tolist()]
            # A token that went is replaced by any other one: what counts is that module and graph agree.
            held = [
                number % rows if now is None else now for number, now in zip(ids.flatten().tolist(), found, strict=True)
            ]
            if self.language:
                held[1 : 1 + len(looked_for)] = [number for number in looked_for if number is not None]
            self.inputs = {**self.inputs, name: torch.tensor(held[: ids.numel()], dtype=ids.dtype).view(ids.shape)}

    @contextmanager
    def within_its_context(self, pipeline: Sequence[Pass]) -> Iterator[None]:
        """Inside, a failure of passes that give a language model more tokens than it has positions is said to be that.

        Many models compute beyond the length in their configuration; those with a table of positions cannot.

        Raises:
            RequestError: instead of the model's own error.
        """
        context = getattr(self.config.get_text_config(), "max_position_embeddings", None) if self.language else None
        long = [step for step in pipeline if context and getattr(step, "length", 0) > context]
        try:
            yield
        except (IndexError, RuntimeError) as error:
            if not long or isinstance(error, FxpruneError) or is_out_of_memory(error):
                raise
            given = f"length={long[0].length}"  # type: ignore[attr-defined]
            raise RequestError(
                f"{long[0].name}: {given} is longer than the context of the model, {context} tokens",
                f"give {long[0].name}{{length={context}}} or less",
            ) from error

    def run_graph(
        self, graph: Graph, traced: Traced, module: torch.nn.Module, parameters: Tensors | None = None
    ) -> list[torch.Tensor]:
        """The outputs of a graph in float32, with the tensors of the module; ``parameters`` replace its own ones."""
        buffers: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
        found = tensors_by_every_name(module) if parameters is None else {**buffers, **parameters}
        tensors = {name: t.detach().float() if t.is_floating_point() else t for name, t in found.items()}
        given = [self.inputs[value.name] for value in graph.inputs]
        with torch.no_grad():
            made = raise_graph(graph, tensors, traced.constants)(*given)
        return list(made)

    def run(self, module: torch.nn.Module, traced: Traced) -> list[torch.Tensor]:
        """The outputs of the module that are compared, in the order of the outputs of the graph."""
        try:
            with torch.no_grad(), left_as_found(module, values=True):
                output = module(**self.inputs, **uncached(module))
        except Exception as error:  # whatever a model's own code raises
            raise FxpruneError(
                f"{type(module).__name__} does not run: {class_and_first_line(error)}",
                "if this is the pruned model, its code may hold a fixed width; do not prune that group",
            ) from error
        return counted(output, traced.outputs)

    def reference(self, graph: Graph, traced: Traced, module: torch.nn.Module) -> Reference:
        """The outputs that an artifact must give: those of the graph, with the weights as they are stored."""
        first, *others = self.run_graph(graph, traced, module)
        return Reference(self.inputs, first, traced.outputs, tuple(others) if traced.outputs else ())

    def check(self, pipeline: Sequence[Pass], *, loss: bool, calib: bool, data: bool) -> None:
        """Check that the request fits this kind of model.

        Raises:
            RequestError: a loss for a causal language model; for any other model, a pass that reads text, or one that
                needs data when none was given.
        """
        if self.language:
            if loss:
                raise RequestError(
                    f"--loss has no effect on a causal language model such as {self.config.model_type!r}",
                    "leave --loss out; the loss is the prediction of the --calib text",
                )
            return
        name = (self.config.architectures or [self.config.model_type])[0]
        for step in pipeline:
            if step.reads_text:
                raise RequestError(
                    f"pass {step.name!r} needs a causal language model, and {name} is not one", f"use {_without_text()}"
                )
            if isinstance(step, Recovery):
                if not data:
                    raise RequestError(f"{step.name} has no data to train on", f"give --data {DATA_KINDS}")
            elif step.needs_weights and not (step.streams or calib or loss):
                raise RequestError(
                    f"{step.name} needs calibration data for {name}",
                    f"give --calib {DATA_KINDS}; or --loss package.module:function, which takes the module and gives "
                    "a scalar",
                )


def counted(output: Any, keys: Sequence[str]) -> list[torch.Tensor]:
    """All tensors in the output of a model, nested ones too; only those under ``keys``, if there are any."""
    leaves = torch.utils._pytree.tree_leaves([output[key] for key in keys] if keys else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _without_text() -> str:
    """Passes that remove something, for any model."""
    return ", ".join(step.name for step in all_passes() if step.kind == "score" and not step.reads_text)
