"""Convert the weights of an exported graph to a smaller data type, with the tools of ONNX Runtime.

``float16`` converts weights, arithmetic and key-value cache, except for operators that overflow in half precision (see
:data:`_FLOAT32_OPERATORS`). ``int8`` and ``int4`` are weight-only: every linear map becomes a ``MatMulNBits``. Its
weight is quantized in blocks of :data:`ROUNDING_BLOCK` along the contracted axis; each block has its own scale and zero
point. Activations and cache stay float32. Embedding tables are stored as float16: fewer bits would cost quality and
save no arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from ...ir.errors import FxpruneError, class_and_first_line
from ...runtime.quiet import quiet
from ...runtime.reporting import counting

BITS = {"int8": 8, "int4": 4}
ROUNDING_BLOCK = 32

# The squares of 256 and more overflow float16, and a normalisation in standard operators computes squares.
_FLOAT32_OPERATORS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal")
# From position 1024 on, the angle of a rotary embedding in float16 is wrong by up to half a radian.
_ANGLES = ("Cos", "Sin")


def convert_weights(path: Path, dtype: str, data: str, *, keep: Sequence[str] = ("logits",)) -> None:
    """Rewrite an exported graph and its external data, in place.

    Args:
        path: the ``.onnx`` file, float32.
        dtype: ``float16``, ``int8`` or ``int4``.
        data: name of the file of the weights beside it.
        keep: names of the inputs and outputs that stay float32 even if the arithmetic does not.

    Raises:
        FxpruneError: the graph has no weights to convert, or the tool fails.
    """
    model = onnx.load(path)  # with its external data
    try:
        with quiet(), _silent_tools():
            model = _to_float16(model, keep) if dtype == "float16" else _to_integers(model, BITS[dtype])
    except FxpruneError:
        raise
    # The tools raise exceptions of many types.
    except Exception as error:
        raise FxpruneError(
            f"ONNX Runtime's tools cannot convert the graph to {dtype}: {class_and_first_line(error)}",
            "try `--optimize none`, or `--dtype float32`, which needs no conversion",
        ) from error
    program = ir.from_proto(model)
    program.graph.sort()  # the converter adds its casts at the end
    path.with_name(data).unlink()
    save_graph(program, path, data)


def save_graph(program: ir.Model, path: Path, data: str) -> None:
    """Write the graph to ``path``, and its weights to the file ``data`` beside it.

    Protobuf limits ``path`` to 2 GB, so all but very small tensors are always written to ``data``.
    """
    with counting("tensors") as advance:
        ir.save(program, path, external_data=data, callback=lambda _tensor, info: advance(total=info.total))


def _to_float16(model: onnx.ModelProto, keep: Sequence[str]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    kept = _kept_float32(model.graph)
    # The converter casts every value of known type that a kept node reads or writes, even between two kept nodes.
    inner = _inside(model.graph, kept)
    known = [value for value in model.graph.value_info if value.name not in inner]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)
    return convert_float_to_float16(
        model,
        keep_io_types=list(keep),
        disable_shape_infer=True,
        op_block_list=DEFAULT_OP_BLOCK_LIST,
        node_block_list=sorted(kept),
    )


def _kept_float32(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that stay float32: those of :data:`_FLOAT32_OPERATORS`, nodes between two of them, and all
    nodes from which the argument of one of :data:`_ANGLES` is computed."""
    makers = {output: node for node in graph.node for output in node.output}
    kept = {node.name for node in graph.node if node.op_type in (*_FLOAT32_OPERATORS, *_ANGLES)}
    waiting = [name for node in graph.node if node.op_type in _ANGLES for name in node.input]
    seen: set[str] = set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            waiting.extend(node.input)
    kept |= seen
    followed = {name for node in graph.node if node.name in kept for name in node.input}
    between = {
        node.name
        for node in graph.node
        if any(name in makers and makers[name].name in kept for name in node.input)
        and any(name in followed for name in node.output)
    }
    return kept | between


def _inside(graph: onnx.GraphProto, kept: set[str]) -> set[str]:
    """Names of the values that a node of ``kept`` writes and only such nodes read."""
    inner = {name for node in graph.node if node.name in kept for name in node.output}
    read = {name for node in graph.node if node.name not in kept for name in node.input}
    return inner - read - {value.name for value in graph.output}


def _to_integers(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _separate_tied_head(model.graph)
    quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=ROUNDING_BLOCK, is_symmetric=False)
    quantizer.process()
    converted: onnx.ModelProto = quantizer.model.model
    if not any(node.op_type == "MatMulNBits" for node in converted.graph.node):
        raise FxpruneError(
            f"the graph has no linear map that can be stored as int{bits}", "use --dtype float32 or --dtype float16"
        )
    _halve_tables(converted.graph)
    return converted


def _separate_tied_head(graph: onnx.GraphProto) -> None:
    """Give an output head that multiplies with the transposed embedding table its own matrix, so that it can be
    quantized."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = node.op_type == "FusedMatMul" and options.pop("transB", 0) == 1 and options.pop("alpha", 1.0) == 1.0
        if not plain or any(options.values()) or node.input[1] not in tensors:
            continue
        own = f"{node.input[1]}.transposed"
        if own not in tensors:
            table = numpy_helper.to_array(tensors[node.input[1]])
            tensors[own] = numpy_helper.from_array(np.ascontiguousarray(table.T), own)
            graph.initializer.append(tensors[own])
        linear = onnx.helper.make_node("MatMul", [node.input[0], own], node.output, name=node.name)
        node.CopyFrom(linear)


def _halve_tables(graph: onnx.GraphProto) -> None:
    """Store float32 tables that are used only for look-ups as float16, and convert the looked-up rows to float32."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        table = tensors.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or any(other.op_type != "Gather" for other in readers[table.name]):
            continue
        if table.data_type == onnx.TensorProto.FLOAT:
            table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table).astype(np.float16), table.name))
        if table.data_type == onnx.TensorProto.FLOAT16:
            wide, narrow = node.output[0], f"{node.output[0]}.float16"
            node.output[0] = narrow
            nodes.append(
                onnx.helper.make_node("Cast", [narrow], [wide], name=f"{node.name}.widen", to=onnx.TensorProto.FLOAT)
            )
    del graph.node[:]
    graph.node.extend(nodes)


@contextlib.contextmanager
def _silent_tools() -> Iterator[None]:
    """Keep the messages of the tools off stderr: importing them configures the root logger, and they log every node."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
