"""Export a model that is not a causal language model to ONNX: encoder, encoder-decoder, vision, two towers, audio.

The graph is one forward. The number of samples and the lengths of texts are dynamic if the model allows it; images and
audio have a fixed size. An encoder-decoder reads all tokens decoded so far, without a cache.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from ...ir.errors import FxpruneError
from ...runtime.reporting import counted
from ...runtime.tolerances import ONNX_OUTPUT_TOLERANCE, relative_difference
from ..atomic_directory import atomic_directory
from ..copied_files import CopiedFiles
from .artifact import OnnxChecks, OnnxReport, OnnxRequest, write_program, write_report
from .names import BATCH_SYMBOL, SEQUENCE, rename_symbols
from .quantize import convert_weights
from .runtime import open_session
from .trace import convert, innermost_line

OPEN = ("samples and lengths", "samples", "nothing")
"""Which dimensions of the inputs are dynamic, tried in this order."""

ForwardInputs = Mapping[str, torch.Tensor]
Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ExportedForward:
    """A model and its example inputs, to be exported.

    Attributes:
        model: a model of transformers in float32, on the CPU, in evaluation mode.
        inputs: keyword arguments of its forward, with values. The first dimension counts samples; the second dimension
            of integer tensors counts tokens.
        beside: keys of outputs that are left out, unless there are no others.
    """

    model: Any
    inputs: ForwardInputs
    beside: Collection[str]

    def outputs(self, inputs: ForwardInputs) -> dict[str, torch.Tensor]:
        """The outputs of the graph by name."""
        with torch.no_grad():
            return _flat(self._counting(self.model(**inputs)))

    @contextlib.contextmanager
    def narrowed(self) -> Iterator[None]:
        """While the block runs, the forward returns only the outputs that are exported."""
        original = self.model.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._counting(original(*args, **kwargs))

        self.model.forward = forward
        try:
            yield
        finally:
            del self.model.forward

    def masked(self) -> ExportedForward:
        """The same with an attention mask, if the model takes token ids and a mask."""
        accepted = inspect.signature(self.model.forward).parameters
        ids = self.inputs.get("input_ids")
        if ids is None or "attention_mask" not in accepted or "attention_mask" in self.inputs:
            return self
        return replace(self, inputs={**self.inputs, "attention_mask": torch.ones_like(ids)})

    def _counting(self, output: Any) -> dict[str, Any]:
        named = dict(output) if isinstance(output, Mapping) else {f"output_{i}": v for i, v in enumerate(output)}
        return {key: value for key, value in named.items() if key not in self.beside} or named


def export_forward(
    request: OnnxRequest,
    forward: ExportedForward,
    *,
    source_dtype: str = "float32",
    progress: Callable[[str], None] | None = None,
) -> OnnxReport:
    """Export a model to ONNX, check it in ONNX Runtime at several shapes, then move it into place.

    Args:
        request: source, output and options.
        forward: the model and its example inputs.
        source_dtype: data type in the files of the source.
        progress: called with a message when a new step begins.

    Raises:
        RequestError: an option or a directory is not valid. This is checked before any work.
        FxpruneError: the model cannot be exported, differs in ONNX Runtime, or cannot be written.
    """
    say = progress or (lambda _message: None)
    request.check()
    forward = forward.masked()
    with atomic_directory(request.out, force=request.force, seen=request.seen) as staging:
        program, copied, differences = _widest(request, forward, staging, say)
        if request.dtype != "float32":
            say(f"converting the weights to {request.dtype}")
            names = [value.name or "" for value in (*program.graph.inputs, *program.graph.outputs)]
            convert_weights(staging / request.file, request.dtype, request.data, keep=names)
            rounded = _check(request, forward, program, staging, request.dtype)
            differences |= {f"{request.dtype} {name}": difference for name, difference in rounded.items()}
        checks = OnnxChecks(differences=differences, tolerance=ONNX_OUTPUT_TOLERANCE[request.dtype])
        return write_report(
            request, program, staging, checks, copied=copied, source_dtype=source_dtype, open=_open(program)
        )


def _widest(
    request: OnnxRequest, forward: ExportedForward, staging: Path, say: Callable[[str], None]
) -> tuple[ir.Model, CopiedFiles, dict[str, float]]:
    """The graph with the most dynamic dimensions that passes its check, written; what was copied; and the result of
    :func:`_check`.

    Raises:
        FxpruneError: even the graph without dynamic dimensions does not pass.
    """
    for free in OPEN:
        say(f"tracing and converting to ONNX, dynamic: {free}")
        try:
            program = trace_forward(forward, free=free, optimize=request.optimize, opset=request.opset)
            copied = write_program(request, program, forward.model, staging)
            say("checking in ONNX Runtime")
            return program, copied, _check(request, forward, program, staging, "float32")
        except FxpruneError as error:
            refused = error
    raise refused


def trace_forward(forward: ExportedForward, *, free: str, optimize: str, opset: int | None) -> ir.Model:
    """One forward as a graph; its inputs are named as the arguments of forward.

    Raises:
        FxpruneError: the exporter fails.
    """
    auto = torch.export.Dim.AUTO
    shapes: dict[str, Any] | None = None
    if free != OPEN[-1]:
        texts = [name for name, tensor in forward.inputs.items() if free == OPEN[0] and _is_text(tensor)]
        shapes = {name: {0: auto, 1: auto} if name in texts else {0: auto} for name in forward.inputs}
    expected = forward.outputs(forward.inputs)
    with forward.narrowed():
        program = convert(forward.model, dict(forward.inputs), shapes, optimize=optimize, opset=opset)
    if len(program.graph.outputs) != len(expected):
        raise FxpruneError(
            f"the exported graph returns {len(program.graph.outputs)} tensors, {type(forward.model).__name__} "
            f"{len(expected)}", "this is a bug in fxprune; please report it with the model",
        )  # fmt: skip
    for value, name in zip(program.graph.outputs, expected, strict=True):
        value.name = name
    rename_symbols(program.graph, _symbols(program.graph))
    return program


def _symbols(graph: ir.Graph) -> dict[str, str]:
    """Names for the dynamic dimensions of the inputs: ``batch_size`` and ``sequence_length``. The text of a decoder has
    its own length. Images beside texts have their own number, since it may differ from that of the texts."""
    found: dict[str, str] = {}
    names = {str(value.name) for value in graph.inputs}
    for value in graph.inputs:
        name = str(value.name)
        beside = "input_ids" in names and not name.endswith(("_ids", "_mask"))
        length = f"decoder_{SEQUENCE}" if name.startswith("decoder_") else SEQUENCE
        for dim, known in zip(
            value.shape or (), (f"{name}_{BATCH_SYMBOL}" if beside else BATCH_SYMBOL, length), strict=False
        ):
            if not isinstance(dim, int):
                found.setdefault(str(dim.value), known)
    return found


def _open(program: ir.Model) -> tuple[str, ...]:
    dims = [dim for value in program.graph.inputs for dim in value.shape or () if not isinstance(dim, int)]
    return tuple(dict.fromkeys(str(dim.value) for dim in dims))


def _check(
    request: OnnxRequest, forward: ExportedForward, program: ir.Model, staging: Path, dtype: str
) -> dict[str, float]:
    """Worst relative difference from torch by what was varied.

    Raises:
        FxpruneError: one above :data:`ONNX_OUTPUT_TOLERANCE`, or something is open that the model takes in one way
            only.
    """
    session = open_session(staging / request.file, request.provider)
    found: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, inputs in counted(_varied(forward, program), "calls"):
        try:
            expected = forward.outputs(inputs)
        except Exception as error:  # a model's own code may reject other extents with any exception
            refused[name] = innermost_line(error)
            continue
        feed = {value.name: inputs[str(value.name)].numpy() for value in program.graph.inputs}
        try:
            made = session.run(list(expected), feed)
        except Exception as error:
            raise FxpruneError(
                f"ONNX Runtime cannot run the graph ({name}): {innermost_line(error)}", "try `--optimize none`"
            ) from error
        worst = max(_difference(got, wanted) for got, wanted in zip(made, expected.values(), strict=True))
        found[name] = max(worst, found.get(name, 0.0))
        if not worst <= ONNX_OUTPUT_TOLERANCE[dtype]:
            raise FxpruneError(
                f"the {dtype} ONNX graph and the model differ: outputs in check {name!r} by {worst:.3g} of their "
                f"scale, more than {ONNX_OUTPUT_TOLERANCE[dtype]:g}",
                "try `--dtype float32` or `--optimize none`" if dtype != "float32" else "try `--optimize none`",
            )
    for name in refused.keys() - found.keys():
        raise FxpruneError(
            f"{type(forward.model).__name__} does not run with other {name}: {refused[name]}",
            "give inputs that it accepts with --example",
        )
    return found


def _varied(forward: ExportedForward, program: ir.Model) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The example; then other numbers of samples, other lengths and a mask, if these are dynamic."""
    inputs = {str(value.name): forward.inputs[str(value.name)] for value in program.graph.inputs}
    yield "example", inputs
    shapes = {str(value.name): list(value.shape or ()) for value in program.graph.inputs}
    batches = {shape[0] for shape in shapes.values()}
    if all(not isinstance(batch, int) for batch in batches):
        for more in (1, -1):
            yield "samples", {name: _resized(tensor, 0, tensor.shape[0] + more) for name, tensor in inputs.items()}
    texts = [name for name, shape in shapes.items() if _is_text(inputs[name]) and not isinstance(shape[1], int)]
    if texts:
        for more in (2, -1):
            other = {name: _resized(inputs[name], 1, inputs[name].shape[1] + more) for name in texts}
            yield "lengths", inputs | other
    if "attention_mask" in inputs and inputs["attention_mask"].shape[1] > 2:
        mask = inputs["attention_mask"].clone()
        mask[0, -2:] = 0
        yield "padded", inputs | {"attention_mask": mask}


def _resized(tensor: torch.Tensor, dim: int, extent: int) -> torch.Tensor:
    """The tensor with another extent in one dimension: its values are repeated or left out."""
    return tensor.index_select(dim, torch.arange(extent) % tensor.shape[dim])


def _is_text(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _difference(got: Any, wanted: torch.Tensor) -> float:
    return relative_difference(torch.from_numpy(np.asarray(got)).to(wanted.dtype), wanted)


def _flat(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Nested tensors by the name of the output that contains them; all but the first get a number."""
    found: dict[str, torch.Tensor] = {}
    for key, value in outputs.items():
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        found |= {key if number == 0 else f"{key}.{number}": leaf for number, leaf in enumerate(leaves)}
    return found
