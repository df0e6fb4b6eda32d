"""The page: what it shows is what files hold, nothing of theirs is obeyed, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from fxprune.api.pages import page as pages
from fxprune.api.pages.evaluations import number, read_evaluation
from fxprune.api.pages.page import PAGE_BEGINS, Shown, ShownRun, fragment, page
from fxprune.api.pages.training import losses_of
from fxprune.api.pages.units import kept_rows, score_rows

EVIL = "</text><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>$x_1$"

RECORD: Mapping[str, Any] = {
    "model": "dense",
    "pipeline": "taylor{ratio=0.5},lora",
    "parameters": {"before": 2000, "after": 1500},
    "macs": {"before": 40, "after": 30},
    "form": "uniform",
    "model_type": "llama",
    "groups": [
        {"name": "model.layers.0.mlp:width", "kind": "width", "layer": 0, "before": 6, "after": 3},
        {"name": "model.layers.1.self_attn:heads", "kind": "heads", "layer": 1, "before": 4, "after": 2},
    ],
    "passes": {"taylor": {"groups": 2}, "lora": {"loss": [3.5, 3.25, 3.0]}, "drop": {"dropped": [2]}},
    "checks": {"logits_worst_difference": 1e-6, "all_finite": True},
}
SLICES = {
    ("model.layers.0.mlp.up_proj.weight", 0): np.array([0, 2, 5]),
    ("model.layers.1.self_attn.q_proj.weight", 0): np.array([2, 3, 6, 7]),
}
ANALYSIS: Mapping[str, Any] = {
    "fxprune": "analysis",
    "model": "dense",
    "measure": "params",
    "unit": "nats per token",
    "bound": 0.1,
    "target": "params=0.8",
    "spared": [0],
    "groups": [
        {
            "name": f"model.layers.{layer}.mlp:width", "kind": "width", "layer": layer, "units": 6, "counts": [1, 3, 6],
            "losses": [2.0, 0.5, 0.0], "kept": 6, "scores": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        }
        for layer in range(2)
    ],
    "parts": [{"name": "model.layers.0", "layer": 0, "kind": "layer", "loss": 1.5, "parameters": 10}],
    "budgets": [{"share": 0.8, "reached": 1600, "predicted": 0.07, "measured": 0.08}],
    "recommended": {"share": 0.8, "reached": 1600, "predicted": 0.07, "measured": 0.08},
    "next": [{"for": "widths as measured", "command": "fxprune apply dense --target params=0.8"}],
}  # fmt: skip
MODELS = {
    "models": [
        {
            "name": "a/dense", "parameters": 2000, "perplexity": {"value": 12.5}, "placement": {"device": 1},
            "tasks": {"arc": {"accuracy": 0.5}}, "generations": [{"prompt": "Once", "text": "upon a time"}],
        },
        {"name": "small", "parameters": 1500, "perplexity": {"value": 13.5}, "generations": [
            {"prompt": "Once", "outputs": [], "output": ["there was"]}]},
    ]
}  # fmt: skip


def evil(value: Any) -> Any:
    """The same data with every text in it spoiled, and every key that is a name."""
    if isinstance(value, Mapping):
        return {key if key in KEPT else key + EVIL: evil(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [evil(inner) for inner in value]
    return value + EVIL if isinstance(value, str) else value


KEPT = {
    *RECORD, "before", "after", "name", "kind", "layer", "loss", *ANALYSIS, "units", "counts", "losses", "kept",
    "share", "reached", "predicted", "measured", "for", "command", "value", "prompt", "text", "output", "dropped",
    "generations", "models", "drop",
}  # fmt: skip


def full(data: Any = lambda value: value) -> str:
    measured = read_evaluation("eval.json" + data(""), data(MODELS))
    assert measured is not None
    run = ShownRun("OUT" + data(""), data(RECORD), SLICES, 3000)
    return page(Shown([run, run], {"a.json": data(ANALYSIS)}, {"s": {data("m.0.mlp:width"): [1.0, 2.0]}}, [measured]))


class Seen(HTMLParser):
    """Tags, ids and addresses of a page, and what can be read on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.read: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.read.append(data)


def test_the_page_shows_what_the_files_hold() -> None:
    text = full()
    assert text.encode().startswith(PAGE_BEGINS)
    read = re.sub(r"\s+", " ", " ".join(Seen(text).read))
    for said in (
        "1,500 of 2,000, 75.0%", "40, 75.0%", "of 4,000 B, 75.0%", "taylor{ratio=0.5},lora", "params=0.8", "layer 2",
        "It leaves whole: layers 0.", "12.5", "tasks.arc.accuracy", "there was", "upon a time", "perplexity.value",
        "logits worst difference", "3 steps, loss 3.5 at first, 3 at last", "pass: taylor{ratio=0.5},lora",
        "fxprune apply dense --target params=0.8", "kv heads"[3:],
    ):  # fmt: skip
        assert said in read, said
    assert "placement" not in read
    assert text.count("<svg") == 2 * 2 + 1 + 1, "of two runs units and training, of the analysis, of the scores"


def test_nothing_in_files_is_obeyed() -> None:
    seen = Seen(full(evil))
    assert not seen.tags & {"script", "img", "iframe", "object", "embed", "link", "form", "base"}
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert "alert(1)" in " ".join(seen.read), "it is shown"
    assert "</text><script>" not in full(evil)


@pytest.mark.parametrize("data", [lambda value: value, evil], ids=["plain", "spoiled"])
def test_nothing_is_loaded_from_elsewhere(data: Any) -> None:
    text = full(data)
    seen = Seen(text)
    addresses = [value for name, value in seen.attributes if name.rpartition(":")[2] in {"href", "src", "srcset"}]
    assert {value[:2] for value in addresses} == {"#p", "da"}
    assert {value[:22] for value in addresses if value[:2] == "da"} == {"data:image/png;base64,"}
    assert set(re.findall(r"url\((..)", text)) == {"#p"}
    assert "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in seen.attributes
    names = [value for name, value in seen.attributes if name == "id"]
    assert len(names) == len(set(names))


def test_a_page_is_the_same_for_the_same_files() -> None:
    assert full() == full()


def test_kept_units_are_those_of_the_plan() -> None:
    rows = {row.kind: row.values.tolist() for row in kept_rows(RECORD["groups"], SLICES)}
    assert rows == {"width": [1, 0, 1, 0, 0, 1], "heads": [0, 1, 0, 1]}
    assert kept_rows(RECORD["groups"], {}) == []
    torn = {("model.layers.0.mlp.up_proj.weight", 0): np.array([0, 1, 2, 3, 6, 7, 8])}
    assert kept_rows(RECORD["groups"], torn) == []


def test_scores_are_set_in_relation_within_a_group() -> None:
    (row,) = score_rows({"m.0:width": [1.0, -4.0], "search m": [[1.0], [2.0]], "empty": [], "nan": [float("nan")]})
    assert (row.kind, row.values.tolist()) == ("width", [0.25, 1.0])


def test_losses_are_those_of_passes_that_trained() -> None:
    passes = {"lora": {"loss": [2, 1.5]}, "a": {"loss": "none"}, "b": {"loss": [1.0]}, "c": 3, "d": {"loss": [1, "x"]}}
    assert losses_of(passes) == {"lora": [2.0, 1.5]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (0.5, "0.5"), (12.34567, "12.35"), (2992.43, "2,992.4"), (1e-7, "1e-07"), (4.0, "4")],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_measurements_are_read_leniently() -> None:
    assert read_evaluation("x", {"models": []}) is None
    assert read_evaluation("x", {"models": [1, "a"]}) is None
    found = read_evaluation("x", {"models": [{"odd": [1], "deep": {"a": {"b": {"c": 1}}}, "flag": True, "n": None}]})
    assert found is not None
    assert (found.models, found.rows, found.samples) == (("model 1",), {"deep.a.b.c": ("1",)}, {})


def test_what_lists_beside_the_models_hold_is_theirs() -> None:
    both = [{"name": "a/one", "value": 0.5, "text": "x"}, {"name": "two", "value": 0.25, "text": "y"}, {"name": "no"}]
    found = read_evaluation("x", {
        "models": [{"name": "a/one", "parameters": 3}, {"name": "two"}], "differences": [{"name": "arc"}], "window": 1,
        "tasks": [{"name": "arc", "metric": "accuracy", "models": both}],
        "generations": [{"prompt": "P", "models": both}],
    })  # fmt: skip
    assert found is not None
    assert found.rows == {"parameters": ("3", ""), "arc accuracy value": ("0.5", "0.25")}
    assert found.samples == {"P": ("x", "y")}


def test_a_notebook_shows_a_run_without_pictures_where_nothing_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ShownRun("OUT", RECORD, SLICES, 3000)
    assert fragment(run).count("<svg") == 2
    monkeypatch.setattr(pages, "can_draw", lambda: False)
    text = fragment(run)
    assert "<svg" not in text
    assert "75.0%" in text
    assert "<html" not in text


def test_nothing_draws_before_it_is_asked_to() -> None:
    code = "import sys, fxprune.api.pages.page; sys.exit(bool({'matplotlib', 'jinja2', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    loaded = "import sys, fxprune.api.pruning.result; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
