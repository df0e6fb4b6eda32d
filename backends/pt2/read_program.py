"""Makes a module of an exported program from data alone: each operator of its graph is looked up in a table.

Nothing in the file is evaluated, and no name in it reaches the generated code unchecked. Extents that depend on the
inputs are computed by operators of the graph, so the expressions in the file are not needed.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._export.serde import serialize as serde
from torch._export.serde.schema import ArgumentKind
from torch.export._unlift import _get_codegen
from torch.utils import _pytree as pytree

from ...ir.errors import RequestError
from ..own_names import attach, graph_module, own_name
from .archive import MODEL, ProgramArchive, scalar_type

_OF_EXTENTS = (
    "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge", "getitem",
)  # fmt: skip
_SYMBOLS = ("sym_max", "sym_min", "sym_not", "sym_int", "sym_float", "sym_ite", "sym_sum")
EXTENT_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (*_OF_EXTENTS, "and_", "or_")},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLS},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
}
"""The functions of a graph that are no operators of torch: they compute extents."""

READS_FILES = ("filename",)
"""Arguments of operators that open files."""

SPECS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
"""The kinds of nested inputs and outputs."""

_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z]\w*|_[A-Za-z]\w*)\.([A-Za-z]\w*)", re.ASCII)
_TENSOR_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
_FLOATS = ("Infinity", "-Infinity", "NaN")


def read_program(path: Path) -> nn.Module:
    """The module of an exported program, in evaluation mode.

    Args:
        path: the file.

    Raises:
        RequestError: it holds what is not data, or is damaged, or its graph needs more than operators of ``aten``.
    """
    with ProgramArchive(path) as archive:
        try:
            return _Reading(archive).module()
        except RequestError:
            raise
        except (Exception, RecursionError) as error:  # data of another form may raise any exception
            raise RequestError(
                f"{path} is damaged: {type(error).__name__}: {error}", "write the artifact again"
            ) from error


@dataclass(frozen=True)
class ExpectedInputs:
    """Refuses inputs of other shapes than the program is for, before it runs.

    Attributes:
        names: of the arguments.
        shapes: for each flat input, its extents; None for one that may vary, and for what is no tensor.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...] | None, ...]

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {**dict(zip(self.names, args, strict=False)), **kwargs}
        leaves = pytree.tree_leaves([named.get(name) for name in self.names])
        for given, shape in zip(leaves, self.shapes, strict=False):  # a wrong number of them is the program's to refuse
            if shape is None or not isinstance(given, torch.Tensor):
                continue
            pairs = zip(given.shape, shape, strict=False)
            if given.dim() != len(shape) or any(wanted not in (None, size) for size, wanted in pairs):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise RuntimeError(f"the program takes an input of shape [{wanted}], not {list(given.shape)}")


class _Reading:
    def __init__(self, archive: ProgramArchive) -> None:
        self.archive = archive
        self.data: Mapping[str, Any] = archive.parsed(MODEL)["graph_module"]
        self.tensors = archive.tensors()
        self.root, self.fx = nn.Module(), fx.Graph()
        self.values: dict[str, Any] = {}
        self.operators = frozenset(torch._C._dispatch_get_all_op_names())

    def module(self) -> nn.Module:
        shapes = self._inputs()
        for node in self.data["graph"]["nodes"]:
            self._node(node)
        self.fx.output(self._outputs())
        call = self.data["module_call_graph"][0]["signature"]
        inputs, outputs = (self._spec(call[name]) for name in ("in_spec", "out_spec"))
        if inputs.num_leaves != len(shapes):
            raise ValueError(f"it has {len(shapes)} inputs, and says {inputs.num_leaves}")
        names = call.get("forward_arg_names")
        for name in [*(names or []), *inputs.child(1).context]:
            if not name.isidentifier() or keyword.iskeyword(name) or name == "self":
                raise ValueError(f"an input is called {name!r}")
        self.fx._codegen = _get_codegen(inputs, outputs, names)
        self.fx.lint()
        made = graph_module(self.root, self.fx, "Program").eval()
        expected = ExpectedInputs(tuple(self.fx._codegen.pytree_info.orig_args), tuple(shapes))
        made.register_forward_pre_hook(expected, with_kwargs=True)
        return made

    def _inputs(self) -> list[tuple[int | None, ...] | None]:
        """Make a node for each input, and for each tensor that the module holds; returns the shapes of the inputs."""
        shapes: list[tuple[int | None, ...] | None] = []
        for spec in self.data["signature"]["input_specs"]:
            ((kind, about),) = spec.items()
            if kind == "user_input":
                ((form, value),) = about["arg"].items()
                node = self.fx.placeholder(f"input_{len(shapes)}")
                if form == "as_tensor":
                    self.values[value["name"]] = node
                    sizes = self.data["graph"]["tensor_values"][value["name"]]["sizes"]
                    shapes.append(tuple(size.get("as_int") for size in sizes))
                else:
                    if isinstance(value, dict) and "as_name" in value:
                        self.values[value["as_name"]] = node
                    shapes.append(None)
            elif kind == "constant_input":
                self.fx.placeholder(f"input_{len(shapes)}")
                shapes.append(None)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self.values[about["arg"]["name"]] = self._held(about[f"{kind}_name"])
            else:
                raise self.archive.refused(f"needs a {kind.replace('_', ' ')}")
        return shapes

    def _held(self, name: str) -> fx.Node:
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"a tensor is called {name!r}")
        return self.fx.get_attr(attach(self.root, own_name(name), self.tensors[name]))

    def _node(self, node: Mapping[str, Any]) -> None:
        target = self._operator(node["target"])
        known = {argument.name for argument in target._schema.arguments} if hasattr(target, "_schema") else set()
        args, kwargs = [], {}
        for given in node["inputs"]:
            if given["kind"] == ArgumentKind.KEYWORD:
                if given["name"] not in known:
                    raise ValueError(f"{node['target']} has no argument {given['name']!r}")
                kwargs[given["name"]] = self._argument(given["arg"])
            else:
                args.append(self._argument(given["arg"]))
        made = self.fx.call_function(target, tuple(args), kwargs)
        outputs = [next(iter(output.items())) for output in node["outputs"]]
        if len(outputs) == 1 and outputs[0][0] == "as_tensors":
            outputs = [("as_tensor", value) for value in outputs[0][1]]
        elif len(outputs) == 1:
            form, value = outputs[0]
            self._name(form, value, made)
            return
        for index, (form, value) in enumerate(outputs):
            if form != "as_none":
                self._name(form, value, self.fx.call_function(operator.getitem, (made, index)))

    def _name(self, form: str, value: Any, made: fx.Node) -> None:
        if form not in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            raise self.archive.refused(f"holds an operator that returns {form.removeprefix('as_')!r}")
        self.values[value["name" if form == "as_tensor" else "as_name"]] = made

    def _operator(self, target: str) -> Any:
        if target in EXTENT_FUNCTIONS:
            return EXTENT_FUNCTIONS[target]
        match = _OPERATOR.fullmatch(target)
        found = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
        if not isinstance(found, torch._ops.OpOverload) or found.name() not in self.operators:
            raise self.archive.refused(f"calls {target!r}, which is no operator of aten")
        if any(argument.name in READS_FILES for argument in found._schema.arguments):
            raise self.archive.refused(f"calls {target!r}, which opens files")
        return found

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((form, value),) = argument.items()
        if form in ("as_tensor", "as_name"):
            return self.values[value["name"] if form == "as_tensor" else value]
        if form in ("as_sym_int", "as_sym_bool", "as_sym_float", "as_optional_tensor"):
            return self._argument(value)
        if form in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self.values[item["name"]] if "name" in item else self._argument(item) for item in value]
        if form == "as_nested_tensors":
            return [[self.values[item["name"]] for item in items] for items in value]
        if form in CONSTANT:
            return CONSTANT[form](value)
        if form.removesuffix("s") in CONSTANT:
            return [CONSTANT[form.removesuffix("s")](item) for item in value]
        raise self.archive.refused(f"gives an operator a {form.removeprefix('as_').replace('_', ' ')}")

    def _outputs(self) -> tuple[Any, ...]:
        found = []
        for spec in self.data["signature"]["output_specs"]:
            ((kind, about),) = spec.items()
            if kind == "user_output":
                found.append(self._argument(about["arg"]))
            elif kind == "buffer_mutation":
                value = self.values[about["arg"]["name"]]
                held = self.fx.get_attr(about["buffer_name"]) if _TENSOR_NAME.fullmatch(about["buffer_name"]) else None
                self.fx.call_function(torch.ops.aten.copy_.default, (held, value))
            else:
                raise self.archive.refused(f"has a {kind.replace('_', ' ')}")
        return tuple(found)

    def _spec(self, text: str) -> pytree.TreeSpec:
        """How inputs or outputs are nested, compared with the kinds that are data."""
        version, spec = json.loads(text)
        if version != 1:
            raise ValueError(f"version {version} of nested inputs")
        pending = [spec]
        while pending:
            part = pending.pop()
            context = json.loads(part["context"]) if part["context"] is not None else None
            plain = context is None or (
                isinstance(context, list) and all(isinstance(key, str | int) for key in context)
            )
            if part["type"] not in SPECS or not plain:
                raise self.archive.refused(f"takes or returns a {part['type']}")
            pending += part["children_spec"]
        return pytree.treespec_loads(text)


def _of(kind: type) -> Callable[[Any], Any]:
    def same(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"{value!r} is not of type {kind.__name__}")
        return value

    return same


def _number(value: Any) -> float:
    if type(value) not in (int, float) and value not in _FLOATS:
        raise ValueError(f"{value!r} is no number")
    return float(value)


CONSTANT: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": _of(int),
    "as_bool": _of(bool),
    "as_string": _of(str),
    "as_float": _number,
    "as_complex": lambda value: complex(_number(value["real"]), _number(value["imag"])),
    "as_scalar_type": scalar_type,
    "as_memory_format": serde._SERIALIZE_TO_TORCH_MEMORY_FORMAT.__getitem__,
    "as_layout": serde._SERIALIZE_TO_TORCH_LAYOUT.__getitem__,
    "as_device": lambda value: torch.device(value["type"], value["index"]),
}
"""How each kind of constant argument is read."""
