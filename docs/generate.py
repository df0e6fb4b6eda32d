"""Write the generated pages of the documentation: ``python docs/generate.py``."""

from __future__ import annotations

from pathlib import Path

from fxprune.ir.rules import FAMILIES, Rule

PAGE = Path(__file__).with_name("operators.md")
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


if __name__ == "__main__":
    PAGE.write_text(operators_page(), encoding="utf-8")
