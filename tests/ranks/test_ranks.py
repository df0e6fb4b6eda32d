"""Ranks: what they share, sum, send and agree on, and what they say when one fails. Each rank is a thread here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.runtime import link
from fxprune.runtime.link import Link
from fxprune.runtime.place import devices
from fxprune.runtime.place.memory import host_memory
from fxprune.runtime.ranks import ALONE, ELSEWHERE, Ranks, is_first_rank, processes, ranks_from_environment


def on_ranks(call: Callable[[Ranks], Any], count: int = 2, limit: float = 20.0) -> list[Any]:
    """What the call returns on every rank, or the error that it ends with."""
    span = timedelta(seconds=60)
    server = dist.TCPStore("127.0.0.1", 0, None, True, span, wait_for_workers=False)
    found: list[Any] = [None] * count

    def run(index: int) -> None:
        store = dist.TCPStore("127.0.0.1", server.port, None, False, span, wait_for_workers=False)
        ranks = Ranks.over(Link(store, index, count, limit))
        try:
            found[index] = call(ranks)
            ranks.link.leave()
        except SystemExit:
            return  # killed
        except Exception as error:
            if ranks.link.fail(error):
                error.add_note(ELSEWHERE)
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a rank hangs"
    return found


def told_elsewhere(error: BaseException) -> bool:
    return ELSEWHERE in getattr(error, "__notes__", ())


def test_shares_are_consecutive_even_and_complete() -> None:
    for count in (1, 2, 3, 5):
        for size in (5, 8, 11):
            parts = [Ranks(index, count).share(list(range(size))) for index in range(count)]
            assert [item for part in parts for item in part] == list(range(size))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    windows = torch.arange(10).reshape(5, 2)
    assert Ranks(1, 2).share(windows).tolist() == [[4, 5], [6, 7], [8, 9]]
    with pytest.raises(RequestError, match="3 losses cannot be shared among 4 processes") as error:
        Ranks(0, 4).share([1, 2, 3], "losses")
    assert error.value.hint == "start at most 3, or give more"


def test_work_is_dealt_evenly() -> None:
    costs = [1.0, 8.0, 2.0, 4.0, 1.0]
    found = Ranks(0, 2).owners(costs)
    assert found == Ranks(1, 2).owners(costs)
    loads = [sum(cost for cost, owner in zip(costs, found, strict=True) if owner == rank) for rank in range(2)]
    assert loads == [8.0, 8.0]
    assert ALONE.owners(costs) == (0,) * 5


def test_sums_are_in_float64_and_equal_on_all_ranks() -> None:
    parts = [torch.tensor([1.0, 2.0**24]), torch.tensor([2.0, 1.0]), torch.tensor([4.0, 1.0])]
    for total in on_ranks(lambda ranks: ranks.sum(parts[ranks.index].clone()), 3):
        assert total.dtype == torch.float32
        assert total.tolist() == [7.0, 2.0**24 + 2]  # in float32 each of the ones would be lost
    whole = on_ranks(lambda ranks: ranks.sum(torch.full((2, 2), ranks.index + 1.0, dtype=torch.float64), to=1))
    assert whole[1].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_rank_may_lack_some_tensors() -> None:
    parts: list[dict[Any, torch.Tensor]] = [
        {"both": torch.ones(2), ("a", 1): torch.ones(2, 2)},
        {"late": torch.ones(()), "both": torch.ones(2)},
    ]
    first, second = on_ranks(lambda ranks: ranks.sum_all(parts[ranks.index]))
    assert list(first) == list(second) == ["both", ("a", 1), "late"]
    assert [total.tolist() for total in first.values()] == [[2.0, 2.0], [[1.0, 1.0], [1.0, 1.0]], 1.0]
    assert on_ranks(lambda ranks: ranks.sum_all({})) == [{}, {}]
    wrong = on_ranks(lambda ranks: ranks.sum_all({"x": torch.ones(ranks.index + 1)}))
    assert all("different tensors of x" in error.message for error in wrong)


def test_one_rank_sends_to_all() -> None:
    assert (
        on_ranks(lambda ranks: ranks.broadcast({"kept": [1, 2]} if ranks.index == 1 else None, 1), 3)
        == [{"kept": [1, 2]}] * 3
    )
    for dtype in (torch.bool, torch.bfloat16, torch.int64):
        sent = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)

        def send(ranks: Ranks, sent: torch.Tensor = sent) -> torch.Tensor:
            return ranks.broadcast((sent if ranks.first else torch.zeros_like(sent)).T)

        assert all(torch.equal(found, sent.T) for found in on_ranks(send))
    asked: list[int] = []
    assert on_ranks(lambda ranks: ranks.by_first(lambda: asked.append(ranks.index) or "done")) == ["done", "done"]
    assert asked == [0]


def test_a_single_rank_connects_nothing() -> None:
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.broadcast(tensor) is tensor
    assert ALONE.sum_all({"x": tensor}) == {"x": tensor}
    assert ALONE.gather(1) == [1]
    assert ALONE.by_first(lambda: 2) == 2
    ALONE.barrier()
    ALONE.agree({"x": "1"})
    code = """if True:
        import sys
        from fxprune.runtime.ranks import processes
        with processes() as ranks:
            assert ranks.first
        print(sys.modules.keys())
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "'torch'" not in done.stdout
    assert "'fxprune.runtime.ranks'" in done.stdout


def test_ranks_that_differ_are_told_apart() -> None:
    facts = [{"ratio": "0.25"}, {"ratio": "0.25"}, {"ratio": "0.5", "a": "1", "b": "2", "c": "3"}]
    errors = on_ranks(lambda ranks: ranks.agree(facts[ranks.index]), 3)
    for error in errors:
        assert isinstance(error, RequestError)
        assert error.message == (
            "rank 2 differs from rank 0: ratio is 0.5 instead of 0.25; a is 1 instead of missing; "
            "b is 2 instead of missing; and 1 more"
        )
    assert list(map(told_elsewhere, errors)) == [False, True, True]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RequestError("the text is too short", "give more"), RequestError, "rank 1 failed: the text is too short"),
        (FxpruneError("not finite", "give more"), FxpruneError, "rank 1 failed: not finite"),
        (OSError(28, "No space left"), FxpruneError, "rank 1 failed: OSError: [Errno 28] No space left"),
    ],
)
def test_an_error_of_one_rank_ends_all(error: Exception, kind: type[FxpruneError], message: str) -> None:
    def run(ranks: Ranks) -> None:
        ranks.barrier()
        if ranks.index == 1:
            raise error
        ranks.sum(torch.ones(2))

    began = time.monotonic()
    found = on_ranks(run, 3)
    assert time.monotonic() - began < link.GRACE, "nobody waits for what has been said"
    assert found[1] is error
    for rank in (0, 2):
        assert type(found[rank]) is kind
        assert found[rank].message == message
        assert found[rank].exit_code == getattr(error, "exit_code", 1)
    assert list(map(told_elsewhere, found)) == [False, True, True]


def test_an_error_is_met_again_when_it_was_swallowed() -> None:
    def run(ranks: Ranks) -> None:
        if ranks.index == 1:
            raise FxpruneError("it went wrong")
        with pytest.raises(FxpruneError, match="rank 1 failed: it went wrong"):
            ranks.barrier()
        ranks.barrier()

    assert str(on_ranks(run)[0]) == "rank 1 failed: it went wrong"


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GRACE", 0.5)

    def run(ranks: Ranks) -> None:
        ranks.barrier()
        if ranks.index == 1:
            time.sleep(3)
        ranks.sum(torch.ones(2))

    first, late, other = on_ranks(run, 3, limit=1.0)
    for error in (first, other):
        assert error.message == "rank 1 was killed, or took more than 1 s; waited for: sum of [2]"
        assert "FXPRUNE_RANK_TIMEOUT" in error.hint
    assert late.message == "rank 1 took more than 1 s, and the others gave it up"


def test_a_collective_that_breaks_names_who_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GRACE", 1.0)

    def run(ranks: Ranks) -> None:
        ranks.sum(torch.ones(2))
        if ranks.index == 1:
            ranks.link.meet("sum of [2]")  # comes, and is killed before it sends anything
            ranks.link._groups.clear()
            raise SystemExit  # without a word
        ranks.sum(torch.ones(2))

    found = on_ranks(run, limit=3.0)
    assert "rank 1 was killed" in found[0].message


def test_ranks_that_have_come_apart_are_noticed() -> None:
    found = on_ranks(lambda ranks: ranks.barrier() if ranks.first else ranks.gather(1))
    assert "rank 0 wants barrier, others want gather" in found[0].message
    assert "please report it" in found[0].hint


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set, but not RANK, MASTER_ADDR, MASTER_PORT: torchrun sets all of them"),
        ({"RANK": "0"}, "RANK set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT: torchrun sets all of them"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a whole number of at least 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 is not a whole number of at least 0"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "FXPRUNE_RANK_TIMEOUT": "soon"},
            "FXPRUNE_RANK_TIMEOUT=soon is not a whole number of at least 1",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "FXPRUNE_RANK_TIMEOUT": "1"}, "no rendezvous with the other processes: "),
    ],
)
def test_half_an_environment_is_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} if len(variables) > 1 else {}
    for name, value in {**variables, **address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError) as error, processes():
        pass
    assert error.value.message.startswith(message)
    assert error.value.hint


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ranks_from_environment() == ALONE
    assert is_first_rank()


def on_one_machine(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [torch.device("cuda", 1), torch.device("cuda", 0), devices.CPU]
    monkeypatch.setattr(devices, "found_devices", lambda: cards)
    for rank in (0, 1):
        on_one_machine(monkeypatch, rank, 2)
        assert devices.find_device("auto") == devices.find_device("cuda") == torch.device("cuda", rank)
        assert devices.find_device("cpu") == devices.CPU
    with pytest.raises(RequestError, match="--device cuda:1: 2 processes cannot share one device"):
        devices.find_device("cuda:1")
    on_one_machine(monkeypatch, 2, 3)
    with pytest.raises(
        RequestError, match="torchrun started 3 processes on this machine, and torch finds cuda:1"
    ) as no:
        devices.find_device("auto")
    assert no.value.hint == "start 2, or give --device cpu"
    monkeypatch.setattr(devices, "found_devices", lambda: [devices.CPU])
    assert devices.find_device("auto") == devices.CPU


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    on_one_machine(monkeypatch, 1, 3)
    memory = host_memory(tmp_path)
    assert memory is not None
    assert (memory.total, memory.free) == (4000 * 1024, 1000 * 1024)
