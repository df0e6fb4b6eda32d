"""The text form of a graph: it parses back to the same text, and says where a mistake is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.ir import RequestError
from fxprune.ir.graph import DType, Graph, Op, Parameter, Source, Value
from fxprune.ir.parser import parse_graph
from fxprune.ir.text import print_graph

MLP = """\
graph @mlp(%x: f32[b, 16]) -> %y where b=2
  %fc1.weight = param "fc1.weight" = "tied.weight" : f32[64, 16]
  %fc1.scale = buffer "fc1.scale" : f32[64]
  %c = constant : i64[b]
  fold %table = aten.arange(64) : i64[64]
  %h = aten.linear(%x, %fc1.weight, none) : f32[b, 64]  # fc1 model.py:7
  %a, _ = aten.max.dim(%h, 1, true) : f32[b, 1], _
  %y = aten.relu(%h) : f32[b, 64]  # act
group model:width size 64: fc1.weight.0
"""


def test_the_text_form_reads_back() -> None:
    graph = parse_graph(MLP)
    assert print_graph(graph, ["group model:width size 64: fc1.weight.0"]) == MLP
    (weight, scale) = graph.parameters
    assert (weight.name, weight.aliases, weight.is_buffer) == ("fc1.weight", ("tied.weight",), False)
    assert scale.is_buffer
    assert graph.extents == {"b": 2}
    assert graph.inputs[0].shape == (2, 16)
    assert graph.folded[0].target == "aten.arange"
    linear, largest, relu = graph.ops
    assert linear.args == (graph.inputs[0], weight.value, None)
    assert linear.source == Source("fc1", "model.py", 7)
    assert relu.source == Source("act")
    assert (largest.packet, largest.results[1]) == ("aten.max", None)
    assert graph.outputs == [relu.result]


NAMES = st.text("abcxyz_019", min_size=1, max_size=4).filter(lambda name: name != "_")
WORDS = st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "none", "inf", "nan")
)
"""Of keywords and extents."""
DTYPES = st.sampled_from([DType(name) for name in ("f32", "bf16", "i64", "b8", "c128", "u8")])
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-99, 2**63), st.floats(), st.text(max_size=5), DTYPES)
PLACES = st.one_of(
    st.builds(Source),
    st.builds(Source, st.sampled_from(["fc1", "layers.0.mlp"])),
    st.builds(Source, st.sampled_from(["", "layers.0.mlp"]), st.just("package/model.py"), st.integers(1, 999)),
)


@st.composite
def graphs(draw: Any) -> Graph:
    """Well-formed by name only: the text form does not know the operators."""
    graph = Graph(draw(NAMES), extents=draw(st.dictionaries(WORDS, st.integers(2, 9), max_size=2)))
    values: list[Value] = []

    def value() -> Value:
        path = ".".join(draw(st.lists(NAMES, min_size=1, max_size=2)))
        values.append(Value(f"{path}-{len(values)}", draw(DTYPES), draw(SHAPES)))
        return values[-1]

    def op() -> Op:
        known = list(values)
        leaf = st.one_of(SCALARS, st.sampled_from(known)) if known else SCALARS
        args = draw(st.lists(st.one_of(leaf, st.lists(leaf, max_size=2).map(tuple)), max_size=3).map(tuple))
        kwargs = draw(st.dictionaries(WORDS, leaf, max_size=2))
        results = tuple(value() if draw(st.booleans()) else None for _ in range(draw(st.integers(1, 2))))
        target = draw(st.sampled_from(["aten.add.Tensor", "aten.linear", "fxprune.take"]))
        return Op(target, args, kwargs, results, draw(PLACES))

    graph.inputs = [value() for _ in range(draw(st.integers(0, 2)))]
    for index in range(draw(st.integers(0, 2))):
        aliases = tuple(draw(st.lists(st.text(max_size=4), max_size=1)))
        graph.parameters.append(Parameter(value(), f"weight{index}", aliases, draw(st.booleans())))
    graph.constants = [value() for _ in range(draw(st.integers(0, 1)))]
    graph.folded = [op() for _ in range(draw(st.integers(0, 1)))]
    graph.ops = [op() for _ in range(draw(st.integers(0, 3)))]
    if not values:
        graph.constants.append(value())
    graph.outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2))
    return graph


def plain(arg: Any) -> Any:
    """Equality of arguments that knows values by name, and that nan is nan."""
    if isinstance(arg, Value):
        return (arg.name, arg.dtype, arg.shape)
    if isinstance(arg, tuple):
        return tuple(map(plain, arg))
    return "nan" if isinstance(arg, float) and math.isnan(arg) else (type(arg), arg)


def content(graph: Graph) -> Any:
    """Everything that a graph says."""
    ops = [
        [
            (op.target, plain(op.args), {k: plain(v) for k, v in op.kwargs.items()}, plain(op.results), op.source)
            for op in part
        ]
        for part in (graph.folded, graph.ops)
    ]
    leaves = [plain(tuple(part)) for part in (graph.inputs, graph.constants, graph.outputs)]
    held = [(plain(p.value), p.name, p.aliases, p.is_buffer) for p in graph.parameters]
    return graph.name, graph.extents, leaves, held, ops


@given(graph=graphs())
def test_any_graph_round_trips(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert content(again) == content(graph)
    assert print_graph(again) == text


HEAD = "graph @g(%x: f32[b, 4]) -> %x where b=2\n"
ERRORS = {
    "": ("the text has no graph", ""),
    "graph @g(%x: f32[4]) -> %y": ("the output %y is not defined", ""),
    "module @g(%x: f32[4]) -> %x": ("line 1: expected 'graph'", "^module"),
    "graph g": ("line 1: expected '('", "graph g^"),
    "graph (": ("line 1: expected @name", "graph ^("),
    "graph @g(x: f32[4]) -> %x": ("line 1: expected an input", "(^x"),
    "graph @g(%x f32[4]) -> %x": ("line 1: expected ':'", "%x ^f32"),
    "graph @g(%x: f32[4]) %x": ("line 1: expected '->'", ") ^%x"),
    "graph @g(%x: f32[4]) -> y": ("line 1: expected an output", "-> ^y"),
    "graph @g(%x: f32[4], %x: f32[4]) -> %x": ("line 1: %x is defined twice", "g(^%x"),
    "graph @g(%x: f32[4]) -> %x, 3": ("line 1: expected an output", "%x, ^3"),
    "graph @g(%x: f32[4]) -> %x where b 3": ("line 1: expected '='", "b ^3"),
    "graph @g(%x: f32[4]) -> %x where b=c": ("line 1: expected an extent", "b=^c"),
    "graph @g(%x: f32[4]) -> %x where =3": ("line 1: expected the name of an extent", "where ^=3"),
    "graph @g(%x: f32[4]) -> %x wher b=3": ("line 1: expected the end of the line", "%x ^wher"),
    HEAD + "  %y = aten.relu(%x) : f32[b, 4] f32": ("line 2: expected the end of the line", "] ^f32"),
    HEAD + "  %y = aten.relu(%x) ; f32": ("line 2: this is not part of the text form", ")^ ;"),
    HEAD + "  %y = aten.relu(%z) : f32[b, 4]": ("line 2: %z is used before it is defined", "(^%z"),
    HEAD + "  %x = aten.relu(%x) : f32[b, 4]": ("line 2: %x is defined twice", "  ^%x ="),
    HEAD + "  %y = aten.relu(%x) : q7[b, 4]": ("line 2: 'q7' is not a dtype", ": ^q7"),
    HEAD + "  %y = aten.relu(%x) : [4]": ("line 2: expected a type such as f32[2, 4]", ": ^[4]"),
    HEAD + "  %y = aten.relu(%x) : f32 4": ("line 2: expected '['", "f32 ^4"),
    HEAD + "  %y = aten.relu(%x) : f32[s]": ("line 2: the extent 's' is not in the header's where clause", "[^s]"),
    HEAD + "  %y = aten.relu(%x) : f32[2.5]": ("line 2: 2.5 is not an integer", "[^2.5"),
    HEAD + "  %y = aten.relu(%x) : f32[2": ("line 2: expected an extent", "[2^"),
    HEAD + "  %y = aten.relu(%x, =) : f32[4]": ("line 2: expected an argument", ", ^=)"),
    HEAD + "  %y = aten.relu %x : f32[4]": ("line 2: expected '('", "relu ^%x"),
    HEAD + "  %y = aten.relu(%x)": ("line 2: expected ':'", ")^"),
    HEAD + "  %y = 3": ("line 2: expected an operator, param, buffer or constant", "= ^3"),
    HEAD + "  relu(%x) : f32[4]": ("line 2: expected a result", "  ^relu"),
    HEAD + '  _ = param "w" : _': ("line 2: a param has one name on the left, %NAME", "  ^_"),
    HEAD + '  %v, %w = buffer "w" : f32[4], f32[4]': ("line 2: a buffer has one name on the left, %NAME", "  ^%v"),
    HEAD + "  %w = param w : f32[4]": ("line 2: expected a name in quotes", "param ^w"),
    HEAD + '  %w = param "\\q" : f32[4]': ('line 2: "\\q" is not a JSON string', 'param ^"'),
    HEAD + "  _, %y = aten.max(%x) : f32[4]": ("line 2: expected '_'", ": ^f32"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), ERRORS.items(), ids=[message for message, _ in ERRORS.values()])
def test_a_mistake_is_shown_where_it_is(text: str, wanted: tuple[str, str]) -> None:
    message, place = wanted
    with pytest.raises(RequestError) as caught:
        parse_graph(text)
    assert caught.value.exit_code == 2
    first, *drawing = caught.value.message.splitlines()
    assert first == message
    if place:
        line, caret = drawing
        column = caret.index("^")
        assert caret == " " * column + "^"
        assert place in line[:column] + "^" + line[column:]
    else:
        assert caught.value.hint
