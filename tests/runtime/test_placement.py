"""Where a model runs: what is asked for, what is chosen, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fxprune.ir.errors import FxpruneError, RequestError
from fxprune.passes.model.blocks import find_blocks
from fxprune.runtime.place import devices, placement
from fxprune.runtime.place.devices import CPU, find_device, found_devices
from fxprune.runtime.place.memory import HostMemory, Memory
from fxprune.runtime.place.needs import Needs, needs_of
from fxprune.runtime.place.placement import (
    STREAMED,
    WHOLE,
    MemoryRanOutError,
    Placement,
    PlacementRequest,
    more_frugally,
    one_step_more_frugal,
    place,
    told_when_out_of_memory,
    whole,
)

from ..decoders import llama

GB = 10**9
CARD = torch.device("cuda", 0)


def needs(dtype: torch.dtype) -> Needs:
    """7 billion parameters in 32 blocks, stored in 2 bytes each."""
    size = dtype.itemsize
    return Needs(7 * GB * size, 14 * GB, size * GB // 4, size * GB // 5, size * GB // 10, GB // 4, GB // 4)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how much memory of the host is free, in GB."""

    def has(free: float) -> None:
        monkeypatch.setattr(placement, "host_memory", lambda: HostMemory(64 * GB, int(free * GB)))

    return has


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, host: Callable[[float], None]) -> Callable[..., None]:
    """A card that is made up: how much of its memory is free, in GB, and what it computes in."""

    def has(free: float, able: tuple[torch.dtype, ...] = (*placement.ARITHMETICS.values(), torch.float64)) -> None:
        host(32)
        monkeypatch.setattr(devices, "found_devices", lambda: [CARD, CPU])
        monkeypatch.setattr(placement, "found_devices", lambda: [CARD, CPU])
        monkeypatch.setattr(placement, "title_of", lambda device: "Card 24" if device == CARD else "")
        monkeypatch.setattr(placement, "computes", lambda device, dtype: device == CPU or dtype in able)
        monkeypatch.setattr(placement, "device_memory", lambda _: Memory(24 * GB, int(free * GB)))

    return has


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"device": ""}, "--device '' is not the name of a device", "auto, cpu"),
        ({"device": 1}, "--device 1 is not the name of a device", "auto, cpu"),
        ({"dtype": "float64"}, "--dtype float64: not an arithmetic", "auto, float32, bfloat16, float16"),
        ({"dtype": torch.int8}, "--dtype int8: not an arithmetic", "auto, float32"),
        ({"offload": "cloud"}, "--offload cloud: not known", "auto, none, memory, disk"),
        ({"max_memory": "lots"}, "--max-memory 'lots' is no amount of memory", "4GB"),
    ],
)
def test_a_request_that_cannot_be_read(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as error:
        PlacementRequest.parse(**given)
    assert error.value.message == message
    assert hint in error.value.hint


def test_a_request_takes_what_torch_has() -> None:
    given = PlacementRequest.parse(device=torch.device("cpu"), dtype=torch.bfloat16, offload="none", max_memory=1000)
    assert given == PlacementRequest("cpu", "bfloat16", "none", 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu!", "--device 'tpu!' is not the name of a device"),
        ("meta", "--device meta: torch .* does not find it"),
        ("cuda:99", "--device cuda:99: torch .* does not find it"),
        ("cpu:3", "--device cpu:3: torch .* does not find it"),
    ],
)
def test_a_device_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        find_device(name)
    assert f"torch finds {', '.join(map(str, found_devices()))}" in error.value.hint


def test_the_first_device_is_the_default() -> None:
    assert find_device("auto") == found_devices()[0]
    assert find_device("cpu") == found_devices()[-1] == CPU


@pytest.mark.parametrize(
    ("free", "offload", "why"),
    [
        (40, "none", "cpu, float32; all weights in memory: 28.9 GB of 40.0 GB free"),
        (20, "memory", "cpu, float32; weights wait in the memory of the host: 28.9 GB do not fit in 20.0 GB free"),
        (8, "disk", "cpu, float32; weights stay on disk: 28.9 GB do not fit in 8.0 GB free"),
    ],
)
def test_the_first_that_fits_is_taken(host: Callable[[float], None], free: float, offload: str, why: str) -> None:
    host(free)
    found = place(PlacementRequest(device="cpu"), stored=torch.bfloat16, needs=needs)
    assert (found.offload, found.why) == (offload, why)


def test_on_the_cpu_the_same_dtype_waits_on_disk(host: Callable[[float], None]) -> None:
    host(14.5)
    found = place(PlacementRequest(device="cpu", dtype="bfloat16"), stored=torch.bfloat16, needs=needs)
    assert found.offload == "disk", "in the same dtype, to keep them all is not to save anything"


def test_an_accelerator_keeps_the_dtype_of_the_checkpoint(card: Callable[..., None]) -> None:
    card(23)
    found = place(PlacementRequest(), stored=torch.bfloat16, needs=needs)
    assert (found.device, found.dtype, found.offload) == (CARD, torch.bfloat16, "none")
    assert found.why == "cuda:0 (Card 24), bfloat16; all weights in memory: 14.7 GB of 23.0 GB free"


def test_what_does_not_fit_on_the_device_waits_on_the_host(card: Callable[..., None]) -> None:
    card(10)
    found = place(PlacementRequest(device="cuda"), stored=torch.bfloat16, needs=needs)
    assert found.offload == "memory"
    found = place(PlacementRequest(device="cuda", max_memory=9 * GB), stored=torch.bfloat16, needs=needs)
    assert found.offload == "disk", "the limit holds for the host too"
    assert found.why.endswith("weights stay on disk: 14.7 GB do not fit in 9.0 GB allowed")


def test_what_is_asked_for_is_done(host: Callable[[float], None]) -> None:
    host(40)
    found = place(PlacementRequest(device="cpu", offload="disk"), stored=torch.bfloat16, needs=needs)
    assert (found.offload, found.why) == ("disk", "cpu, float32; weights stay on disk, as asked")


def test_less_than_a_block_is_refused(host: Callable[[float], None]) -> None:
    host(40)
    with pytest.raises(RequestError) as error:
        place(PlacementRequest(device="cpu", max_memory=2 * GB), stored=torch.bfloat16, needs=needs)
    assert error.value.message == (
        "--max-memory 2.0 GB: the largest block takes 800.0 MB, what is outside the blocks 1.0 GB, and a gradient "
        "400.0 MB"
    )
    assert "give at least 2.2 GB" in error.value.hint
    host(2)
    with pytest.raises(RequestError, match=r"cpu has 2.0 GB free: the largest block takes 800.0 MB"):
        place(PlacementRequest(device="cpu"), stored=torch.bfloat16, needs=needs)


def test_a_dtype_that_the_device_cannot_do(card: Callable[..., None]) -> None:
    card(23, able=(torch.float32, torch.float16))
    with pytest.raises(RequestError, match="--dtype bfloat16: cuda:0 cannot compute in it") as error:
        place(PlacementRequest(device="cuda", dtype="bfloat16"))
    assert error.value.hint == "give --dtype float32 or float16, or another --device; torch finds cuda:0, cpu"
    found = place(PlacementRequest(), stored=torch.bfloat16)
    assert (found.dtype, found.why) == (torch.float32, "cuda:0 (Card 24), float32 (cuda:0 cannot do bfloat16)")


def test_sums_need_float64(card: Callable[..., None]) -> None:
    card(23, able=tuple(placement.ARITHMETICS.values()))
    assert place(PlacementRequest()).device == CARD
    found = place(PlacementRequest(), sums=True)
    assert (found.device, found.why) == (CPU, "cpu (cuda:0 has no float64, in which scores are added up), float32")
    with pytest.raises(RequestError, match="--device cuda: it cannot compute in float64") as error:
        place(PlacementRequest(device="cuda"), sums=True)
    assert "torch finds cuda:0, cpu; give --device cpu" in error.value.hint


def test_more_frugal_step_by_step() -> None:
    first = Placement(CARD, torch.bfloat16, "none", None, "cuda:0, bfloat16; all weights in memory: 1 GB of 2 GB free")
    second = one_step_more_frugal(first)
    assert second is not None
    assert (second.offload, second.device) == ("memory", CARD)
    assert second.why == "cuda:0, bfloat16; weights wait in the memory of the host: none ran out of memory"
    third = one_step_more_frugal(second)
    assert third is not None
    assert third.offload == "disk"
    assert one_step_more_frugal(third) is None


def test_out_of_memory_is_an_error_with_a_hint(card: Callable[..., None]) -> None:
    card(23)
    where = Placement(CARD, torch.bfloat16, "none", None, "")
    with pytest.raises(FxpruneError) as error, told_when_out_of_memory(where):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert error.value.message == "out of memory on cuda:0 (24.0 GB), with --offload none"
    assert "--offload memory, or another --device" in error.value.hint


def test_where_files_cannot_be_read_one_tensor_at_a_time_all_is_loaded() -> None:
    assert whole(WHOLE, "never mind") is WHOLE
    assert whole(STREAMED, "never mind") is WHOLE
    on_disk = Placement(CPU, torch.float32, "disk", None, "cpu, float32; weights stay on disk, as asked")
    loaded = whole(on_disk, "its files are pickles")
    assert loaded.offload == "none"
    assert loaded.why == "cpu, float32; all weights in memory: its files are pickles"


def test_needs_are_counted_in_the_shapes() -> None:
    model = llama(tied=True)
    blocks = find_blocks(model).modules
    found = needs_of(
        model, blocks, dtype=torch.float32, stored=torch.bfloat16, batch=2, length=8, vocabulary=40
    )  # fmt: skip
    block, table = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24 + 2 * 16, 40 * 16
    assert found.largest_block == 4 * block
    assert found.outside == 4 * (table + 16), "a shared table counts once"
    assert found.weights == 4 * (2 * block + table + 16) == 2 * found.stored
    assert found.largest_gradient == 4 * table
    assert found.one_block == 4 * (table + 16 + block + table)
    widths = (16 + 16) + 2 * (16 + 8) + (16 + 16) + 3 * (16 + 24)
    assert found.activations == 4 * 16 * (widths + 2 * 16)
    assert found.logits == 8 * 16 * 40


def test_a_model_without_blocks_is_one() -> None:
    found = needs_of(
        torch.nn.Linear(4, 3), (), dtype=torch.float32, stored=torch.float32, batch=1, length=1, vocabulary=0
    )  # fmt: skip
    assert (found.weights, found.outside, found.largest_block, found.logits) == (60, 0, 60, 0)


def test_every_device_computes_the_same(device: torch.device) -> None:
    model = llama()
    ids = torch.arange(12).view(2, 6)
    expected = model(input_ids=ids).logits
    found = place(PlacementRequest(device=str(device)))
    moved = model.to(device=found.device, dtype=found.dtype)(input_ids=ids.to(found.device)).logits
    assert found.device == device
    assert torch.allclose(moved.float().cpu(), expected, atol=1e-4)


def test_what_runs_out_of_memory_is_tried_again_more_frugally() -> None:
    tried: list[str] = []
    said: list[str] = []
    first = Placement(CPU, torch.float32, "none", None, "cpu, float32; all weights in memory")

    def attempt(frugal: Placement | None, fits: str = "disk") -> str:
        there = frugal or first
        tried.append(there.offload)
        with told_when_out_of_memory(there):
            if there.offload != fits:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return there.offload

    assert more_frugally(attempt, PlacementRequest(), said.append) == "disk"
    assert tried == ["none", "memory", "disk"]
    assert said[0] == "out of memory on cpu, with --offload none; trying again with --offload memory"
    with pytest.raises(MemoryRanOutError, match="out of memory on cpu, with --offload none"):
        more_frugally(attempt, PlacementRequest(offload="none"), said.append)
    with pytest.raises(MemoryRanOutError, match="with --offload disk"):
        more_frugally(lambda there: attempt(there, ""), PlacementRequest(), said.append)
    with pytest.raises(RuntimeError, match="of another kind"), told_when_out_of_memory(first):
        raise RuntimeError("of another kind")
