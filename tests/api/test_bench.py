"""bench: what is counted, that models alternate, what is said where pruning is no gain, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune.api.benchmarking import benchmark, process
from fxprune.api.benchmarking.timings import (
    ONE_ROUND,
    Benchmark,
    BenchmarkResult,
    Conditions,
    RoundSpread,
    Timing,
    baselines_of,
)
from fxprune.api.terminal.tables import benchmarked
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime.consent import Consent


def model(folder: Path, width: int, **values: Any) -> Path:
    config = LlamaConfig(
        **{
            "hidden_size": 64,
            "intermediate_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
            "max_position_embeddings": 64,
            **values,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return model(folder / "wide", 128), model(folder / "narrow", 64)


@pytest.mark.wide
def test_two_models_in_torch_and_onnxruntime(models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *map(str, models),
        "--onnx",
        "--prompt",
        "8",
        "--new",
        "4",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--json",
        "-q",
    ]
    assert main(["bench", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found["conditions"] == {"prompt": 8, "new": 4, "rounds": 2, "threads": 1, "batches": [1, 8]}
    rows = found["models"]
    assert [(row["name"], row["runtime"]) for row in rows] == [
        (str(path), runtime) for runtime in ("torch", "onnxruntime") for path in models
    ]
    linear = {128: 4 * 64 * 64 + 3 * 64 * 128 + 64 * 50, 64: 4 * 64 * 64 + 3 * 64 * 64 + 64 * 50}
    attention = 2 * 2 * 8 * 8 * 32  # scores and values, two heads
    for row, width in zip(rows, (128, 64, 128, 64), strict=True):
        assert row["macs"] == 8 * linear[width] + attention
        assert row["parameters"] == linear[width] + 64 * 50 + 3 * 64
        stored = row["bytes"] / row["parameters"]
        assert 4 < stored < 8
        assert row["peak_memory"] is None or row["peak_memory"] > 0
        assert [timing["batch"] for timing in row["timings"]] == [1, 8]
        for timing in row["timings"]:
            for spread in (timing["first_token"], timing["tokens_per_second"]):
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert [row["ideal"] == 1 for row in rows] == [True, False, True, False]
    assert rows[1]["ideal"] == rows[0]["macs"] / rows[1]["macs"]
    names = [f"{figure}, batch {batch}" for batch in (1, 8) for figure in ("first token", "decode")]
    assert [list(row["speedups"]) for row in rows] == [[], names, [], names]


class Worker:
    """A process that takes the time it is told to, and remembers when it was asked."""

    asked: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, seconds: list[float], macs: int) -> None:
        self.name, self.seconds, self.macs = name, seconds, macs

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        self.asked.append(f"end {self.name}")

    def ready(self) -> None:
        self.asked.append(f"ready {self.name}")

    def time(self) -> dict[str, list[float]]:
        self.asked.append(self.name)
        seconds = self.seconds.pop(0)
        return {"1": [seconds, 4 * seconds], "8": [2 * seconds, 8 * seconds]}

    def figures(self) -> dict[str, Any]:
        return {"runtime": "torch", "parameters": 1, "bytes": 4, "macs": self.macs, "peak": None, "placement": None}


def test_models_alternate_and_rounds_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine grows slower by half each round: the ratio of times does not move."""
    monkeypatch.chdir(tmp_path)
    for name in "abcd":
        Path(name).mkdir()
    workers = {
        "a": Worker("a", [9.0, 1.0, 1.5, 2.25], 30),
        "b": Worker("b", [7.0, 0.5, 0.75, 1.125], 10),
        "c": Worker("c", [7.0, 2.0, 3.0, 4.5], 60),
        "d": Worker("d", [7.0, 0.5, 3.0, 2.25], 30),
    }
    monkeypatch.setattr(benchmark, "_worker", lambda job, _conditions, _progress: workers[job.name])
    Worker.asked = []
    result = fxprune.bench(list(workers), prompt=3, new=16, rounds=3)
    assert Worker.asked == [
        *(f"ready {name}" for name in "abcd"),
        *"abcd",
        *"abcddcbaabcd",
        *(f"end {name}" for name in "dcba"),
    ]
    first, faster, slower, unsure = result.models
    # The round that warms up, 9 seconds long, does not count.
    assert first.timings[0] == Timing(1, RoundSpread(1.5, 1.0, 2.25), RoundSpread(16 / 6, 16 / 9, 16 / 4))
    assert first.timings[1].tokens_per_second.median == 8 * 16 / 12
    assert (first.speedups, first.notes, first.ideal) == ({}, (), 1)
    assert set(faster.speedups.values()) == {RoundSpread(2, 2, 2)}
    assert (faster.ideal, faster.notes) == (3, ())
    assert slower.ideal == 0.5
    assert slower.notes[0] == "first token, batch 1: slower, 0.50 times the speed"
    assert unsure.notes[-1] == "decode, batch 8: no clear difference, 0.50 to 2.00 times the speed"


def test_one_round_compares_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).mkdir()
    workers = {"a": Worker("a", [9.0, 1.0], 30), "b": Worker("b", [7.0, 1.001], 30)}
    monkeypatch.setattr(benchmark, "_worker", lambda job, _conditions, _progress: workers[job.name])
    _, other = fxprune.bench(list(workers), prompt=3, new=16, rounds=1).models
    assert other.speedups
    assert other.notes == (ONE_ROUND,)


def test_a_difference_that_no_digit_shows_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(name).mkdir()
    workers = {"a": Worker("a", [9.0, 1.0, 1.0], 30), "b": Worker("b", [7.0, 1.001, 1.002], 30)}
    monkeypatch.setattr(benchmark, "_worker", lambda job, _conditions, _progress: workers[job.name])
    _, other = fxprune.bench(list(workers), prompt=3, new=16, rounds=2).models
    assert other.notes[0] == "first token, batch 1: no clear difference, 1.00 to 1.00 times the speed"


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (None, {"torch": 1, "onnxruntime": 2}),
        ("small", {"torch": 0, "onnxruntime": 3}),
        ("alone", {"torch": 4, "onnxruntime": 2}),
    ],
)
def test_the_largest_is_the_baseline_unless_one_is_named(baseline: str | None, expected: dict[str, int]) -> None:
    names = ["small", "large", "large", "small", "alone"]
    runtimes = ["torch", "torch", "onnxruntime", "onnxruntime", "torch"]
    figures = [{"runtime": r, "parameters": n} for r, n in zip(runtimes, [1, 3, 3, 1, 3], strict=True)]
    assert baselines_of(names, figures, baseline) == expected


def test_a_baseline_that_is_not_measured_is_refused() -> None:
    with pytest.raises(RequestError, match="--baseline other is none of the models") as caught:
        fxprune.bench(["demo"], baseline="other", rounds=1)
    assert "demo" in (caught.value.hint or "")


def test_table() -> None:
    timing = Timing(1, RoundSpread(0.25, 0.125, 0.5), RoundSpread(1200, 900, 1500))
    rows = [
        Benchmark("a", "torch", 2000, 8000, 4000, 10**6, (timing,), 1, {}, ()),
        Benchmark(
            "b",
            "torch",
            1000,
            4000,
            2000,
            None,
            (timing,),
            2,
            {"decode, batch 1": RoundSpread(0.5, 0.4, 0.6)},
            ("slow",),
        ),
    ]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=220)
    with console.capture() as capture:
        console.print(
            *benchmarked(BenchmarkResult(Conditions(8, 4, 3, 2, (1,)), tuple(rows), {"torch": "a"})), sep="\n"
        )
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert lines == [
        "prompt 8, then 4 tokens; 2 threads; median (lowest to highest) of 3 alternating rounds",
        "model runtime parameters size MACs per prompt memory first token ms, batch 1 tokens/s, batch 1",
        "a torch 2,000 8.00 kB 4.00 k 1.00 MB 250 (125 to 500) 1,200 (900 to 1,500)",
        "b torch 1,000 4.00 kB 2.00 k unknown 250 (125 to 500) 1,200 (900 to 1,500)",
        "",
        "speed-up over a runtime ideal (MACs) decode, batch 1",
        "b torch 2.00 0.50 (0.40 to 0.60)",
        "b in torch, slow",
    ]


NOTHING: list[tuple[dict[str, Any], str, str]] = [
    ({"rounds": 0}, "nothing to time with --rounds 0", "give --rounds 1 or more"),
    ({"prompt": 0, "new": 3}, "nothing to time with --prompt 0", "give --prompt 1 or more"),
    ({"new": -1}, "nothing to time with --new -1", "give --new 1 or more"),
    ({"threads": 0, "new": 0}, "nothing to time with --new 0, --threads 0", "give --new 1, --threads 1 or more"),
    ({"batches": (1, 0)}, "nothing to time with batches 1, 0", "give sizes of at least 1"),
    ({"models": []}, "nothing to time: there are no models", "give at least one model"),
]


@pytest.mark.parametrize(("options", "message", "hint"), NOTHING, ids=[row[1] for row in NOTHING])
def test_nothing_to_time(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        fxprune.bench(**{"models": ["demo"], **options})
    assert (error.value.message, error.value.hint) == (message, hint)


BENCHES: list[Callable[[Path], object]] = [
    lambda model: fxprune.bench(model, threads=1),
    lambda model: fxprune.bench(model, onnx=True, threads=1),
    lambda model: fxprune.bench_draft("demo", model),
]


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path / "bert")
    for bench in BENCHES:
        with pytest.raises(RequestError, match="is a BertModel, which is no causal language model: it writes") as error:
            bench(tmp_path / "bert")
        assert "time a call of the model" in error.value.hint


def test_what_a_process_refuses_arrives(models: tuple[Path, Path]) -> None:
    with pytest.raises(
        RequestError, match=r"--prompt and --new together are 65 tokens, but .*wide' has a context of 64"
    ) as error:
        fxprune.bench(models[0], prompt=60, new=5, threads=1)
    assert error.value.hint == "give a smaller --prompt or --new"


def serve(told: dict[str, Any]) -> dict[str, Any]:
    answers = io.StringIO()
    process.serve(json.dumps(told), io.StringIO(""), answers)
    (answer,) = answers.getvalue().splitlines()
    found: dict[str, Any] = json.loads(answer)
    return found


def test_a_process_tells_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = process.TimingJob("m", Consent.nothing(tmp_path / "nowhere")).to_json()
    conditions = {"prompt": 1, "new": 1, "rounds": 1, "threads": 1, "batches": [1]}
    found = serve({"job": job, "conditions": conditions})
    assert found["request"] is True
    assert "nowhere" in found["error"]

    def fail(*_arguments: object) -> None:
        raise ValueError("no weights")

    monkeypatch.setattr(process, "_Timed", fail)
    found = serve({"job": job, "conditions": conditions})
    assert found == {
        "error": "cannot time 'm': ValueError: no weights",
        "hint": "check with `fxprune eval` that the model runs",
        "request": False,
    }


@pytest.mark.usefixtures("real_processes")
@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"the process of 'm' ended with exit code -9$"),
        ("raise SystemExit('first\\nout of luck')", r"the process of 'm' ended with exit code 1: out of luck$"),
    ],
)
def test_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str) -> None:
    script = tmp_path / "python"
    (tmp_path / "program.py").write_text(program)
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "program.py"}"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    with pytest.raises(FxpruneError, match=message) as error:
        fxprune.bench("m", threads=1)
    assert "two models at a time" in error.value.hint
