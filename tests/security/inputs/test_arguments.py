"""Whatever is written for an option, it is taken or refused: nothing that a user gives is a bug in fxprune."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fxprune.backends.huggingface import weight_source
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.runtime.place.memory import parse_bytes
from fxprune.tracer.module import parse_example

from ..strangers import write_model

LONG = "9" * 5000
ODD = (
    "", "-1", "nan", "1e999", str(2**63), "9" * 400, LONG, "-" + LONG, "²", "٣", "none", "9:1", f"{LONG}:1", "=",
    f"params={LONG}", "x{y=1", "\x1b[2J", "../..", "/dev/null", "%s",
)  # fmt: skip

APPLY = ["apply", "MODEL", "--pass", "random", "--ratio", "0.5", "--out", "OUT", "--force"]
TRACE = ["trace", "torch.nn:Identity"]
EVAL = ["eval", "MODEL", "--text", "TEXT", "--windows", "1", "--window", "8"]

OPTIONS: dict[str, list[str]] = {
    "--ratio": APPLY, "--seed": APPLY, "--multiple-of": APPLY, "--layers": APPLY, "--target": APPLY, "--device": APPLY,
    "--dtype": APPLY, "--offload": APPLY, "--max-memory": APPLY, "--pass": APPLY, "--form": APPLY, "--plan": APPLY,
    "--example": TRACE, "--loss": APPLY, "--why": TRACE, "--window": EVAL, "--windows": EVAL, "--text": EVAL,
    "--calib": [*APPLY, "--pass", "magnitude"],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("arguments") / "model")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is checked in a process of its own, which is none of the arguments' business."""
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})


def words(option: str, value: str, model: Path, tmp_path: Path) -> Iterator[str]:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out"), "TEXT": str(model.parent / "text.txt")}
    yield from (places.get(word, word) for word in OPTIONS[option])
    yield from (f"{option}={value}", *(["b"] if option == "--why" else []))


@pytest.mark.wide
@pytest.mark.parametrize("option", OPTIONS)
def test_no_value_of_an_option_is_a_bug(
    option: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = 0
    for value in ODD:
        try:
            code = main(list(words(option, value, model, tmp_path)))
        except SystemExit as stop:
            code = int(stop.code or 0)
        told = capfd.readouterr().err
        assert "error: unexpected " not in told, (value[:40], told)
        assert "bug in fxprune" not in told, (value[:40], told)
        assert code == 0 or "error: " in told, (value[:40], code)
        refused += code == 2
    assert refused > len(ODD) / 2


@pytest.mark.parametrize(
    "dtype", ["quint8", "bits8", "complex32", "float8_e8m0fnu", "uint64", "float4_e2m1fn_x2", "uint7"]
)
def test_a_dtype_that_no_graph_has(dtype: str) -> None:
    with pytest.raises(RequestError, match=f"'{dtype}' is not a torch dtype that a graph can hold") as caught:
        parse_example(f"{dtype}[2]")
    assert caught.value.hint


@pytest.mark.parametrize("shape", [LONG, str(2**63), f"2,{2**31}", "0,9999999999999", "65536,65536"])
def test_an_example_that_no_memory_holds(shape: str) -> None:
    with pytest.raises(RequestError, match="has more than 2,147,483,648 elements") as caught:
        parse_example(f"float32[{shape}]")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64", "int8", "uint8", "complex64", "bool", "long"])
def test_examples_of_the_others(name: str) -> None:
    (made,) = parse_example(f"{name}[2,3]")  # type: ignore[misc]
    assert made.dtype is getattr(torch, name)
    assert made.shape == (2, 3)


@pytest.mark.parametrize("text", ["9" * 400 + "GB", str(2**63), "9999999999TB"])
def test_more_memory_than_there_can_be(text: str) -> None:
    with pytest.raises(RequestError, match="is more than any memory"):
        parse_bytes(text, "--max-memory")
