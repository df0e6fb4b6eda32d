"""The model card of an artifact: README.md with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...ir.errors import RequestError
from ...runtime.model_directory.regular_file import open_regular
from ..recipe import recipe_of
from ..replaceable import CARD
from .sentence_modules import MODULE_LIST

_LARGEST_HEAD = 1 << 16
"""Bytes in which the metadata of a card end."""

_TAKEN = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Metadata of the source that hold for what is made from it."""

_VALUE = re.compile(r"[\w][\w.:/+ -]{0,199}")
"""What a value of the source's metadata may be: a card of a stranger puts no text of its own into this one."""


def metadata_of(source: Path | None) -> dict[str, str | list[str]]:
    """What the card of a source says that holds for a model made from it: licence, languages, task.

    Args:
        source: its directory; a card that is missing or damaged says nothing.
    """
    if source is None:
        return {}
    try:
        with open_regular(source / CARD, links=True) as file:
            text = file.read(_LARGEST_HEAD).decode("utf-8", errors="replace").replace("\r\n", "\n")
        head = text.split("\n---", 1)[0].removeprefix("---\n") if text.startswith("---\n") else ""
        data = yaml.safe_load(head)
    except (OSError, yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(data, Mapping):
        return {}
    found = {name: _plain(data.get(name)) for name in _TAKEN}
    return {name: value for name, value in found.items() if value}


def _plain(value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [one for one in map(_plain, value[:20]) if isinstance(one, str) and one]
    return value if isinstance(value, str) and _VALUE.fullmatch(value) else ""


def loading_code(checks: Mapping[str, Any], path: str, *, code: bool) -> list[str]:
    """Two lines of Python that load an artifact with transformers alone; none where its class is not known.

    Args:
        checks: of the artifact.
        path: its directory.
        code: whether it brings code that has to run.
    """
    name = str(checks.get("loaded_by") or checks.get("described_by") or "").rpartition(".")[2]
    if not name:
        return []
    return [f"from transformers import {name}", f"model = {name}.from_pretrained({_arguments(path, code=code)})"]


def _sentence_code(path: str, *, code: bool) -> list[str]:
    """The same with sentence-transformers, for an artifact with its files."""
    return [
        "# or with what follows the model, which makes one vector of a text:",
        "from sentence_transformers import SentenceTransformer",
        f"model = SentenceTransformer({_arguments(path, code=code)})",
    ]


def _arguments(path: str, *, code: bool) -> str:
    text = json.dumps(path, ensure_ascii=False)  # a string of Python too
    return f"{text}, trust_remote_code=True" if code else text


def write_card(folder: Path, record: Mapping[str, Any], source: Path | None) -> None:
    """Write README.md into an artifact. Equal runs give equal bytes.

    Args:
        folder: the artifact.
        record: what ``fxprune.json`` will hold.
        source: the directory of the model that it was made from.
    """
    path, code = "DIRECTORY", bool(record.get("code"))
    loading = loading_code(record.get("checks") or {}, path, code=code)
    if (folder / MODULE_LIST).is_file():
        loading += ["", *_sentence_code(path, code=code)]
    (folder / CARD).write_text(_card(record, metadata_of(source), loading), encoding="utf-8")


def _card(record: Mapping[str, Any], taken: Mapping[str, Any], loading: Sequence[str]) -> str:
    from huggingface_hub import ModelCardData

    name = str(record.get("model") or "model")
    data = ModelCardData(
        base_model=name, library_name="transformers", tags=["fxprune", "pruned", "structured-pruning"], **taken
    )
    sizes, macs = record.get("parameters") or {}, record.get("macs") or {}
    before, after = sizes.get("before", 0), sizes.get("after", 0)
    lines = [
        "---", data.to_yaml(), "---", "",
        f"# {name}, pruned", "",
        f"Made from `{name}` by fxprune, which removes coupled channels, heads and"
        " layers. What is removed is gone from the weights: the model is a smaller one, not a masked one.",
        "",
        "| | before | after | kept |", "|---|---|---|---|",
        f"| parameters | {before:,} | {after:,} | {_share(after, before)} |",
        f"| multiply-accumulates | | | {_share(macs.get('after', 0), macs.get('before', 0))} |",
        "",
        "## Load it", "", "```python", *loading, "```", "",
        "## What was removed", "", "| units | before | after |", "|---|---|---|",
        *(f"| {kind} | {total:,} | {left:,} |" for kind, (total, left) in _by_kind(record).items()),
        "",
        "## How it was made", "", "```yaml", recipe_of(record).rstrip("\n"), "```", "",
        "`fxprune apply --recipe FILE` takes it. Checks of the written files, in a fresh process:", "",
        *(f"- {check.replace('_', ' ')}: {value}" for check, value in (record.get("checks") or {}).items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _share(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else ""


def _by_kind(record: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Kind of group -> number of units before and after, over all layers."""
    found: dict[str, tuple[int, int]] = {}
    for group in record.get("groups") or ():
        total, left = found.get(group["kind"], (0, 0))
        found[group["kind"]] = (total + group["before"], left + group["after"])
    return found


def with_results(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], text: str) -> str:
    """The card of an artifact with results of ``fxprune eval`` in its metadata and a table below.

    Args:
        folder: the artifact.
        name: its name in ``rows``.
        rows: models of the output of ``eval --json``.
        text: what it was measured on.

    Raises:
        RequestError: none of the rows is of this model.
    """
    from huggingface_hub import EvalResult, ModelCard

    mine = next((row for row in rows if Path(str(row.get("name"))).name == name), None)
    if mine is None:
        raise RequestError(
            f"no row is of '{name}': {', '.join(str(row.get('name')) for row in rows) or 'there are none'}",
            "give the output of `fxprune eval OUT ... --json`",
        )
    card = ModelCard.load(folder / CARD)
    value = float(mine["perplexity"]["value"])
    card.data.model_name = name
    card.data.eval_results = [EvalResult("text-generation", text, text, "perplexity", value)]
    table = ["", "## Results", "", f"Perplexity on {text}:", "", "| model | perplexity |", "|---|---|"]
    table += [f"| {Path(str(row['name'])).name} | {float(row['perplexity']['value']):.3f} |" for row in rows]
    card.text = card.text.rstrip("\n") + "\n" + "\n".join(table) + "\n"
    return str(card)
