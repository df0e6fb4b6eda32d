"""Every test checks something, and none of them only where a loop may have nothing to go through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("*.py"))
RAISES = {"raises", "warns", "fail"}
SAME_LENGTH = {"enumerate", "sorted", "reversed", "list", "tuple", "set", "zip", "product"}
"""Functions of which the result is not empty where no argument is."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def functions(path: Path) -> dict[str, tuple[Path, Function]]:
    """Functions and methods that a file defines or imports from a file beside it, by name."""
    found: dict[str, tuple[Path, Function]] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            other = path.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
            found |= {alias.asname or alias.name: functions(other)[alias.name] for alias in node.names
                      if other.is_file() and alias.name in functions(other)}  # fmt: skip
    return found | {node.name: (path, node) for node in ast.walk(tree(path)) if isinstance(node, Function)}


def name_of(function: ast.expr) -> str:
    """Of what is called, without what it belongs to."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def is_check(path: Path, node: ast.AST, passed: frozenset[str] = frozenset()) -> bool:
    """Whether a statement or a call can fail a test: itself, or by a function of the tests that it calls."""
    if isinstance(node, ast.Assert):
        return not isinstance(node.test, ast.Constant)
    if not isinstance(node, ast.Call):
        return False
    name = name_of(node.func)
    if name.startswith("assert_") or (name in RAISES and ast.unparse(node.func) == f"pytest.{name}"):
        return True
    return name in functions(path) and name not in passed and is_checking(path, name, passed)


@cache
def is_checking(path: Path, name: str, passed: frozenset[str]) -> bool:
    """Whether a function of the tests makes a check; those in ``passed`` are being looked through."""
    where, function = functions(path)[name]
    return any(is_check(where, inner, passed | {name}) for inner in ast.walk(function))


def is_never_empty(node: ast.expr, known: dict[str, ast.expr]) -> bool:
    """Whether there is at least one element, as far as the text says."""
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            found = any(not isinstance(e, ast.Starred) or is_never_empty(e.value, known) for e in elements)
        case ast.Dict(keys=content) | ast.Constant(value=content):
            found = bool(content)
        case ast.Name(id=name):
            found = name.isupper() or (name in known and is_never_empty(known[name], {}))
        case ast.Call(func=ast.Attribute(value=mapping, attr="items" | "keys" | "values"), args=[]):
            found = is_never_empty(mapping, known)
        case ast.Call(func=function, args=arguments):
            name = name_of(function)
            found = name == "range" or (name in SAME_LENGTH and all(is_never_empty(a, known) for a in arguments))
        case _:
            found = False
    return found


def sure_checks(path: Path, node: ast.AST, known: dict[str, ast.expr]) -> Iterator[ast.AST]:
    """The checks of a test that are made whatever its loops go through."""
    if isinstance(node, ast.For) and not is_never_empty(node.iter, known):
        return
    if is_check(path, node) and not (isinstance(node, ast.Assert) and is_all_of_maybe_none(node.test, known)):
        yield node
        return
    for inner in ast.iter_child_nodes(node):
        yield from sure_checks(path, inner, known)


def is_all_of_maybe_none(node: ast.expr, known: dict[str, ast.expr]) -> bool:
    """``all(... for ... in ...)`` over what may be empty."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "all"):
        return False
    (argument,) = node.args
    return isinstance(argument, ast.GeneratorExp) and not is_never_empty(argument.generators[0].iter, known)


def is_sure(path: Path, function: Function) -> bool:
    """Whether a test makes a check whatever happens."""
    known = {
        target.id: statement.value
        for statement in ast.walk(function)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if isinstance(target, ast.Name)
    }
    return any(True for _ in sure_checks(path, ast.Module(function.body, []), known))


def unsure(path: Path) -> list[str]:
    """Tests of a file that may end without having checked anything."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, Function) and node.name.startswith("test_") and not is_sure(path, node):
            found.append(f"{path.relative_to(HERE).as_posix()}:{node.lineno} {node.name}")
    return found


def test_every_test_checks_something() -> None:
    assert [name for path in FILES for name in unsure(path)] == []


def test_no_test_is_content_with_any_error() -> None:
    broad = {"Exception", "BaseException"}
    assert [
        f"{path.name}:{node.lineno}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and name_of(node.func) == "raises"
        and any(isinstance(name, ast.Name) and name.id in broad for name in ast.walk(node.args[0]))
    ] == []


@pytest.mark.parametrize(
    ("body", "sure"),
    [
        ("pass", False),
        ("assert True", False),
        ("assert x == 1", True),
        ("verify(x)", False),
        ("helped(x)", True),
        ("unhelped(x)", False),
        ("for y in x: assert y", False),
        ("for y in (1, 2): assert y", True),
        ("for y in ROWS.values(): assert y", True),
        ("for y in range(3): assert y", True),
        ("rows = [1, *x]\n    for n, y in enumerate(rows): assert y", True),
        ("rows = [*x]\n    for y in rows: assert y", False),
        ("assert all(y for y in x)", False),
        ("assert x\n    for y in x: assert y", True),
        ("with pytest.raises(ValueError): x()", True),
        ("np.testing.assert_allclose(x, 1)", True),
    ],
)
def test_a_test_that_may_check_nothing_is_told_from_one_that_does(tmp_path: Path, body: str, sure: bool) -> None:
    path = tmp_path / "test_made.py"
    path.write_text(f"def helped(x):\n    assert x\n\ndef unhelped(x):\n    x()\n\ndef test_it(x):\n    {body}\n")
    assert is_sure(*functions(path)["test_it"]) == sure
