"""The house: what is packaged, what imports what, how large things are, and that the README tells the truth."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import fxprune

ROOT = Path(fxprune.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]

# Folders of the repository that are no part of the package.
OUTSIDE = {"tests", "benchmarks", "docs", "build", "dist", "out"}

FLOORS = {"__main__": 6, "cli": 5, "api": 4, "backends": 3, "passes": 3, "tracer": 3, "runtime": 2, "demo": 1, "ir": 0}
FRAMEWORKS = {"torch", "transformers", "safetensors", "onnx", "onnxruntime", "peft", "huggingface_hub", "datasets"}


def python_files(*, tests: bool = False) -> list[Path]:
    """Python files of the package, relative to the root; with ``tests``, those of the tests and benchmarks too."""
    left_out = OUTSIDE - ({"tests", "benchmarks"} if tests else set())
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if not left_out & set(path.parts) and not path.parts[0].startswith("."))


def names(paths: list[Path]) -> list[str]:
    return [path.as_posix() for path in paths]


def test_every_folder_with_python_in_it_is_packaged() -> None:
    folders = {path.parent for path in python_files()}
    assert sorted(SETUP["packages"]) == sorted(".".join(("fxprune", *folder.parts)) for folder in folders)
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_the_root_holds_no_further_module() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


def test_a_wheel_holds_what_is_on_disk(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves a build folder and an egg-info beside what it packs.
    copy = tmp_path / "checkout of any name"
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", *OUTSIDE)
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    data = {
        path.relative_to(ROOT)
        for package, patterns in SETUP["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    assert data >= {Path("py.typed")}
    assert packed == {f"fxprune/{name}" for name in names([*python_files(), *sorted(data)])}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, in full, with the line."""
    package = ["fxprune", *path.parent.parts]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "fxprune":
                yield from ((f"fxprune.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def test_imports_flow_down() -> None:
    wrong = []
    for path in python_files():
        here = path.parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module, line in imports(path):
            there = module.split(".")[1] if module.startswith("fxprune.") else None
            if there is not None and there != here and FLOORS[there] >= FLOORS[here]:
                wrong.append(f"{path}:{line} imports {module}")
    assert not wrong


def module_level(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file outside functions; those for type checkers too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from module_level(node)


def imported_modules() -> dict[str, set[str]]:
    """Module of the package -> those of the package that it imports at module level."""
    files = {
        ".".join(("fxprune", *path.with_suffix("").parts)).removesuffix(".__init__"): path for path in python_files()
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        package = ["fxprune", *path.parent.parts]
        named: set[str] = set()
        for node in module_level(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
                continue
            base = ".".join(
                [*package[: len(package) - node.level + 1 if node.level else 0], *filter(None, [node.module])]
            )
            # What is named may be a module, or something in the package's __init__.py.
            named |= {inner if (inner := f"{base}.{alias.name}") in files else base for alias in node.names}
        found[module] = (named & files.keys()) - {module}
    return found


def test_imports_run_in_no_circle() -> None:
    graph = imported_modules()
    assert sum(map(len, graph.values())) > 100, "imports are not found"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle


def test_the_intermediate_representation_knows_no_framework() -> None:
    files = [path for path in python_files() if path.parts[0] == "ir"]
    assert files
    wrong = [f"{p}:{line}" for p in files for module, line in imports(p) if module.split(".")[0] in FRAMEWORKS]
    assert not wrong


def test_inside_the_package_imports_are_relative() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path in python_files()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "fxprune")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "fxprune" for alias in node.names))
    ]
    assert not wrong


def test_files_and_functions_stay_small() -> None:
    large = []
    for path in python_files():
        text = (ROOT / path).read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 400:
            large.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if (lines := node.end_lineno - start + 1) > 50:  # decorators, signature and docstring included
                    large.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not large


def test_no_folder_holds_more_than_twenty_files() -> None:
    folders = Counter(path.parent.as_posix() for path in python_files(tests=True))
    assert folders
    assert not {folder: count for folder, count in folders.items() if count > 20}


def defined(path: Path) -> Iterator[str]:
    """The classes and constants that a file defines at its top level."""
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = (name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
            yield from (name.id for name in found if isinstance(name.ctx, ast.Store) and name.id != "__all__")


def test_no_class_or_constant_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in python_files():
        for name in defined(path):
            places[name].append(path.as_posix())
    assert len(places) > 300
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_module_is_a_drawer() -> None:
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert not [path for path in python_files(tests=True) if {path.stem, *path.parts[:-1]} & drawers]


def test_every_module_says_what_it_is() -> None:
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in python_files(tests=True)}
    assert not [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]


def test_what_docstrings_refer_to_exists() -> None:
    known = {"fxprune"}
    for path in python_files():
        known |= {path.stem, *path.parts[:-1]}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                known.add(node.name)
            elif isinstance(node, ast.Name):
                known.add(node.id)
            elif isinstance(node, ast.Attribute):
                known.add(node.attr)
    found = [
        (path, name)
        for path in python_files()
        for name in re.findall(r":(?:func|class|data|meth|mod|attr):`~?\.*([\w.]+)`", (ROOT / path).read_text("utf-8"))
    ]
    assert len(found) > 50
    assert not [(path.as_posix(), name) for path, name in found if not known >= set(name.split("."))]


def test_constraints_lie_within_the_ranges() -> None:
    from packaging.requirements import Requirement

    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    required = [r for r in map(Requirement, wanted) if r.name != "fxprune"]
    assert {r.name for r in required} == set(pinned)
    assert not [str(r) for r in required if not r.specifier.contains(pinned[r.name])]


def test_the_makefile_installs_the_torch_that_is_tested() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"TORCH  ?= {pinned.group()}\n" in makefile


def test_public_names_can_be_imported() -> None:
    assert dir(fxprune) == sorted(fxprune.__all__)
    for name in fxprune.__all__:
        assert callable(getattr(fxprune, name)), name
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        fxprune.prune  # noqa: B018


def test_no_command_prints_while_stdout_is_dropped() -> None:
    tree = ast.parse((ROOT / "cli.py").read_text(encoding="utf-8"))
    dropped = [
        node for node in ast.walk(tree) if isinstance(node, ast.With) and "_working(" in ast.unparse(node.items[0])
    ]
    called = [call for block in dropped for call in ast.walk(block) if isinstance(call, ast.Call)]
    assert len(dropped) >= 10
    assert [ast.unparse(call) for call in called if ast.unparse(call.func) in ("_emit", "print")] == []
