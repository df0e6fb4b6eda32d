"""Graph, Op, Value: a traced model as plain data. Shapes are integers; dtypes and operators are names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype by its short name: ``f32``, ``bf16``, ``i64``, ``b8``, …"""

    name: str

    @property
    def is_float(self) -> bool:
        return self.name.startswith(("f", "bf"))


@dataclass(frozen=True, slots=True)
class Source:
    """The place in the model's code that an operator comes from.

    Attributes:
        module: path of the module whose forward ran it; ``""`` for the root.
        file: file relative to its import root, never absolute; ``""`` when unknown.
        line: line in ``file``.
        code: the text of that line; not printed.
    """

    module: str = ""
    file: str = ""
    line: int = 0
    code: str = field(default="", compare=False)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        return " ".join(part for part in (self.module, place) if part)


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in the graph; compared by identity.

    Attributes:
        name: unique in its graph, printed as ``%name``.
        dtype: element type.
        shape: extents of all dimensions.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"%{self.name}"


Scalar = int | float | bool | str | DType | None
Arg = Value | Scalar | tuple["Arg", ...]


@dataclass(eq=False, slots=True)
class Op:
    """One call of an operator.

    Attributes:
        target: the operator with its overload: ``aten.linear`` (default overload) or ``aten.add.Tensor``.
        args, kwargs: operands and attributes, nested as in the operator's schema.
        results: the tensors that it returns; None for a position of a tuple that is not a tensor.
        source: the place in the model's code.
    """

    target: str
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    results: tuple[Value | None, ...]
    source: Source = Source()

    @property
    def packet(self) -> str:
        """The operator without its overload: ``aten.add`` for ``aten.add.Tensor``."""
        return ".".join(self.target.split(".")[:2])

    @property
    def result(self) -> Value:
        """The first result."""
        first = self.results[0]
        assert first is not None, f"{self.target} makes no tensor"
        return first

    @property
    def operands(self) -> Iterator[Value]:
        """All values in the arguments, in order."""
        for arg in (*self.args, *self.kwargs.values()):
            yield from values_in(arg)

    @property
    def made(self) -> Iterator[Value]:
        """All tensors that it returns."""
        return (value for value in self.results if value is not None)


def values_in(arg: Arg) -> Iterator[Value]:
    """The values in a nested argument, in order."""
    if isinstance(arg, Value):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from values_in(item)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer of the module.

    Attributes:
        value: its value in the graph.
        name: its first name in the module.
        aliases: other names of the same tensor (tied weights).
        is_buffer: whether it is a buffer, not a parameter.
    """

    value: Value
    name: str
    aliases: tuple[str, ...] = ()
    is_buffer: bool = False


@dataclass
class Graph:
    """A traced model.

    Attributes:
        name: name of the model.
        inputs: the input values.
        parameters: parameters and buffers, in module order.
        constants: tensors that the module's code creates and that have no name in the module.
        folded: operators that depend on no input and no parameter, at the shapes of the *dense* model. They run once;
            their results are constants for the other operators, and can be sliced like weights.
        ops: all other operators, in execution order.
        outputs: the output values.
        extents: named extents of the example inputs, such as ``b`` and ``s``.
    """

    name: str
    inputs: list[Value] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    constants: list[Value] = field(default_factory=list)
    folded: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    extents: dict[str, int] = field(default_factory=dict)

    def parameter_of(self) -> dict[Value, Parameter]:
        """Value -> its parameter, for the values of parameters."""
        return {parameter.value: parameter for parameter in self.parameters}

    def leaves(self) -> list[Value]:
        """Values that ``ops`` does not compute: inputs, parameters, constants, results of ``folded``."""
        folded = [value for op in self.folded for value in op.made]
        return [*self.inputs, *(p.value for p in self.parameters), *self.constants, *folded]

    def all_values(self) -> Iterator[Value]:
        """All values: leaves first, then results in execution order."""
        yield from self.leaves()
        for op in self.ops:
            yield from op.made
