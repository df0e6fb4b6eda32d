"""``apply`` and ``eval`` in two processes: the same result as in one; whatever goes wrong in one ends both."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig

from fxprune import api
from fxprune.backends.huggingface import weight_source
from fxprune.ir.errors import FxpruneError

from ..checkpoints import WIDTHS, contents, write_checkpoint
from ..corpora import word_tokenizer

# The two processes import once and run one job after the other; each prints a line of JSON for every job.
RUNS = """
import contextlib, json, os, resource, signal, sys
import torch
torch.set_num_threads(1)
import fxprune
from fxprune.api import agreement
from fxprune.api.pruning import model_run
from fxprune.backends.huggingface import save as saving, weight_source
from fxprune.ir.errors import FxpruneError
from fxprune.api.pruning import resume
from fxprune.passes.recover import kept_training
from fxprune.passes.score.taylor import Taylor
from fxprune.runtime import ranks

# The check in a fresh process takes longer than all else here, and other tests have it.
saving.FreshProcess, weight_source.verify_written = contextlib.nullcontext, lambda *_: {}

rank = int(os.environ["RANK"])
version, scores, save = agreement.version, Taylor.scores, model_run.ModelRun.save
State, state_of = kept_training.TrainingState, kept_training.TrainingState.of

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_after_three_steps(*arguments, **how):
    state = state_of(*arguments, **how)
    if state.step == 3:
        killed()
    return state

def full(*arguments, **how):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        return save(*arguments, **how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

def no_room(*_):
    raise OSError(28, "No space left on device")

def run(job):
    agreement.version, Taylor.scores, model_run.ModelRun.save = version, scores, save
    trouble = job.pop("trouble", None)
    os.environ["FXPRUNE_RANK_TIMEOUT"] = job.pop("limit", "120")
    if trouble == "version" and rank:
        agreement.version = lambda name: "1.0" if name == "torch" else version(name)
    if trouble == "killed" and rank:
        Taylor.scores = killed
    if job.pop("keeps every step", False):
        resume.EVERY, kept_training.SHARE = 0.0, 0
    if trouble == "killed while it trains" and rank:
        State.of = killed_after_three_steps
    if trouble == "no room" and rank:
        Taylor.scores = no_room
    if trouble == "full" and not rank:
        model_run.ModelRun.save = full
    other, places = job.pop("other", {}), job.pop("places", None)
    job |= other if rank else {}
    if places:
        os.chdir(places[rank])
    said = []
    if job.pop("call", "") == "evaluate":
        row = fxprune.evaluate(**job)[0]
        return {"perplexity": row.perplexity.value, "speed": row.speed.decode.median}
    done = fxprune.apply(**job, progress=said.append)
    record = {name: entry for name, entry in done.to_json().items() if name not in ("steps", "placement")}
    for entry in record["passes"].values():
        entry.pop("seconds", None)
    return {"after": done.parameters[1], "record": record, "said": len(said)}

for line in sys.stdin:
    try:
        found = run(json.loads(line))
    except Exception as error:
        code = error.exit_code if isinstance(error, FxpruneError) else None
        told = ranks.ELSEWHERE in getattr(error, "__notes__", ())
        found = {"error": str(error), "hint": getattr(error, "hint", ""), "code": code, "told": told}
    print(json.dumps(found), flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets, for one of two processes."""
    return {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


class Two:
    """Two processes that make the same calls."""

    def __init__(self) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", RUNS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(rank, port),
            )
            for rank in (0, 1)
        ]

    def __call__(self, **job: Any) -> list[dict[str, Any] | None]:
        """What each of the two says about a job; None for one that has ended."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        return [json.loads(line) if line else None for line in lines]

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


VOCABULARY = {word: number for number, word in enumerate("abcdefghijklmnopqrstuvwxyz")}
TAYLOR = "taylor{samples=4,length=8}"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model and a text, as arguments of apply."""
    folder = tmp_path_factory.mktemp("given")
    source = write_checkpoint(folder / "source", dtype=torch.float32)
    word_tokenizer(VOCABULARY).save_pretrained(source)
    (folder / "text.txt").write_text(" ".join(list(VOCABULARY)[i * i % 26] for i in range(400)))
    return {"model": str(source), "calib": str(folder / "text.txt")}


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def without_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})


def pruned(given: dict[str, str], out: Path, passes: str = TAYLOR, **options: Any) -> dict[str, Any]:
    return {**given, "passes": passes, "ratio": 0.5, "out": str(out), **options}


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_as_one(two: Two, job: dict[str, Any], folder: Path, *, but: Set[str] = frozenset()) -> Any:
    """Compare what two processes write with what one does: all files equal, weights nearly."""
    one = api.apply(**job | {"out": str(folder / "one")})
    first, second = two(**job | {"out": str(folder / "two")})
    assert first is not None
    assert second is not None
    assert "error" not in first, first["error"]
    assert first["after"] == second["after"] == one.parameters[1]
    assert first["record"] == second["record"], "both return the whole result"
    assert set(left_behind(folder)) - but == {"one", "two"}
    plans = (contents(folder / name)["fxprune.plan"] for name in ("one", "two"))
    assert len(set(plans)) == 1
    wanted, found = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-6 * float(tensor.abs().max()), name
    return first, second


def test_apply_gives_what_one_process_gives(two: Two, given: dict[str, str], tmp_path: Path) -> None:
    found = same_as_one(two, pruned(given, tmp_path / "out"), tmp_path)
    assert [said["said"] > 3 for said in found] == [True, False], "rank 0 alone tells its progress"


FEW = "samples=5,length=8,batch=2"
"""So few windows that the two processes have different numbers of them, and batches other than one process has."""

PIPELINES = [
    f"taylor{{variant=vector,samples=5,length=8}},compensate{{{FEW}}}",
    f"taylor{{variant=second,samples=5,length=8}},flap{{{FEW}}}",
    f"taylor{{variant=element2,samples=5,length=8}},activation{{{FEW}}}",
    f"fisher{{{FEW},by=global,target=params:0.9}},obs{{metric=outputs,sequential=false,{FEW}}}",
    f"obs{{metric=loss,{FEW}}},compensate{{{FEW}}}",
    f"drop{{layers=1,by=perplexity,samples=3,length=8}},wanda{{by=search,moves=2,{FEW}}}",
]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", PIPELINES)
def test_every_score_and_refit_is_that_of_one_process(
    passes: str, two: Two, given: dict[str, str], tmp_path: Path
) -> None:
    same_as_one(two, pruned(given, tmp_path / "out", passes, ratio=0.25), tmp_path)


EXPERTS = MixtralConfig(**WIDTHS, num_local_experts=6, num_experts_per_tok=1)


ROUTED = [f"taylor{{samples=3,length=4}},compensate{{{FEW}}}", f"wanda{{{FEW}}},fisher{{{FEW}}}"]


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", ROUTED)
def test_experts_that_no_token_of_a_rank_reaches(passes: str, two: Two, given: dict[str, str], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", EXPERTS, dtype=torch.float32)
    word_tokenizer(VOCABULARY).save_pretrained(source)
    job = pruned(given, tmp_path / "out", passes, model=str(source), ratio=0.25)
    same_as_one(two, job, tmp_path, but={"source"})


@pytest.mark.wide
def test_recovery_shares_its_examples(two: Two, given: dict[str, str], tmp_path: Path) -> None:
    """By the Trainer itself: the same steps on the same examples, each rank with half of a batch."""
    job = pruned(given, tmp_path / "one", "random,lora{steps=2,batch=4,micro_batch=2,length=8,dropout=0.0}")
    job |= {"data": given["calib"]}
    one = api.apply(**job).report["lora"]
    for said in two(**job | {"out": str(tmp_path / "two")}):
        assert said is not None
        found = said["record"]["passes"]["lora"]
        assert found["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert found["tokens"] == one["tokens"]
    assert left_behind(tmp_path) == ["one", "two"]


def test_eval_gives_what_one_process_gives(two: Two, given: dict[str, str]) -> None:
    asked = {"models": given["model"], "text": given["calib"], "window": 8, "windows": 17}
    (one,) = api.evaluate(**asked)
    first, second = two(call="evaluate", **asked)
    assert first is not None
    assert first == second, "the speed is that of rank 0"
    assert first["perplexity"] == pytest.approx(one.perplexity.value, rel=1e-6)
    for found in two(call="evaluate", **asked | {"windows": 1}):
        assert found is not None
        assert found["error"] == "1 windows cannot be shared among 2 processes"


DIFFERENT = {
    "arguments": ({"other": {"ratio": 0.25}}, "rank 1 differs from rank 0: ratio is 0.25 instead of 0.5"),
    "versions": ({"trouble": "version"}, "rank 1 differs from rank 0: the version of torch is 1.0 instead of "),
}


@pytest.mark.parametrize(("how", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_ranks_that_differ_are_refused(
    how: dict[str, Any], message: str, two: Two, given: dict[str, str], tmp_path: Path
) -> None:
    found = two(**pruned(given, tmp_path / "out"), **how)
    for said in found:
        assert said is not None
        assert said["error"].startswith(message)
        assert (said["code"], said["hint"]) == (2, "give all processes the same command, files and versions")
    assert [said and said["told"] for said in found] == [False, True]
    assert not left_behind(tmp_path)


def test_ranks_that_see_different_files_are_refused(two: Two, given: dict[str, str], tmp_path: Path) -> None:
    places = [tmp_path / str(number) / "model" for number in (0, 1)]
    shutil.copytree(given["model"], places[0])
    shutil.copytree(given["model"], places[1])
    write_checkpoint(places[1], dtype=torch.float32, seed=1)
    # The same arguments on two machines: here each process has a directory of its own.
    found = two(**pruned(given, tmp_path / "out", model="model"), places=[str(place.parent) for place in places])
    for said in found:
        assert said is not None
        differs = r"the file model.safetensors is ([\d,]+) bytes \(\w+\) instead of \1 bytes \(\w+\)"
        assert re.fullmatch(f"rank 1 differs from rank 0: {differs}", said["error"])
        assert said["code"] == 2
    assert left_behind(tmp_path) == ["0", "1"]


def told_by_rank_0(found: list[dict[str, Any] | None], failing: int, message: str) -> None:
    """Whether both ended with the error of one, and rank 0 alone tells the user."""
    learnt, own = found[1 - failing], found[failing]
    assert learnt is not None
    assert own is not None
    assert learnt["error"].startswith(message)
    assert own["error"] in learnt["error"]
    assert [said and said["told"] for said in found] == [False, True]


FULL = {"no room": (1, "rank 1 failed: OSError: [Errno 28] No space left on device"), "full": (0, "rank 0 failed: ")}


@pytest.mark.parametrize("trouble", FULL)
def test_a_full_disk_ends_both(trouble: str, two: Two, given: dict[str, str], tmp_path: Path) -> None:
    told_by_rank_0(two(**pruned(given, tmp_path / "out"), trouble=trouble), *FULL[trouble])
    assert not left_behind(tmp_path)


def test_after_all_that_they_still_work(two: Two, given: dict[str, str], tmp_path: Path) -> None:
    assert all(said and "after" in said for said in two(**pruned(given, tmp_path / "out")))
    assert left_behind(tmp_path) == ["out"]


def test_a_killed_rank_is_named_within_the_limit(two: Two, given: dict[str, str], tmp_path: Path) -> None:
    """The last job of these processes."""
    began = time.monotonic()
    found, ended = two(**pruned(given, tmp_path / "out"), trouble="killed", limit="10")
    assert time.monotonic() - began < 60
    assert ended is None
    assert two.processes[1].wait(60) == -signal.SIGKILL
    assert found is not None
    assert found["error"].startswith("rank 1 was killed, or took more than 10 s; waited for: ")
    assert not found["told"]
    assert not left_behind(tmp_path)


@pytest.mark.slow
def test_a_training_whose_rank_was_killed_goes_on_to_the_same_bytes(given: dict[str, str], tmp_path: Path) -> None:
    lora = "random,lora{steps=4,batch=4,micro_batch=2,length=8}"
    job = pruned(given, tmp_path / "out", lora, data=given["calib"], **{"keeps every step": True})
    first = Two()
    whole = first(**job | {"out": str(tmp_path / "whole")})
    found, ended = first(**job, trouble="killed while it trains", limit="10")
    first.close()
    assert ended is None
    assert found is not None and found["error"].startswith("rank 1 was killed")  # noqa: PT018
    assert left_behind(tmp_path) == [".out.halfway", "whole"]
    assert json.loads((tmp_path / ".out.halfway" / "training.json").read_text())["step"] == 3
    with pytest.raises(FxpruneError, match="2 processes trained then, and 1 do now"):
        api.apply(**{key: value for key, value in job.items() if key != "keeps every step"}, resume=True)
    again = Two()
    told = again(**job, resume=True)
    again.close()
    losses = [[said and said["record"]["passes"]["lora"]["loss"] for said in both] for both in (whole, told)]
    assert losses[0] == losses[1]
    assert left_behind(tmp_path) == ["out", "whole"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "fxprune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_torchrun_prints_one_result(given: dict[str, str]) -> None:
    done = torchrun("apply", given["model"], "--pass", "random", "--ratio", "0.5", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["after"] > 0
    assert "error" not in done.stderr


def test_torchrun_prints_one_error() -> None:
    done = torchrun("passes")
    assert done.returncode != 0
    assert not done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert lines == ["error: fxprune passes runs in one process, and torchrun started 2"]
