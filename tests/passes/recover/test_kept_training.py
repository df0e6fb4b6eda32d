"""A training that breaks off goes on from the last state that was kept, to the same bytes."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from fxprune.api.pruning import resume
from fxprune.ir.errors import RequestError
from fxprune.passes.halfway import Halfway
from fxprune.passes.recover import kept_training
from fxprune.passes.recover.base import Recovery
from fxprune.passes.recover.distill import Distill
from fxprune.passes.recover.finetune import Finetune
from fxprune.passes.recover.kept_training import STATE, KeptTraining, TrainingState
from fxprune.passes.recover.lora import Lora
from fxprune.passes.state import NoHost

from ...checkpoints import contents
from ...corpora import UnequalRows
from ...decoders import llama
from ...states import state_of
from .test_distill import OPTIONS, damaged
from .test_lora import weights
from .test_offloaded import applied, write_source

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = UnequalRows()


@pytest.fixture(autouse=True)
def _every_step_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_training, "SHARE", 0)


class Broken(Exception):
    """What breaks a training off."""


class Keeping(NoHost):
    """A host that gives a folder."""

    def __init__(self, folder: Path, **given: Any) -> None:
        self.told: list[str] = []
        told = {"run": {"a": 1}, "place": 2, "go_on": True, "differs": self._differs, "tell": self.told.append}
        self.halfway = Halfway(folder, **{**told, "every": 0.0, **given})

    def _differs(self, run: Any) -> str:
        return "" if run == self.halfway.run else f"a was {run['a']} and is {self.halfway.run['a']} now"


def trained(step: Recovery, host: NoHost, model: Any = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and report."""
    model = model or damaged(llama())
    state = state_of(None, model, recovery=DATA, dense=llama(), host=host)
    step.run(state)
    report: dict[str, Any] = state.ledger.report[step.name]
    return weights(model), report


def broken_after(steps: int, step: Recovery, host: NoHost, model: Any = None) -> None:
    """Train until so many steps are done."""
    keep = KeptTraining.keep

    def breaking(self: KeptTraining, state: TrainingState) -> None:
        keep(self, state)
        if state.step == steps:
            raise Broken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptTraining, "keep", breaking)
        with pytest.raises(Broken):
            trained(step, host, model)


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize(
    "step",
    [
        Lora(**OPTIONS | {"steps": 7, "batch": 2, "micro_batch": 1}),
        Finetune(**OPTIONS | {"steps": 0, "epochs": 2, "micro_batch": 4}),
        Distill(**OPTIONS | {"steps": 7}, top_k=4),
    ],
)
def test_a_training_that_goes_on_gives_the_same_bits(step: Recovery, after: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole, report = trained(step, NoHost())
    after = min(after, report["steps"] - 1)
    host = Keeping(tmp_path / "kept")
    broken_after(after, step, host)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"{after:08}.safetensors", STATE]
    torch.manual_seed(2)
    torch.rand(3)
    got, again = trained(step, host)
    assert again["loss"] == report["loss"]
    assert again["tokens"] == report["tokens"]
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.items())
    assert host.told == []


def test_a_training_of_a_model_in_half_precision_goes_on_too(tmp_path: Path) -> None:
    step, host = Finetune(**OPTIONS | {"steps": 4}), Keeping(tmp_path / "kept")
    whole, _ = trained(step, NoHost(), llama().half())
    broken_after(2, step, host, llama().half())
    got, _ = trained(step, host, llama().half())
    assert {tensor.dtype for tensor in got.values()} == {torch.float16}
    assert all(torch.equal(got[name], tensor) for name, tensor in whole.items())


def test_what_is_kept_is_data_and_is_not_kept_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Keeping(tmp_path / "kept", every=1000.0)
    trained(Lora(**OPTIONS | {"steps": 2}), host)
    assert not (tmp_path / "kept").exists()
    host = Keeping(tmp_path / "kept")
    broken_after(1, Lora(**OPTIONS), host)
    data = json.loads((tmp_path / "kept" / STATE).read_text())
    assert data["step"] == 1
    assert data["run"] == {"a": 1}
    assert data["text"].startswith("lora{")
    kept = KeptTraining(host.halfway, data["text"])
    assert kept.due
    monkeypatch.setattr(kept_training, "SHARE", 20)
    kept._cost = 1.0
    assert not kept.due, "keeping that takes a second is done every twenty"


@pytest.mark.first_rows(1)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": {"a": 2}}, r"cannot go on inside lora: a was 1 and is 2 now"),
        ({"go_on": False}, ""),
        ({"place": 3}, ""),
    ],
)
def test_a_state_of_something_else_is_not_gone_on_from(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    step = Lora(**OPTIONS | {"steps": 2})
    broken_after(1, step, Keeping(tmp_path / "kept"))
    host = Keeping(tmp_path / "kept", **changed)
    if message:
        with pytest.raises(RequestError, match=message) as caught:
            trained(step, host)
        assert "--resume" in caught.value.hint
    else:
        assert trained(step, host)[1]["steps"] == 2


def cut_off(folder: Path) -> None:
    file = folder / "00000001.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def no_json(folder: Path) -> None:
    (folder / STATE).write_text("{")


def of_another_version(folder: Path) -> None:
    data = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps({**data, "format": 0}))


@pytest.mark.parametrize("damage", [cut_off, no_json, of_another_version])
def test_a_damaged_state_is_refused(damage: Any, tmp_path: Path) -> None:
    step, host = Lora(**OPTIONS | {"steps": 2}), Keeping(tmp_path / "kept")
    broken_after(1, step, host)
    damage(tmp_path / "kept")
    with pytest.raises(RequestError, match=r"kept.* is damaged") as caught:
        trained(step, host)
    assert "leave out --resume" in caught.value.hint


def test_a_full_disk_does_not_stop_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    host = Keeping(tmp_path / "kept")
    trained(Lora(**OPTIONS | {"steps": 2}), host)
    assert host.told[0].startswith("step 1 is not saved for --resume: it needs 0.0 GB")


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_run_that_breaks_off_inside_a_training_goes_on_inside_it(
    offload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "source")
    passes = "magnitude,lora{steps=5,batch=4,micro_batch=2,length=8,lr=0.01}"
    whole = applied(source, passes, "whole", offload=offload)
    monkeypatch.setattr(resume, "EVERY", 0.0)
    keep, seen = KeptTraining.keep, []

    def breaking(self: KeptTraining, state: TrainingState) -> None:
        keep(self, state)
        seen.append(state.step)
        if seen == [1, 2, 3]:
            raise Broken

    monkeypatch.setattr(KeptTraining, "keep", breaking)
    with pytest.raises(Broken):
        applied(source, passes, "out", offload=offload, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [
        ".out.halfway",
        ".out.stages",
    ]
    assert whole == applied(source, passes, "out", offload=offload, resume=True)
    assert seen == [1, 2, 3, 4, 5]
    assert contents(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
