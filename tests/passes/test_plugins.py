"""What installed packages bring: an operator rule, passes and an exporter, from the package that the pages write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.backends.registry import EXPORTERS, exporter_table, parse_format
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.ir.plugins import PluginWarning, named_faults
from fxprune.ir.rules import RULES, rule_table
from fxprune.passes.named_pipelines import NAMED_PIPELINES
from fxprune.passes.prune import Prune
from fxprune.passes.registry import PASSES, all_passes, pass_table

from ..checkpoints import write_checkpoint
from ..forks import Forks
from ..states import module_state, run_passes
from .plugins import PAGES, install, install_pages, python, script

NET = ("my_package.operators:Net", "--example", "float32[2,8]")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it."""
    folder = tmp_path_factory.mktemp("packages")
    install_pages(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def fxprune(forks: Forks, packages: Path, *arguments: object) -> dict[str, Any]:
    """The JSON object that a command prints where the package is installed."""
    done = python(forks, packages, "-m", "fxprune", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data: dict[str, Any] = json.loads(done.stdout)
    return data


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(forks: Forks, packages: Path, page: Path) -> None:
    done = python(forks, packages, "-c", script(page))
    assert done.returncode == 0, done.stderr
    assert "PluginWarning" not in done.stderr


def test_passes_are_listed_with_the_package_that_they_are_from(forks: Forks, packages: Path) -> None:
    shown = python(forks, packages, "-m", "fxprune", "passes").stdout
    assert "\nclip  recover  Clip every weight to a limit.  (from my-package 0.1)\n" in shown
    assert (
        "\npeak  score  Remove the units whose largest absolute weight is smallest.  (from my-package 0.1)\n" in shown
    )
    assert shown.count("(from ") == 2


def test_a_pass_of_a_package_runs_and_the_record_names_the_package(
    forks: Forks, packages: Path, checkpoint: Path, tmp_path: Path
) -> None:
    command = ["apply", checkpoint, "--pass", "peak,clip{limit=0.01}", "--ratio", "0.5", "--out", tmp_path / "out"]
    applied = fxprune(forks, packages, *command)
    assert applied["parameters"]["after"] < applied["parameters"]["before"]
    record = json.loads((tmp_path / "out" / "fxprune.json").read_text())
    assert record["plugins"] == {"peak": "my-package 0.1", "clip": "my-package 0.1"}
    assert record["passes"]["clip"]["clipped"] > 0


def test_a_format_of_a_package_is_written(forks: Forks, packages: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = ["export", checkpoint, "--format"]
    report = fxprune(forks, packages, *words, "npz{dtype=float16}", "--out", tmp_path / "text")
    assert report["format"] == "npz"
    command = ["-m", "fxprune", *words, "npz", "--dtype", "float16", "--out", tmp_path / "flag"]
    shown = python(forks, packages, *command).stdout
    assert "arrays, float16" in shown
    assert "worst difference" in shown
    with np.load(tmp_path / "text" / "weights.npz") as text, np.load(tmp_path / "flag" / "weights.npz") as flag:
        assert text["lm_head.weight"].dtype == np.float16
        assert all(np.array_equal(text[name], flag[name]) for name in text)


def test_a_custom_operator_is_covered_by_the_rule_of_its_package(forks: Forks, packages: Path, tmp_path: Path) -> None:
    traced = fxprune(forks, packages, "trace", *NET)
    assert [(g["size"], g["frozen"]) for g in traced["groups"] if not g["frozen"]] == [(24, None)]
    install(tmp_path, "my-package", {}, {p: (packages / p).read_text() for p in ("my_package/operators.py",)})
    without = fxprune(forks, tmp_path, "trace", *NET)
    assert any("no rule for my_package.glu" in (group["frozen"] or "") for group in without["groups"])
    assert all(group["frozen"] for group in without["groups"])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages are installed in, in this process; what was found there is forgotten afterwards."""
    tables = (rule_table, pass_table, exporter_table)
    monkeypatch.syspath_prepend(str(tmp_path))
    for table in tables:
        table.cache_clear()
    yield tmp_path
    for table in tables:
        table.cache_clear()
    for name in [n for n, m in sys.modules.items() if str(tmp_path) in (getattr(m, "__file__", None) or "")]:
        del sys.modules[name]


def brings(site: Path, package: str, kind: str, module: str, attribute: str = "THING") -> None:
    """Install a package that brings one thing."""
    place = package.replace("-", "_")
    install(site, package, {f"fxprune.{kind}": {"thing": f"{place}:{attribute}"}}, {f"{place}.py": module})


RULE = "from fxprune.ir.rules import pattern\nTHING = {'%s': pattern('... k -> ... k')}\n"
PASS = (
    "from dataclasses import dataclass\nfrom fxprune.passes.score.random import Random\n"
    "@dataclass(frozen=True, kw_only=True)\nclass THING(Random):\n    name = '%s'\n"
)
EXPORTER = (
    "from dataclasses import dataclass\n@dataclass(frozen=True, kw_only=True)\nclass THING:\n    name = '%s'\n"
    "    def check(self): pass\n    def export(self, request): pass\n"
)


def test_tables_hold_what_is_built_in_and_what_is_installed(site: Path) -> None:
    assert dict(rule_table()) == RULES
    assert all_passes() == PASSES
    assert tuple(exporter_table().values()) == EXPORTERS
    brings(site, "first-package", "passes", PASS % "another")
    assert all_passes() == PASSES  # looked up once
    pass_table.cache_clear()
    assert [*pass_table()][: len(PASSES)] == [cls.name for cls in PASSES]
    assert str(pass_table().origins["another"]) == "first-package 0.1 (first_package:THING)"
    with pytest.raises(TypeError):
        pass_table()["another"] = PASSES[0]  # type: ignore[index]


DUPLICATES = [
    ("rules", RULE % "aten.linear", "rule 'aten.linear'", rule_table),
    ("passes", PASS % "taylor", "pass 'taylor'", pass_table),
    ("exporters", EXPORTER % "onnx", "exporter 'onnx'", exporter_table),
]


@pytest.mark.parametrize(("kind", "module", "what", "table"), DUPLICATES, ids=[row[0] for row in DUPLICATES])
def test_a_name_that_is_brought_twice_names_both(site: Path, kind: str, module: str, what: str, table: Any) -> None:
    brings(site, "bold", kind, module)
    with pytest.raises(FxpruneError) as error:
        table()
    assert error.value.message == f"{what} is brought by bold 0.1 (bold:THING) and by fxprune"
    assert error.value.hint == "uninstall bold, or have its author choose another name"


def test_a_name_that_two_packages_bring_names_both(site: Path) -> None:
    brings(site, "second", "rules", RULE % "custom.thing")
    brings(site, "first", "rules", RULE % "custom.thing")
    with pytest.raises(
        FxpruneError, match=r"'custom.thing' is brought by second 0.1 \(second:THING\) and by first 0.1 "
    ):
        rule_table()


BARE = PASS.replace("@dataclass(frozen=True, kw_only=True)\n", "")
NAMELESS = EXPORTER.replace("    name = '%s'\n", "")
CHECKLESS = EXPORTER.replace("check", "cheque")

BROKEN = [
    ("rules", "import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("rules", "raise SystemExit(3)", "SystemExit: 3"),
    ("rules", "OTHER = 1", "AttributeError: module 'broken' has no attribute 'THING'"),
    ("rules", "THING = 3", "TypeError: expected a mapping of operator names to rules, got int"),
    ("rules", "THING = {'custom.thing': 'n -> n'}", "TypeError: custom.thing has no Rule but str"),
    ("rules", RULE % "custom.thing.default", "ValueError: an operator is named namespace.name, without its overload"),
    ("passes", "THING = 3", "TypeError: expected a class that derives from fxprune.passes.base.Pass"),
    (
        "passes",
        PASS.replace("@dataclass(frozen=True, kw_only=True)\n", "") % "thing",
        "TypeError: THING is no dataclass",
    ),
    ("passes", PASS % "two words", "ValueError: 'two words' cannot be the name of a pass"),
    ("passes", PASS % "thing" + "    amount: int\n", "TypeError: THING.__init__() missing 1 required keyword"),
    (
        "passes",
        PASS % "thing" + "    names: list[str] = None\n",
        "TypeError: THING.names: pipeline text has no form",
    ),
    ("exporters", "THING = 3", "TypeError: expected a class that has check and export"),
    (
        "exporters",
        CHECKLESS % "thing",
        "TypeError: expected a class that has check and export",
    ),
    ("exporters", NAMELESS, "ValueError: None cannot be the name of a format"),
]


@pytest.mark.parametrize(("kind", "module", "reason"), BROKEN, ids=[f"{row[0]}-{row[2][:40]}" for row in BROKEN])
def test_a_broken_plug_in_is_named_and_left_out(site: Path, kind: str, module: str, reason: str) -> None:
    brings(site, "broken", kind, module)
    table: Any = {"rules": rule_table, "passes": pass_table, "exporters": exporter_table}[kind]
    with pytest.warns(PluginWarning) as warned:
        names = set(table())
    own: Any = {"rules": RULES, "passes": {c.name for c in PASSES}, "exporters": {c.name for c in EXPORTERS}}[kind]
    assert names == set(own)
    (warning,) = warned
    assert str(warning.message).startswith(f"left out a plug-in of fxprune.{kind}, broken 0.1 (broken:THING): {reason}")


def test_the_command_line_says_what_it_left_out_and_goes_on(forks: Forks, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    brings(tmp_path, "broken", "passes", f"open({str(marker)!r}, 'w').close()\n1 / 0")
    assert python(forks, tmp_path, "-m", "fxprune", "--help").returncode == 0
    assert not marker.exists()  # nothing is looked for before it is needed
    done = python(forks, tmp_path, "-m", "fxprune", "passes", "--json")
    assert marker.exists()
    assert done.returncode == 0
    reason = "broken 0.1 (broken:THING): ZeroDivisionError: division by zero"
    assert done.stderr == f"warning: left out a plug-in of fxprune.passes, {reason}\n"
    assert {row["name"] for row in json.loads(done.stdout)["passes"]} == {
        *(cls.name for cls in PASSES),
        *(pipeline.name for pipeline in NAMED_PIPELINES),
    }


MISTAKES = [
    ("tf", {}, "unknown format 'tf'\n  tf\n  ^^", "formats: onnx, gguf"),
    ("onnx{dtype=int9}", {}, "option 'dtype' cannot be 'int9'", "allowed for dtype: float32 | float16 | int8 | int4"),
    ("onnx{bits=8}", {}, "format 'onnx' has no option 'bits'", "options: dtype, layout, optimize, opset, cache"),
    ("onnx,onnx", {}, "expected the end of the format, found ','\n  onnx,onnx\n      ^", "name{option=value}"),
    ("", {}, "expected the name of a format", "name{option=value}"),
    ("onnx{dtype=int8}", {"dtype": "int4"}, "dtype=int8 in the format, dtype=int4 beside it", "give one of the two"),
    ("onnx", {"dtype": "int9"}, "option 'dtype' cannot be 'int9'\n  dtype=int9\n        ^^^^", "did you mean"),
    ("onnx", {"bits": 8}, "format 'onnx' has no option 'bits'", "leave it out"),
    ("onnx{opset=17}", {}, "opset 17 is not supported\n  onnx{opset=17}\n  ^^^^^^^^^^^^^^", "choose 18 to 25"),
]


@pytest.mark.parametrize(("text", "shared", "message", "hint"), MISTAKES, ids=[f"{r[0]} {r[1]}" for r in MISTAKES])
def test_a_mistake_in_a_format(text: str, shared: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_format(text, shared)
    assert message in error.value.message
    assert hint in error.value.hint


def test_an_option_of_another_format_is_refused_with_a_hint(site: Path) -> None:
    brings(site, "plain", "exporters", EXPORTER % "plain")
    with pytest.raises(RequestError) as error:
        parse_format("plain", {"cache": False})
    assert (error.value.message, error.value.hint) == (
        "format 'plain' has no option 'cache'",
        "formats that have it: onnx",
    )


def test_a_format_takes_its_options_from_the_text_and_from_beside_it() -> None:
    onnx = next(cls for cls in EXPORTERS if cls.name == "onnx")
    assert parse_format("onnx") == onnx()
    shared = {"dtype": "int8", "layout": None, "cache": False}
    assert parse_format("onnx{dtype=int8,opset=20}", shared) == onnx(dtype="int8", opset=20, cache=False)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda _: None, "pass 'odd' gave a NoneType as scores"),
        (lambda _: {}, "pass 'odd' gave no scores of "),
        (lambda groups: {g.name: [1.0] * g.units for g in groups}, r"that fit: list, not \[12\]"),
        (lambda groups: {g.name: np.ones(g.units + 1) for g in groups}, r"that fit: shape \[13\], not \[12\]"),
        (lambda groups: {g.name: np.full(g.units, np.nan) for g in groups}, "that are not numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused(made: Any, message: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Prune):
        """Gives what it should not."""

        name: ClassVar[str] = "odd"

        def scores(self, groups: Any, _: Any) -> Any:
            return made(groups)

    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 4))
    with pytest.raises(FxpruneError, match=message):
        run_passes(module_state(net, torch.ones(2, 4)), Odd(channels=True))


@pytest.mark.parametrize("own", [True, False])
def test_what_a_package_raises_names_it(own: bool) -> None:
    class Broken:
        __module__ = "fxprune.passes.broken" if own else "their_package.passes"

    with pytest.raises(KeyError if own else FxpruneError) as caught, named_faults(Broken, "pass 'broken'"):
        raise KeyError("q")
    if not own:
        assert str(caught.value) == "pass 'broken' of the package their_package failed: KeyError: 'q'"
        assert "their_package" in caught.value.hint  # type: ignore[attr-defined]
    refusal = RequestError("no", "hint")
    with pytest.raises(RequestError) as kept, named_faults(Broken, "pass 'broken'"):
        raise refusal
    assert kept.value is refusal
