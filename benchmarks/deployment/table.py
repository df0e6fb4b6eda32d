"""The table of runtimes in docs/deploy.md, from a run: every runtime, form and type.

    python -m fxprune.benchmarks.deployment.table --environments DIR [--model MODEL] [--runtimes NAME ...]

Rows of runtimes that are not named stay as they are in ``table.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .pruned_forms import PIPELINES, prune, suited
from .run import RUNTIMES, run

JSON = Path(__file__).with_name("table.json")
PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
BEGIN, END = "<!-- runtimes: begin -->\n", "<!-- runtimes: end -->\n"

ROUNDED = ("uniform", "heads per layer")
"""Forms that are tried in other types than float32."""


def measure(
    model: str, names: Sequence[str], forms: Sequence[str], environments: Path, calib: Path | None
) -> Iterator[dict[str, Any]]:
    """The forms and types in the runtimes named, one after the other; those without rounding come first."""
    folder = environments / "models"
    asked = [(form, name, kind) for form in forms for name in names for kind in RUNTIMES[name]["types"]]
    for form, name, kind in sorted(asked, key=lambda one: one[2] != "float32"):
        if kind == "float32" or form in ROUNDED:
            source, text = suited(RUNTIMES[name], folder) if model == "demo" else (model, calib)
            yield run(name, form, kind, prune(source, form, folder / Path(source).name, text), environments).to_json()


def table(data: Mapping[str, Any]) -> str:
    """The section of the page."""
    lines = ["| runtime | type | " + " | ".join(PIPELINES) + " | widths |", "|---|---|" + "---|" * (len(PIPELINES) + 1)]
    said: list[str] = []
    for name, row in RUNTIMES.items():
        for kind in row["types"]:
            cells = [_cell(data, name, form, kind, said) for form in PIPELINES]
            if any(cells):
                told = (f"{name} ({data['versions'].get(name, 'refuses all')})", row["widths"])
                first, last = told if kind == row["types"][0] else ("", "")
                lines.append(f"| {first} | {kind} | {' | '.join(cells)} | {last} |")
    lines.append("")
    lines += [f"{number}. {message}" for number, message in enumerate(said, 1)]
    return "\n".join([*lines, *([""] if said else []), f"({data['run']})", ""])


def _cell(data: Mapping[str, Any], name: str, form: str, kind: str, said: list[str]) -> str:
    """What came out; messages go below the table."""
    wanted = (name, form, kind)
    row = next((row for row in data["rows"] if (row["runtime"], row["form"], row["type"]) == wanted), None)
    if row is None:
        return ""
    if row["outcome"] == "refused":
        message = f"{name}, {form}: `{row['message']}`"
        said.append(message)
        return f"refused ({len(said)})"
    counted = "" if row["equal"] == row["tokens"] else f", {row['equal']} of {row['tokens']} tokens"
    difference = "" if row["difference"] is None else f", {row['difference']:.0e}".replace("e-0", "e-")
    return f"{row['outcome']}{counted}{difference}"


def read_data() -> dict[str, Any]:
    """The rows of earlier runs."""
    return dict(json.loads(JSON.read_text(encoding="utf-8"))) if JSON.is_file() else {}


def merged(old: Mapping[str, Any], row: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The data with one more row, in the place of an earlier one."""
    place = ("runtime", "form", "type")
    kept = [one for one in old.get("rows", []) if any(one[name] != row[name] for name in place)]
    versions = {**old.get("versions", {}), **({row["runtime"]: row["version"]} if row["version"] else {})}
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    where = f"Python {platform.python_version()}, {platform.machine()}"
    told = f"the model is {model}; {where}, {packages}, {datetime.date.today()}"
    return {"run": told, "versions": versions, "rows": [*kept, dict(row)]}


def write_page(data: Mapping[str, Any]) -> None:
    """Put the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(data)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Run, and write ``table.json`` and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=Path, required=True, help="where environments and models are kept")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calib", type=Path, help="text, for a model other than demo")
    small = [name for name, row in RUNTIMES.items() if not row.get("large")]
    parser.add_argument("--runtimes", nargs="*", choices=list(RUNTIMES), default=small)
    parser.add_argument("--forms", nargs="*", choices=list(PIPELINES), default=list(PIPELINES))
    asked = parser.parse_args()
    data = read_data()
    for row in measure(asked.model, asked.runtimes, asked.forms, asked.environments.resolve(), asked.calib):
        print(json.dumps(row), flush=True)
        data = merged(data, row, Path(asked.model).name)
        JSON.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(data)


if __name__ == "__main__":
    main()
