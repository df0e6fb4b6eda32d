"""Where the models of a call run, from the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fxprune
from fxprune.cli import main
from fxprune.ir.errors import FxpruneError

from ..checkpoints import contents, write_checkpoint
from ..corpora import word_tokenizer

TEXT = ["one two three four five six seven eight nine ten " * 40]
PRUNE = "taylor{samples=3,length=16,ratio=0.25}"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, stored in float32, with a tokenizer."""
    folder = write_checkpoint(tmp_path_factory.mktemp("decoder"), dtype=torch.float32)
    word_tokenizer(["[unk]", *TEXT[0].split()[:10]]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply", "demo", "--pass", "taylor", "--dry-run", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["apply", "demo", "--pass", "magnitude", "--dry-run", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["eval", "demo", "--device", "tpu!"], "--device 'tpu!' is not the name of a device"),
        (["eval", "demo", "--dtype", "float64"], "--dtype float64: not an arithmetic"),
        (["bench", "demo", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["bench", "demo", "--offload", "cloud"], "--offload cloud: not known"),
        (["eval", "demo", "--max-memory", "lots"], "--max-memory 'lots' is no amount of memory"),
        (
            ["apply", "demo", "--pass", "taylor", "--dry-run", "--max-memory", "100kB"],
            "--max-memory 100.0 kB: the larg",
        ),
        (["eval", "demo", "--max-memory", "100kB"], "--max-memory 100.0 kB: the largest block takes"),
        (["export", "demo", "--out", "nowhere", "--device", "cuda:99"], "--device cuda:99: torch"),
        (["export", "demo", "--out", "nowhere", "--max-memory", "100kB"], "--max-memory 100.0 kB: the largest block"),
        (
            ["apply", "torch.nn:Identity", "--example", "float32[2,3]", "--pass", "magnitude", "--dtype", "float32"],
            "--dtype: only for Hugging Face models",
        ),
    ],
)
def test_what_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error, hint = printed.err.splitlines()
    assert message in error
    assert hint.startswith("hint: ")
    assert not Path("nowhere").exists()


def test_an_export_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fxprune.runtime.place import devices

    monkeypatch.setattr(devices, "found_devices", lambda: [torch.device("cuda", 0), torch.device("cpu")])
    with pytest.raises(FxpruneError, match="--device cuda:0: a format is written and compared on the CPU"):
        fxprune.export("demo", tmp_path / "out", device="cuda")


def test_where_it_ran_is_told_and_not_written(decoder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    applied = fxprune.apply(decoder, PRUNE, calib=TEXT, out=tmp_path / "out", device="cpu", progress=said.append)
    found = applied.to_json()["placement"]
    assert {**found, "why": ""} == {
        "device": "cpu", "dtype": "float32", "offload": "none", "max_memory": None, "why": "",
    }  # fmt: skip
    assert found["why"].startswith("cpu, float32; all weights in memory: ")
    assert found["why"] in said
    assert "placement" not in json.loads((tmp_path / "out" / "fxprune.json").read_text(encoding="utf-8"))


def test_without_a_pass_that_runs_the_model_nothing_is_loaded(decoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    applied = fxprune.apply(decoder, "magnitude{ratio=0.25}", out=out, offload="disk", max_memory="1kB")
    assert applied.placement is not None
    assert "weights stay on disk" in applied.placement.why


def test_a_coarse_arithmetic_rounds_nothing_that_stays(decoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    applied = fxprune.apply(decoder, PRUNE, calib=TEXT, out=out, device="cpu", dtype="bfloat16")
    assert applied.placement is not None
    assert applied.placement.dtype == torch.bfloat16
    expected = load_file(decoder / "model.safetensors")
    for key, kept in load_file(out / "fxprune.plan").items():
        name, _, dim = key.rpartition(":")
        expected[name] = expected[name].index_select(int(dim), kept)
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("steps", ["", ",compensate{samples=8,length=16}", ",lora{steps=2,batch=4,length=16}"])
def test_bfloat16_is_not_refused_for_its_rounding(decoder: Path, tmp_path: Path, steps: str) -> None:
    given: dict[str, Any] = {"calib": TEXT, "device": "cpu", "dtype": "bfloat16"}
    given |= {"data": TEXT} if "lora" in steps else {}
    applied = fxprune.apply(decoder, PRUNE + steps, out=tmp_path / "out", **given)
    assert applied.saved is not None
    assert applied.saved.checks["logits_worst_difference"] < 1e-5, "what is written is checked in float32"


def test_the_same_placement_writes_the_same_bytes(decoder: Path, tmp_path: Path) -> None:
    for name, given in {"plain": {}, "asked": {"device": "cpu", "dtype": "float32", "max_memory": "1GB"}}.items():
        fxprune.apply(decoder, PRUNE, calib=TEXT, out=tmp_path / name, **given)  # type: ignore[arg-type]
    assert contents(tmp_path / "plain") == contents(tmp_path / "asked")


def test_a_run_resumes_in_its_own_dtype_only(decoder: Path) -> None:
    from fxprune.api.pruning.run_identity import changes, identity
    from fxprune.tracer.model import resolve

    before, now = (identity(resolve(decoder), (), {}, dtype=str(dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert changes(before, now) == "--dtype was torch.bfloat16 and is torch.float32 now"


def test_eval_tells_where_it_ran(decoder: Path) -> None:
    row = fxprune.evaluate(decoder, TEXT, window=16, windows=4, device="cpu", dtype="bfloat16")[0]
    assert row.to_json()["placement"]["dtype"] == "bfloat16"
    plain = fxprune.evaluate(decoder, TEXT, window=16, windows=4, device="cpu")[0]
    assert plain.placement is not None
    assert plain.placement.dtype == torch.float32
    assert row.perplexity.value == pytest.approx(plain.perplexity.value, rel=0.05)
    assert row.perplexity.value != plain.perplexity.value


def test_a_module_is_pruned_where_it_is_asked_to_be(device: torch.device) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).eval()
    seen: list[torch.device] = []

    def loss(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch.device)
        return module(batch).square().mean()

    batches = [torch.randn(3, 8)]
    pruned = fxprune.prune_module(net, batches[0], "taylor", loss=loss, calib=batches, ratio=0.5, device=str(device))
    assert set(seen) == {device}
    assert next(pruned.module.parameters()).device == torch.device("cpu"), "the result is where the module was"


def test_doctor_shows_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][-1]["name"] == "cpu"
    assert {"float32", "bfloat16", "float64"} <= set(found["devices"][-1]["dtypes"])
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["host"] is None or found["host"]["free"] <= found["host"]["total"]
    assert found["uses"].keys() == {"apply", "eval, bench", "export"}
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("device", "cpu", "torch", torch.__version__, "onnxruntime-genai", found["uses"]["apply"]):
        assert part in shown


def test_doctor_tells_of_a_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fxprune.api import machine
    from fxprune.runtime.place.memory import HostMemory

    limited: Callable[[], HostMemory] = lambda: HostMemory(4 * 10**9, 10**9, 4 * 10**9)  # noqa: E731
    monkeypatch.setattr(machine, "host_memory", limited)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "limited to 4.0 GB by its control group" in shown
    assert "1.0 GB" in shown
