"""Write the generated pages of the documentation: ``python docs/generate.py``."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fxprune
from fxprune.api.terminal.arguments import build_parser
from fxprune.backends.registry import EXPORTERS
from fxprune.cli import COMMANDS
from fxprune.ir.options import Option, options_of, write_value
from fxprune.ir.rules import FAMILIES, Rule
from fxprune.passes.named_pipelines import NAMED_PIPELINES
from fxprune.passes.registry import PASSES

DOCS = Path(__file__).parent
HEAD = """# Operator rules

Generated from the tables in `ir/rules/` by `python docs/generate.py`; [how to write one](writing-a-rule.md),
[which models need which](operators-by-model.md).

A rule says which dimensions of the operands and results of an operator are the same axis. In the notation, operands
are left of `->` and results right of it. The same letter is the same axis, `...` is any number of dimensions that
broadcast, `(a * b)` is a product and `(a + b)` a concat. *Resizes*: the operator has arguments that depend on extents,
and the rule changes them when an axis shrinks. An operator without a rule freezes every axis that it touches.
"""


def operators_page() -> str:
    """The text of the page on operator rules."""
    lines = [HEAD, f"{sum(map(len, FAMILIES.values()))} operators have a rule.", ""]
    for family, rules in FAMILIES.items():
        lines += [f"## {family.capitalize()}", "", "| operators | rule | resizes |", "|---|---|---|"]
        alike: dict[tuple[str, bool], list[str]] = {}
        for packet, rule in sorted(rules.items()):
            alike.setdefault(_said(rule), []).append(f"`{packet.removeprefix('aten.')}`")
        for (text, resizes), names in alike.items():
            lines.append(f"| {' '.join(names)} | {text} | {'yes' if resizes else ''} |")
        lines.append("")
    return "\n".join(lines)


def _said(rule: Rule) -> tuple[str, bool]:
    """The text of a row, with asterisks and bars escaped for Markdown; and whether the rule resizes."""
    return rule.text.replace("|", "\\|").replace("*", "\\*"), rule.resize is not None


PASSES_HEAD = """# Passes

Generated from the passes by `python docs/generate.py`; `fxprune passes` prints the same, and what installed packages
bring. A pipeline is passes with options: `taylor{ratio=0.25},compensate,lora{epochs=1}`. A flag of `apply` of the same
name, such as `--ratio`, sets the option of all passes that have it. How they score: [scoring](../scoring.md); which to
take: [which recipe](../which-recipe.md); how to write one: [a pass](../writing-a-pass.md).
"""


NAMED_HEAD = """They are written like a pass: `--pass best`, or `best{ratio=0.2}`, whose options go where they fit.
"""
FORMATS_HEAD = """`fxprune formats` prints the same; where they run: [deploy](../deploy.md).
"""


def passes_page() -> str:
    """The text of the page on passes and export formats."""
    lines = [PASSES_HEAD]
    for cls in PASSES:
        lines += [f"## {cls.name}", "", *_prose(cls), "", *_table(options_of(cls))]
    lines += ["## Named pipelines", "", NAMED_HEAD, "| name | stands for | with equal widths | |", "|---|---|---|---|"]
    lines += [f"| `{p.name}` | `{p.text}` | `{p.uniform}` | {_cell(p.help)} |" for p in NAMED_PIPELINES]
    lines += ["", "## Export formats", "", FORMATS_HEAD]
    for exporter in EXPORTERS:
        lines += [f"### {exporter.name}", "", *_prose(exporter), "", *_table(options_of(exporter))]
    return "\n".join(lines)


def _table(options: Sequence[Option]) -> Iterator[str]:
    if not options:
        return
    yield from ("| option | value | default | |", "|---|---|---|---|")
    for option in options:
        yield f"| `{option.name}` | {_cell(option.wants)} | `{write_value(option.default)}` | {_cell(option.help)} |"
    yield ""


OPTIONS_HEAD = """# Options of the commands

Generated from the command line by `python docs/generate.py`; `fxprune help COMMAND` prints the same. With examples:
[commands](../commands.md). Exit codes: 0 done, 1 failed, 2 a wrong request, 128 and its number for a signal.
"""


IN_ALL = ("json", "verbose", "quiet", "log_file", "debug")
"""Flags of every command, listed once."""


def options_page() -> str:
    """The text of the page on commands and their flags."""
    lines = [OPTIONS_HEAD]
    shared: dict[str, argparse.Action] = {}
    for name, parser in build_parser(COMMANDS).commands.items():
        lines += [f"## {name}", "", _sentence(parser.description or ""), ""]
        lines += ["| argument | |", "|---|---|"]
        for action in parser._actions:
            if action.dest in IN_ALL:
                shared[action.dest] = action
            elif action.dest != "help":
                lines.append(f"| {_flag(action)} | {_cell(_help(action))} |")
        lines.append("")
    lines += ["## All commands", "", "| argument | |", "|---|---|"]
    lines += [f"| {_flag(action)} | {_cell(_help(action))} |" for action in shared.values()]
    return "\n".join([*lines, ""])


def _flag(action: argparse.Action) -> str:
    """How an argument is written: ``--ratio RATIO``, with all of its names."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices is not None and not action.metavar:
        value = "|".join(map(str, action.choices))
    words = value if isinstance(value, str) else " ".join(value)
    names = ", ".join(action.option_strings)
    return "`" + " ".join(filter(None, [names, "" if action.nargs == 0 else words])).replace("|", "\\|") + "`"


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


PYTHON_HEAD = """# Python reference

Generated from the docstrings by `python docs/generate.py`. With examples: [in Python](../python.md).

All errors that fxprune raises itself are `fxprune.FxpruneError`; `fxprune.RequestError` is one of them, for a wrong
request that is found before any work. Both have `message` and `hint`.
"""

CLASSES = (
    fxprune.api.ApplyRequest, fxprune.api.Applied, fxprune.api.Trace, fxprune.api.Hop, fxprune.api.Measurement,
    fxprune.api.Benchmark, fxprune.api.Drafted, fxprune.api.Pruned, fxprune.api.PassInfo, fxprune.api.FormatInfo,
)  # fmt: skip
"""What the functions take and return."""


def python_page() -> str:
    """The text of the page on the functions of ``fxprune`` and on what they return."""
    functions = [getattr(fxprune, name) for name in fxprune.__all__ if not name.endswith("Error")]
    lines = [PYTHON_HEAD, "## Functions", ""]
    for function in functions:
        lines += [f"### fxprune.{function.__name__}", "", *_prose(function), ""]
    lines += ["## What they take and return", ""]
    for cls in CLASSES:
        lines += [f"### {cls.__name__}", "", *_prose(cls), ""]
    return "\n".join(lines)


def _prose(of: Any) -> Iterator[str]:
    """A docstring as Markdown: its sections as bold words, what they list as a list."""
    text = re.sub(r":\w+:`~?\.*(?:\w+\.)*(\w+)`", r"`\1`", (inspect.getdoc(of) or "").replace("``", "`"))
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            yield from (f"**{line[:-1]}**", "")
        elif entry := re.fullmatch(r" {4}([\w, *]+): (.*)", line):
            yield f"- `{entry[1]}`: {entry[2]}"
        elif line.startswith("        "):
            yield f"  {line.strip()}"
        else:
            yield line.strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text.replace("*", "\\*")


PAGES: dict[str, Callable[[], str]] = {
    "operators.md": operators_page,
    "reference/passes.md": passes_page,
    "reference/options.md": options_page,
    "reference/python.md": python_page,
}
"""Page -> what makes its text."""

if __name__ == "__main__":
    for page, text in PAGES.items():
        (DOCS / page).write_text(text().rstrip() + "\n", encoding="utf-8")
