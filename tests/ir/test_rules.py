"""Every operator rule: the coupling that it finds, replayed on real torch."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.ir.axes import Atom
from fxprune.ir.errors import UnsupportedCall
from fxprune.ir.graph import Op, Source, Value
from fxprune.ir.rules import FAMILIES, RULES, Equations
from fxprune.ir.rules.pointwise import NAMES
from fxprune.ir.rules.reduce import NORMALISED
from fxprune.ir.rules.rule import pattern
from fxprune.runtime.dtypes import DTYPES

from .replay import Example, check_cut, example, show
from .rule_rows import ROWS as COMMON
from .rule_rows import Row
from .rule_rows_convolution import CONVOLUTION
from .rule_rows_core import DECOMPOSED, WHOLE
from .rule_rows_matrices import INDEXED, MATRICES, QUANTISATION
from .rule_rows_recurrent import RECURRENT

WITHOUT_TAG = """
alias bernoulli complex contiguous detach detach_ divide dropout empty_like fill floor_divide full_like greater
greater_equal hardswish less less_equal lift_fresh lift_fresh_copy log_sigmoid multiply negative not_equal ones_like
polar rand_like randn_like special_expit special_expm1 special_log1p subtract to type_as zero zeros_like __and__ __or__
conj real imag _to_copy
"""
"""Pointwise by their documentation; torch tags only what its compiler generates code for. They are replayed too."""
OVERLOADS = {"fill": "Scalar", "full_like": "default", "to": "dtype", "masked_fill": "Scalar"}
"""Where the one that takes most tensors is not the one to try."""
ROWS = [*COMMON, *CONVOLUTION, *DECOMPOSED, *WHOLE, *RECURRENT, *MATRICES, *QUANTISATION, *INDEXED]
RANDOM = {"bernoulli", "empty_like", "rand_like", "randn_like"}


def draw(value: Value, generator: torch.Generator) -> torch.Tensor:
    """Data in eighths, of which products and sums are exact; indices that every axis has."""
    if value.dtype.name in ("f64", "f32"):
        return torch.randint(1, 8, value.shape, generator=generator).to(DTYPES[value.dtype.name]) / 8
    if value.dtype.name == "c128":
        return torch.complex(*(torch.rand(value.shape, generator=generator, dtype=torch.float64) for _ in range(2)))
    drawn = torch.randint(0, 2, value.shape, generator=generator)
    return drawn.to(DTYPES[value.dtype.name])


def cuts(atoms: list[Atom]) -> Iterator[dict[int, list[int]]]:
    """The first unit of one atom goes, the last, all but one; then one unit of every atom."""
    for atom in atoms:
        last = atom.size - 1
        yield from ({atom.id: units} for units in ([*range(1, last + 1)], [*range(last)], [last // 2]))
    yield {atom.id: [u for u in range(atom.size) if u != atom.size // 2] for atom in atoms}


def replay(case: Example, random: bool, zeroed: bool = False) -> None:
    for keep in cuts(case.free):
        if any(len(units) < case.least.get(atom, 1) for atom, units in keep.items()):
            continue
        normalised = any(NORMALISED in case.solution.marks.get(atom, ()) for atom in keep)
        check_cut(case, keep, exact=not random and not normalised, zeroed=zeroed)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.call} {row.operands}")
def test_a_row(row: Row) -> None:
    case = example(row.operands, row.call, draw)
    assert show(case) == row.terms
    replay(case, row.random, row.zeroed)


def pointwise_call(name: str) -> tuple[str, str]:
    """Operands and call of the overload of an operator that takes most tensors, from its schema."""
    packet = getattr(torch.ops.aten, name)

    def tensors(overload: str) -> int:
        arguments = getattr(packet, overload)._schema.arguments
        first = arguments and str(arguments[0].type) == "Tensor" and not any(a.is_out for a in arguments)
        return sum(str(a.type) in ("Tensor", "Optional[Tensor]") for a in arguments) if first else 0

    overload = OVERLOADS.get(name) or min(packet.overloads(), key=lambda o: (-tensors(o), "Scalar" in o, o))
    shapes = iter(("3, 4", "4", "3, 1"))
    plain = {"number": "2", "Scalar": "2", "float": "0.5", "int": "1", "bool": "false", "Optional[float]": "0.5"}
    operands, args = [], []
    for argument in getattr(packet, overload)._schema.arguments:
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            dtype = "b8" if argument.name in ("mask", "condition") else "DTYPE"
            operands.append(f"%{argument.name}: {dtype}[{next(shapes)}]")
            args.append(f"%{argument.name}")
        elif not argument.has_default_value():
            text = "f64" if name == "to" else plain[kind]
            args.append(f"{argument.name}={text}" if argument.kwarg_only else text)
    return ", ".join(operands), f"aten.{name}{'' if overload == 'default' else f'.{overload}'}({', '.join(args)})"


def pointwise_example(name: str) -> Example:
    """On the first data type that the operator takes."""
    operands, call = pointwise_call(name)
    reasons = []
    for dtype in ("c128",) if name in ("conj", "real", "imag") else ("f64", "i64", "b8"):
        try:
            return example(operands.replace("DTYPE", dtype), call, draw)
        except (RuntimeError, NotImplementedError) as error:
            reasons.append(f"{call} on {dtype}: {error}")
    raise AssertionError("\n".join(reasons))


@pytest.mark.parametrize("name", NAMES.split())
def test_a_pointwise_operator(name: str) -> None:
    case = pointwise_example(name)
    first, *others = case.op.operands
    for result in case.op.made:
        assert case.axes[result] == case.axes[first]
        for other in others if name != "type_as" else ():
            aligned = zip(case.axes[other], case.axes[result][-len(case.axes[other]) :], strict=True)
            assert all(a == b for a, b in aligned if a.size > 1)
    assert not case.solution.frozen
    assert not case.solution.marks
    replay(case, name in RANDOM)


def test_pointwise_operators_have_torchs_tag() -> None:
    untagged = set()
    for name in NAMES.split():
        packet = getattr(torch.ops.aten, name)
        if not any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()):
            untagged.add(name)
    assert untagged == set(WITHOUT_TAG.split())


def test_every_rule_has_a_row() -> None:
    rows = {".".join(row.call.partition("(")[0].split(".")[:2]) for row in ROWS}
    assert rows | set(FAMILIES["pointwise"]) == set(RULES)


WITHOUT_RULE = {"arange", "scalar_tensor", "randperm", "_local_scalar_dense"}
"""Operators of torch's core set that meet no rule: constants, which are folded, and what no trace may hold."""


def test_every_core_operator_that_a_forward_runs_has_a_rule() -> None:
    core = set()
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        overloads = packet.overloads() if hasattr(packet, "overloads") else ()
        if any(torch.Tag.core in getattr(packet, overload).tags for overload in overloads):
            core.add(name)
    # A trace is functional: nothing in it writes in place. torch lists resize_ once something has used it.
    forward = {name for name in core if not name.endswith(("_backward", "_")) and not name.startswith("sym_")}
    assert len(forward) > 140
    assert forward - {packet.removeprefix("aten.") for packet in RULES} == WITHOUT_RULE


def test_every_rule_is_of_an_operator_that_exists() -> None:
    assert not [packet for packet in RULES if not hasattr(torch.ops.aten, packet.removeprefix("aten."))]


def test_every_rule_says_what_it_does() -> None:
    assert all(rule.text for rule in RULES.values())


def rule_error(text: str, call: str, operands: str) -> str:
    case = example(operands, call, draw)
    eq = Equations()
    with pytest.raises(UnsupportedCall) as caught:
        pattern(text).couple(eq, case.op)
    return str(caught.value)


def test_a_pattern_needs_its_operands() -> None:
    assert "operand 1 of '... k, n k -> ... n' is no tensor" in rule_error(
        "... k, n k -> ... n", "aten.pow.Tensor_Scalar(%x, 2)", "%x: f64[3, 4]"
    )


def test_a_pattern_needs_the_dimensions_that_it_names() -> None:
    assert "'m k' has 2 dimensions" in rule_error("m k -> m k", "aten.relu(%x)", "%x: f64[2, 3, 4]")


def test_a_clash_freezes_both_sides_with_the_operator_and_its_line() -> None:
    source = Source("mlp", "model.py", 7)
    case = example("%x: f64[4, 6]", "aten.reshape(%x, [6, 4])", draw)
    case = Example(Op(case.op.target, case.op.args, {}, case.op.results, source), case.data)
    reasons = set(case.solution.frozen.values())
    assert reasons == {"factors 6 and 4 have no common refinement (aten.reshape at mlp model.py:7)"}


def test_the_page_on_operators_is_current() -> None:
    path = Path(fxprune.__file__).parent / "docs" / "generate.py"
    assert path.with_name("operators.md").read_text(encoding="utf-8") == runpy.run_path(str(path))["operators_page"]()


def test_a_text_without_an_arrow_is_no_rule() -> None:
    with pytest.raises(ValueError, match="'a b c' has no '->' between operands and results"):
        pattern("a b c")
