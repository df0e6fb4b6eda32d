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
from fxprune.api.pages.units import ROW_CELLS, UnitRow, cells_of, draw_kept, kept_rows, score_rows

EVIL = "</text><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>$x_1$"

RECORD: Mapping[str, Any] = {
    "model": "dense",
    "pipeline": "taylor{ratio=0.5},lora",
    "parameters": {"before": 2000, "after": 1500},
    "macs": {"before": 40, "after": 30, "of": "input_ids[5,7]"},
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
        "It leaves whole: layers 0.", "12.5", "tasks, arc, accuracy", "there was", "upon a time", "perplexity",
        "multiply-accumulates of one call, input_ids[5,7]", "40, 75.0%",
        "logits worst difference", "3 steps, loss 3.500 at first, 3.000 at last", "pass: - taylor: {ratio: 0.5} - lora",
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


def test_a_row_is_as_long_as_any_other_however_many_units_it_has() -> None:
    wide, narrow = np.zeros(3 * ROW_CELLS), np.array([1.0, 0.0, 1.0])
    wide[::3] = 1
    image = cells_of([UnitRow("a:w", "w", wide), UnitRow("b:w", "w", narrow)])
    assert image.shape == (2, ROW_CELLS)
    assert image[0] == pytest.approx(1 / 3), "the share of three units that is kept"
    assert image[1].tolist() == [float(not ROW_CELLS <= 3 * at < 2 * ROW_CELLS) for at in range(ROW_CELLS)]
    assert cells_of([UnitRow("b:w", "w", narrow)]).tolist() == [[1, 0, 1]]


def test_a_layer_that_is_far_wider_does_not_squeeze_the_others() -> None:
    rows = [UnitRow("m.0:c", "channels", np.ones(8)), UnitRow("m.1:c", "channels", np.ones(4000))]
    (plot,) = (one for one in draw_kept(rows)().axes if one.images)
    assert plot.get_xlim() == (0, 100)
    assert [text.get_text() for text in plot.texts] == ["8 of 8", "4,000 of 4,000"]
    (same,) = (one for one in draw_kept(rows[:1])().axes if one.images)
    assert same.get_xlim() == (-0.5, 7.5)


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
    assert (found.models, found.rows, found.samples) == (("model 1",), {"deep, a, b, c": ("1",)}, {})


def test_what_lists_beside_the_models_hold_is_theirs() -> None:
    both = [{"name": "a/one", "value": 0.5, "text": "x"}, {"name": "two", "value": 0.25, "text": "y"}, {"name": "no"}]
    found = read_evaluation("x", {
        "models": [{"name": "a/one", "parameters": 3}, {"name": "two"}], "differences": [{"name": "arc"}], "window": 1,
        "tasks": [{"name": "arc", "metric": "accuracy", "models": both}],
        "generations": [{"prompt": "P", "models": both}],
    })  # fmt: skip
    assert found is not None
    assert found.rows == {"parameters": ("3", ""), "accuracy: arc": ("0.5", "0.25")}
    assert found.differences == (), "it says no number"
    assert found.samples == {"P": ("x", "y")}


EVALUATED: Mapping[str, Any] = {
    "schema": "fxprune.eval/1", "window": 128, "baseline": "in/dense",
    "models": [
        {"name": name, "parameters": 2000, "bytes": 4000, "macs": 77, "perplexity": {"value": 25.0, "nll": 3.2},
         "speed": {"prefill": {"median": 900.0, "low": 800.0, "high": 1000.5}, "prompt": 96}}
        for name in ("OUT", "in/dense")
    ],
    "texts": [{"name": "held/one.txt", "models": [
        {"name": name, "log_perplexity": nll, "standard_error": 0.07, "perplexity": 23.5, "windows": 20, "tokens": 2540}
        for name, nll in (("OUT", 3.159), ("in/dense", 3.0923))
    ]}],
    "tasks": [{"name": "arc", "metric": "acc", "items": 20, "models": [
        {"name": name, "value": 0.65, "standard_error": error} for name, error in (("OUT", 0.109), ("in/dense", None))
    ]}],
    "differences": [
        {"of": "text", "name": "held/one.txt", "metric": "log_perplexity", "model": "OUT", "baseline": "in/dense",
         "difference": 0.0666, "standard_error": 0.0085, "pairs": 20},
        {"of": "task", "name": "arc", "metric": "acc", "model": "OUT", "baseline": "in/dense",
         "difference": -0.05, "standard_error": None, "pairs": 20},
    ],
}  # fmt: skip


def test_what_eval_measured_has_names_units_and_errors() -> None:
    found = read_evaluation("eval.json", EVALUATED)
    assert found is not None
    assert dict(found.rows) == {
        "perplexity: one.txt": ("23.5", "23.5"),
        "log-perplexity, nats per token: one.txt": ("3.1590 ± 0.0700", "3.0923 ± 0.0700"),
        "parameters": ("2,000", "2,000"),
        "weights, bytes": ("4,000", "4,000"),
        "multiply-accumulates of one window of 128 tokens": ("77", "77"),
        "tokens read per second": ("900 (800 to 1,000.5)",) * 2,
        "tokens read when it was timed": ("96", "96"),
        "windows of text: one.txt": ("20", "20"),
        "tokens that are predicted: one.txt": ("2,540", "2,540"),
        "acc: arc": ("0.6500 ± 0.1090", "0.65"),
    }
    shown = " ".join(Seen(page(Shown(evaluations=[found]))).read)
    read = re.sub(r"\s+", " ", shown)
    assert "Paired differences from dense" in read
    assert "one.txt, log-perplexity, nats per token OUT 20 +0.0666 ± 0.0085 7.8" in read
    assert "arc, acc OUT 20 -0.0500" in read
    assert not re.search(r"[a-z]+[._][a-z_]+\.(value|nll|median)", read), "no raw keys"


def test_what_bench_measured_has_names_and_units() -> None:
    spread = {"median": 0.5, "low": 0.25, "high": 1.0}
    timing = {"batch": 4, "first_token": spread, "tokens_per_second": {**spread, "median": 80.0}}
    row = {"name": "OUT", "macs": 77, "peak_memory": 10, "timings": [timing], "ideal": 1.25,
           "speedups": {"decode, batch 4": spread}}  # fmt: skip
    found = read_evaluation("bench.json", {"conditions": {"prompt": 96}, "models": [row]})
    assert found is not None
    assert dict(found.rows) == {
        "multiply-accumulates of one prompt of 96 tokens": ("77",),
        "peak memory, bytes": ("10",),
        "seconds to the first token, batch 4": ("0.5 (0.25 to 1)",),
        "tokens written per second, batch 4": ("80 (0.25 to 1)",),
        "MACs of the baseline, divided by its own": ("1.25",),
        "times as fast as the baseline, decode, batch 4": ("0.5 (0.25 to 1)",),
    }


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
