"""The names that runtimes expect in the ONNX graph of a decoder, and which dimensions must be dynamic or fixed.

optimum, onnxruntime-genai and transformers.js use the same names: inputs ``input_ids``, ``attention_mask``,
``position_ids``, ``past_key_values.N.key|value``, and outputs ``logits``, ``present.N.key|value``. The exporter of
transformers names a tensor by its path: the argument or the output that holds it, then the attributes of the cache. So
the tensors of a cache are renamed; what the argument and the output are called is asked of the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from ...ir.errors import FxpruneError

BATCH_SYMBOL, SEQUENCE, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"

# The name of each dynamic dimension of an input or output; None for a fixed dimension.
_LAYOUT: dict[str, tuple[str | None, ...]] = {
    "input_ids": (BATCH_SYMBOL, SEQUENCE),
    "attention_mask": (BATCH_SYMBOL, TOTAL),
    "position_ids": (BATCH_SYMBOL, SEQUENCE),
    "past_key_values": (BATCH_SYMBOL, None, PAST, None),
    "logits": (BATCH_SYMBOL, SEQUENCE, None),
    "present": (BATCH_SYMBOL, None, TOTAL, None),
}
_IN_CACHE = r"\.layers\.(\d+)\.(key|value)s"
"""The path of a tensor in a ``DynamicCache``."""


def rename_interface(model: ir.Model, *, argument: str, returned: str) -> None:
    """Give the inputs, outputs and dimensions of a graph the names that runtimes expect, in place.

    Args:
        model: the graph.
        argument: by which the traced call was given the cache.
        returned: the name of the cache among the outputs of the model.

    Raises:
        FxpruneError: an input or output has no such name, or a dimension is fixed that must be dynamic, or the reverse.
    """
    graph = model.graph
    sides = ((graph.inputs, "input", argument, "past_key_values"), (graph.outputs, "output", returned, "present"))
    for values, side, holder, prefix in sides:
        # The exporter puts the side before a name that an input and an output share.
        path = re.compile(rf"(?:{side}\.)?{re.escape(holder)}{_IN_CACHE}")
        for value in values:
            if found := path.fullmatch(value.name or ""):
                value.name = f"{prefix}.{found[1]}.{found[2]}"
    _rename_dimensions(graph)
    for value in (*graph.inputs, *graph.outputs):
        _check_layout(value)


def strip_provenance(model: ir.Model) -> None:
    """Remove the stack traces and module paths that torch records on every node. They contain paths of this machine,
    and would make two exports of one model differ."""
    holders: list[Any] = [model, model.graph, *_values(model.graph), *model.graph.all_nodes()]
    for holder in holders:
        holder.metadata_props.clear()
        holder.doc_string = None


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs


def _rename_dimensions(graph: ir.Graph) -> None:
    shapes = {value.name: value.shape for value in graph.inputs}
    past = next((shape for name, shape in shapes.items() if name and name.startswith("past_key_values.")), None)
    tokens, mask = shapes.get("input_ids"), shapes.get("attention_mask")
    if past is None or tokens is None or mask is None:
        raise FxpruneError(
            f"the exported graph has inputs {', '.join(map(str, shapes))}; it needs input_ids, attention_mask and "
            "past_key_values",
            _OTHER_NAMES,
        )
    batch, sequence, before = str(tokens[0]), str(tokens[1]), str(past[2])
    symbols = {batch: BATCH_SYMBOL, sequence: SEQUENCE, before: PAST}
    totals = {f"{before} + {sequence}", f"{sequence} + {before}"}
    if str(mask[1]) not in symbols:
        totals.add(str(mask[1]))
    rename_symbols(graph, symbols, totals)


def rename_symbols(graph: ir.Graph, symbols: Mapping[str, str], totals: Collection[str] = ()) -> None:
    """Give the dimensions of every value in a graph other names, in place.

    Args:
        symbols: old name -> new name, also within expressions.
        totals: expressions that are replaced by :data:`TOTAL`.
    """

    def renamed(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if isinstance(dim, int) or dim.value is None:
            return dim
        text = str(dim.value)
        if text in totals:
            return ir.SymbolicDim(TOTAL)
        return ir.SymbolicDim(re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), text))

    for value in _values(graph):
        if value.shape is not None and not value.is_initializer():
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def _check_layout(value: ir.Value) -> None:
    name = value.name or ""
    layout = _LAYOUT.get(name.split(".")[0])
    if layout is None:
        raise FxpruneError(f"the exported graph has an unexpected input or output {name!r}", _OTHER_NAMES)
    shape = list(value.shape) if value.shape is not None else []
    fits = len(shape) == len(layout) and all(
        isinstance(dim, int) if wanted is None else not isinstance(dim, int) and dim.value == wanted
        for dim, wanted in zip(shape, layout, strict=True)
    )
    if not fits:
        got = ", ".join(str(dim) for dim in shape)
        want = ", ".join(wanted or "a fixed size" for wanted in layout)
        raise FxpruneError(f"the exported graph has {name} of shape [{got}] instead of [{want}]", _OTHER_SHAPES)


_OTHER_NAMES = "what runs a decoder with a cache knows no other; a graph without a cache may have any: use --no-cache"
_OTHER_SHAPES = (
    "what runs a decoder with a cache needs all lengths and the number of sequences open, and widths fixed: "
    "use --no-cache"
)
