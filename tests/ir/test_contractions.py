"""What rules say of contractions: checked against the axes that they tie, against torch's own count and signatures."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fxprune.ir.axes import Axis, atoms_of
from fxprune.ir.cost import macs_of
from fxprune.ir.graph import Op, Value
from fxprune.ir.parser import parse_graph
from fxprune.ir.rules import RULES, Contraction
from fxprune.ir.rules.contraction import Product
from fxprune.ir.rules.recurrent import RECURRENT_RULES
from fxprune.passes.calibrate.linear_calls import RECORDED

from ..test_house import ROOT, python_files
from .replay import Example, example, run
from .rule_rows import Row
from .test_rules import ROWS, draw

CONTRACTIONS: dict[str, Contraction] = {
    packet: rule.contracts for packet, rule in RULES.items() if rule.contracts is not None
}

FURTHER = [
    Row("%x: f64[2, 3, 4, 5], %y: f64[2, 3, 5, 4]", 'aten.einsum("...ij, ...jk", [%x, %y])', ""),
    Row("%x: f64[2, 3, 4], %y: f64[2, 3]", 'aten.einsum("bij,bi->j", [%x, %y])', ""),
    Row("%x: f64[2, 4, 7], %w: f64[4, 1, 3]", "aten.conv_transpose1d(%x, %w, none, [1], [0], [0], 4)", ""),
    Row("%x: f64[2, 4, 7], %w: f64[4, 3, 3]", "aten.conv_transpose1d(%x, %w, none, [1], [0], [0], 4)", ""),
]


def packet(call: str) -> str:
    return ".".join(call.partition("(")[0].split(".")[:2])


VECTORS = [
    ("%x: f64[4], %w: f64[4]", "aten.linear(%x, %w)", 4),
    ("%x: f64[3, 4], %w: f64[4]", "aten.linear(%x, %w)", 12),
    ("%x: f64[4], %w: f64[5, 4]", "aten.linear(%x, %w)", 20),
    ("%x: f64[2, 3, 4], %w: f64[5, 4]", "aten.linear(%x, weight=%w)", 120),
    ("%x: f64[3, 4], %y: f64[4]", "aten.matmul(%x, %y)", 12),
    ("%x: f64[3, 4], %y: f64[4]", "aten.mv(%x, %y)", 12),
    ("%b: f64[3], %x: f64[3, 4], %y: f64[4]", "aten.addmv(%b, %x, %y)", 12),
    ("%x: f64[4], %y: f64[4]", "aten.vdot(%x, %y)", 4),
    ("%x: f64[2, 3, 4], %y: f64[3, 4]", "aten.linalg_vecdot(%x, %y)", 24),
    ("%x: f64[4], %y: f64[6, 4, 5]", "aten.matmul(%x, %y)", 120),
]
"""Calls with vectors, of which torch counts no operations, and the multiplications by hand."""

CASES = [row for row in [*ROWS, *FURTHER] if packet(row.call) in CONTRACTIONS]

NOT_MULTIPLIED = {
    "aten.cdist": "distances: what goes is no product", "aten._cdist_forward": "distances: what goes is no product",
}  # fmt: skip
"""Rules by which two operands share an axis that the result lacks, though nothing is multiplied."""


def case_of(row: Row) -> Example:
    return example(row.operands, row.call, draw)


def said(op: Op) -> Contraction:
    return CONTRACTIONS[op.packet]


def shared_and_gone(case: Example) -> set[int]:
    """Atoms that several operands hold and no result does."""
    held = Counter(atom for value in case.data for atom in {a.id for axis in case.axes[value] for a in atoms_of(axis)})
    alive = {atom.id for value in case.op.made for axis in case.axes[value] for atom in atoms_of(axis)}
    return {atom for atom, count in held.items() if count > 1 and atom not in alive}


def test_a_rule_that_sums_products_says_so() -> None:
    summing = {packet(row.call) for row in ROWS if shared_and_gone(case_of(row))}
    assert summing == set(CONTRACTIONS) | set(NOT_MULTIPLIED)


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_a_contraction_lacks_no_part(name: str) -> None:
    contraction = CONTRACTIONS[name]
    rows = [row for row in CASES if packet(row.call) == name]
    assert rows
    op = case_of(rows[0]).op
    products = contraction.read(op)  # not ``products``, which gives none where something is wrong
    assert products
    assert all(product.summed() and len(product.factors) > 1 for product in products)
    assert contraction.macs(op) > 0
    if contraction.weight:
        assert isinstance(contraction.weight_of(op), Value)
        assert contraction.taken_in(op)
    assert bool(contraction.unrecorded) != (contraction in RECORDED.values())


def test_no_other_file_knows_contractions_by_name() -> None:
    found = {}
    for path in python_files():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & set(CONTRACTIONS)
        if named and path.parts[:2] != ("ir", "rules"):
            found[path.as_posix()] = named
    assert found == {}


def test_what_calibration_records_has_a_weight_and_an_input() -> None:
    for contraction in RECORDED.values():
        assert {contraction.weight, contraction.input, contraction.bias} - {""} <= set(contraction.arguments)
        assert set(contraction.plain) <= {*contraction.arguments, "alpha", "beta"}
        assert contraction.weight != contraction.input
        assert contraction.summed is not None


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_arguments_have_the_names_of_torchs_signature(name: str) -> None:
    overload = getattr(torch.ops.aten, name.removeprefix("aten."))
    schema = getattr(overload, overload.overloads()[0])._schema
    names = ["input" if a.name == "self" else a.name for a in schema.arguments]
    names = {"operands" if n == "tensors" else n: None for n in names}
    assert tuple(names)[: len(CONTRACTIONS[name].arguments)] == CONTRACTIONS[name].arguments


@pytest.mark.parametrize("row", CASES, ids=lambda row: f"{row.call} {row.operands}")
def test_dimensions_of_one_word_are_one_axis_and_the_summed_ones_go(row: Row) -> None:
    case = case_of(row)
    products = said(case.op).read(case.op)
    assert products
    for product in products:
        words: dict[str, set[Axis]] = {}
        for value, dims in (*product.factors, product.result):
            if value is None:
                continue
            assert len(dims) == len(value.shape)
            for word, axis in zip(dims, case.axes[value], strict=True):
                if not word.startswith(".") and axis.size > 1:
                    words.setdefault(word, set()).add(axis)
        assert all(len(axes) == 1 for axes in words.values()), words
        alive = {atom.id for value in case.op.made for axis in case.axes[value] for atom in atoms_of(axis)}
        if product.result[0] is not None:
            gone = {a.id for word in product.summed() & words.keys() for axis in words[word] for a in atoms_of(axis)}
            assert not gone & alive


UNCOUNTED = {f"aten.{name}" for name in ("bilinear", "mv", "addmv", "dot", "vdot", "linalg_vecdot")}
COUNTED = [row for row in CASES if packet(row.call) not in UNCOUNTED and row.call != "aten.matmul(%x, %y)"]
"""Torch counts no operations of bilinear, and none of products with a vector."""


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{row.call} {row.operands}")
def test_multiply_accumulates_are_those_that_torch_counts(row: Row) -> None:
    case = case_of(row)
    with FlopCounterMode(display=False) as counter:
        run(case.op, case.data)
    assert macs_of(case.op) == counter.get_total_flops() // 2


@pytest.mark.parametrize("row", CASES, ids=lambda row: f"{row.call} {row.operands}")
def test_what_is_counted_at_once_is_what_the_products_say(row: Row) -> None:
    op = case_of(row).op
    products = said(op).read(op)
    words = {word for product in products for _, dims in (*product.factors, product.result) for word in dims}
    if all(extents_are_told(product) for product in products) and not any(" " in word for word in words):
        assert macs_of(op) == sum(product.multiplications() for product in products)
    else:
        assert "conv" in op.packet or op.packet in RECURRENT_RULES


def extents_are_told(product: Product) -> bool:
    """Whether a tensor has the extent of every word; one that the operator keeps to itself has none."""
    places = (*product.factors, product.result)
    told = {word for value, dims in places if value is not None for word in dims}
    return {word for _, dims in places for word in dims} <= told


@pytest.mark.parametrize(("operands", "call", "multiplications"), VECTORS)
def test_vectors_and_named_operands_are_counted(operands: str, call: str, multiplications: int) -> None:
    op = example(operands, call, draw).op
    assert macs_of(op) == multiplications
    assert sum(product.multiplications() for product in said(op).read(op)) == multiplications


TAKEN_IN = [
    ("%x: f64[2, 4], %w: f64[5, 4]", "aten.linear(%x, %w)", {1}),
    ("%b: f64[5], %x: f64[3, 4], %w: f64[4, 5]", "aten.addmm(%b, %x, %w)", {0}),
    ("%x: f64[2, 3, 4], %w: f64[2, 4, 5]", "aten.matmul(%x, %w)", {1}),
    ("%x: f64[3, 4], %w: f64[4]", "aten.matmul(%x, %w)", {0}),
    ("%b: f64[1, 3, 5], %x: f64[2, 3, 4], %w: f64[2, 4, 5]", "aten.baddbmm(%b, %x, %w)", {1}),
    ("%x: f64[2, 3], %y: f64[2, 4], %w: f64[5, 3, 4]", "aten.bilinear(%x, %y, %w)", {1, 2}),
    ("%x: f64[2, 4, 7], %w: f64[6, 4, 3]", "aten.conv1d(%x, %w)", {1}),
    ("%x: f64[2, 4, 7], %w: f64[4, 5, 3]", "aten.conv_transpose1d(%x, %w)", {0}),
    ("%x: f64[2, 4, 7], %w: f64[4, 5, 3]", "aten.conv_transpose1d(%x, %w, none, [1], [0], [0], 2)", {0}),
    ("%x: f64[2, 4, 7], %w: f64[4, 1, 3]", "aten.conv_transpose1d(%x, %w, none, [1], [0], [0], 4)", set()),
    ("%x: f64[2, 4, 7], %w: f64[6, 4, 3]", "aten.convolution(%x, %w, none, [1], [0], [1], false, [0], 1)", {1, 2}),
    ("%x: f64[2, 4, 7], %w: f64[4, 6, 3]", "aten.convolution(%x, %w, none, [1], [0], [1], true, [0], 1)", {0}),
]


RECURRENT_TAKEN_IN = [
    (
        "%x: f64[3, 2, 5], %h: f64[2, 2, 3], %c: f64[2, 2, 4], %i: f64[16, 5], %r: f64[16, 3], %p: f64[3, 4], "
        "%j: f64[16, 3], %s: f64[16, 3], %q: f64[3, 4]",
        "aten.lstm.input(%x, [%h, %c], [%i, %r, %p, %j, %s, %q], false, 2, 0.0, false, false, false)",
    ),
    ("%x: f64[2, 5], %h: f64[2, 4], %i: f64[12, 5], %r: f64[12, 4]", "aten.gru_cell(%x, %h, %i, %r)"),
]


@pytest.mark.parametrize(("operands", "call"), RECURRENT_TAKEN_IN)
def test_every_weight_of_a_recurrence_takes_units_in_along_its_columns(operands: str, call: str) -> None:
    """The state lives on in the result, and yet the columns that it meets are summed over."""
    op = example(operands, call, draw).op
    weights = [value for value in op.operands if value.name in "irpjsq"]
    assert len(weights) == call.count("%") - (3 if "lstm" in call else 2)
    assert all(said(op).taken_in(op, weight) == {1} for weight in weights)


@pytest.mark.parametrize(("operands", "call", "dims"), TAKEN_IN)
def test_the_dimensions_of_a_weight_that_take_units_in(operands: str, call: str, dims: set[int]) -> None:
    """Positions of a kernel are in where they are summed over; nothing asks for them, as they are frozen."""
    op = example(operands, call, draw).op
    assert said(op).taken_in(op) == dims


def test_a_call_without_words_multiplies_nothing_that_is_known() -> None:
    graph = parse_graph(
        "graph @g(%x: f32[2, 3], %w: f32[4, 5, 3]) -> %y\n  %y = aten.mm(%x, %w) : f32[2, 4]\n"
        '  %z = aten.einsum("ij,jk", [%x]) : f32[2, 2]'
    )
    for op in graph.ops:
        assert said(op).products(op) == ()
        assert said(op).taken_in(op) <= {0, 1}
    assert macs_of(graph.ops[1]) == 0
