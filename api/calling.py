"""How a model is called while it is pruned, and what of its outputs is compared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..backends.graph_module import raise_graph
from ..backends.verify import Reference
from ..ir.errors import FxpruneError, RequestError
from ..ir.graph import Graph
from ..passes.base import Pass, PassKind
from ..passes.registry import PASSES
from ..tracer.example import example_inputs, trace_call
from ..tracer.export import Traced, trace_causal_lm
from ..tracer.model import predicts_next_token

WITHOUT_TEXT = ", ".join(
    step.name for step in PASSES if step.kind == PassKind.SCORE and (step.streams or step.takes_loss)
)
"""Scores that read no text: from weights, or from the gradients of a loss that the user gives."""

Tensors = Mapping[str, torch.Tensor]


class Calling:
    """The inputs of one model of transformers, and what becomes of them.

    Args:
        config: its configuration.
        example: inputs as text, for a model that is no causal language model; made from the configuration when None.

    Raises:
        RequestError: ``example`` for a causal language model, which reads token ids.
    """

    def __init__(self, config: Any, example: str | None = None) -> None:
        self.config, self.example = config, example
        self.language = predicts_next_token(config)
        if self.language and example is not None:
            raise RequestError(
                f"--example is for other models, and {config.model_type!r} is a causal language model",
                "leave it out: it is called with token ids",
            )
        self.inputs: dict[str, torch.Tensor] = {}

    def trace(self, module: torch.nn.Module) -> Traced:
        """Trace the model, and keep the inputs with values that it is then compared on."""
        if not self.language:
            self.inputs = self.inputs or example_inputs(module, self.example)
            return trace_call(module, self.inputs)
        traced = trace_causal_lm(module)
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.config.get_text_config().vocab_size
        self.inputs = {"input_ids": torch.randint(vocabulary, traced.example["input_ids"].shape, generator=generator)}
        return traced

    def run_graph(
        self, graph: Graph, traced: Traced, module: torch.nn.Module, parameters: Tensors | None = None
    ) -> list[torch.Tensor]:
        """The outputs of a graph in float32, with the module's own tensors, or with other ``parameters`` and its
        buffers."""
        found: dict[str, torch.Tensor] = dict(module.named_buffers(remove_duplicate=False))
        found |= dict(module.named_parameters(remove_duplicate=False)) if parameters is None else parameters
        tensors = {name: t.detach().float() if t.is_floating_point() else t for name, t in found.items()}
        given = [self.inputs[value.name] for value in graph.inputs]
        with torch.no_grad():
            made = raise_graph(graph, tensors, traced.constants)(*given)
        return list(made)

    def run(self, module: torch.nn.Module, traced: Traced) -> list[torch.Tensor]:
        """The outputs of the module that count, in the order of the graph's."""
        caching = {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}
        try:
            with torch.no_grad():
                output = module(**self.inputs, **caching)
        except Exception as error:  # whatever a model's own code raises
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise FxpruneError(
                f"{type(module).__name__} does not run: {type(error).__name__}: {reason}",
                "if it is the smaller one that does not, a width may be remembered by its code; leave its group out",
            ) from error
        return counted(output, traced.outputs)

    def reference(self, graph: Graph, traced: Traced, module: torch.nn.Module) -> Reference:
        """What an artifact must compute: the graph, with the weights as they are stored."""
        first, *others = self.run_graph(graph, traced, module)
        return Reference(self.inputs, first, traced.outputs, tuple(others) if traced.outputs else ())

    def check(self, pipeline: Sequence[Pass], *, loss: bool, texts: bool) -> None:
        """Refuse what means nothing for this model.

        Raises:
            RequestError: a loss for a causal language model; for another one, text, a pass that reads text, or scores
                that need a loss without one.
        """
        if self.language:
            if loss:
                raise RequestError(
                    f"a loss is for other models, and {self.config.model_type!r} is a causal language model",
                    "leave it out: it is scored by how it predicts the text of --calib",
                )
            return
        name = (self.config.architectures or [self.config.model_type])[0]
        if texts:
            raise RequestError(f"{name} is no causal language model and reads no text", "score it with --loss")
        for step in pipeline:
            if step.takes_loss and not loss:
                raise RequestError(
                    f"{step.name} scores need a loss",
                    "name one with --loss package.module:function, which takes the module and returns a scalar",
                )
            if step.needs_weights and not (step.streams or step.takes_loss):
                raise RequestError(
                    f"pass {step.name!r} works on causal language models, and {name} is none", f"use {WITHOUT_TEXT}"
                )


def counted(output: Any, keys: Sequence[str]) -> list[torch.Tensor]:
    """The tensors in what a model returned, nested ones too; under some keys only, where there are any."""
    leaves = torch.utils._pytree.tree_leaves([output[key] for key in keys] if keys else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
