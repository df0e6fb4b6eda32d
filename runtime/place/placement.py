"""Where a model runs: on which device, in which dtype, and where the weights are that are not in use.

One :class:`Placement` is made for a call and handed down; nothing else asks torch for a device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from ...ir.errors import FxpruneError, RequestError
from .choices import AUTO
from .devices import CPU, computes, find_device, found_devices, names_of, title_of
from .memory import device_memory, host_memory, is_out_of_memory, parse_bytes, size_text
from .needs import Needs

NO_OFFLOAD, MEMORY, DISK = OFFLOADS = ("none", "memory", "disk")
"""Where weights are that are not in use, from the fastest to the most frugal: all on the device; in the memory of the
host; in the files."""

ARITHMETICS: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip

_DEVICE_HINT = "give auto, cpu, or an accelerator such as cuda or cuda:1"

Result = TypeVar("Result")

CheckedNeeds = Callable[[torch.dtype], Needs]
"""Dtype of the arithmetic -> what the model needs in it."""


@dataclass(frozen=True)
class PlacementRequest:
    """What a user asks for; :meth:`parse` reads it.

    Attributes:
        device: ``auto``, or the name of a device.
        dtype: ``auto``, or a name in :data:`ARITHMETICS`.
        offload: ``auto``, or one of :data:`OFFLOADS`.
        max_memory: the most memory that may be used, in bytes; all that is free when None.
    """

    device: str = AUTO
    dtype: str = AUTO
    offload: str = AUTO
    max_memory: int | None = None

    @classmethod
    def parse(
        cls,
        *,
        device: str | torch.device = AUTO,
        dtype: str | torch.dtype = AUTO,
        offload: str = AUTO,
        max_memory: str | int | None = None,
    ) -> PlacementRequest:
        """Read what the command line or a call gives; what torch itself must answer is left to :func:`place`.

        Raises:
            RequestError: naming the option, what it was given, and what it takes.
        """
        if not isinstance(device, str | torch.device) or not str(device):
            raise RequestError(f"--device {device!r} is not the name of a device", _DEVICE_HINT)
        kind = str(dtype).removeprefix("torch.")
        if kind not in (AUTO, *ARITHMETICS):
            raise RequestError(f"--dtype {kind}: not an arithmetic", f"choose from {', '.join((AUTO, *ARITHMETICS))}")
        if offload not in (AUTO, *OFFLOADS):
            raise RequestError(f"--offload {offload}: not known", f"choose from {', '.join((AUTO, *OFFLOADS))}")
        most = None if max_memory is None else parse_bytes(max_memory, "--max-memory")
        return cls(str(device), kind, offload, most)


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Attributes:
        device: of the arithmetic.
        dtype: of the arithmetic.
        offload: where weights are that are not in use, one of :data:`OFFLOADS`. On the CPU, ``none`` is all of them in
            memory in the arithmetic's dtype, ``memory`` in the checkpoint's, widened block by block.
        max_memory: the most memory that may be used, in bytes; None for all that is free.
        why: one line: what was chosen, and why.
    """

    device: torch.device
    dtype: torch.dtype
    offload: str
    max_memory: int | None
    why: str

    @property
    def plain(self) -> bool:
        """Whether everything is computed on the CPU in float32, as what is written is checked."""
        return self.device == CPU and self.dtype == torch.float32

    def to_json(self) -> dict[str, Any]:
        """As JSON data. It belongs to a machine, so it is in no artifact."""
        return {
            "device": str(self.device),
            "dtype": _name(self.dtype),
            "offload": self.offload,
            "max_memory": self.max_memory,
            "why": self.why,
        }


WHOLE = Placement(CPU, torch.float32, NO_OFFLOAD, None, "cpu, float32; all weights in memory")
"""Where nobody asked: everything on the CPU, in float32."""

STREAMED = Placement(
    CPU, torch.float32, DISK, None, "cpu; weights stay on disk and are read one at a time: no pass runs the model"
)
"""Where no pass runs the model."""


def place(
    request: PlacementRequest,
    *,
    stored: torch.dtype = torch.float32,
    needs: CheckedNeeds | None = None,
    sums: bool = False,
) -> Placement:
    """Decide where a model runs.

    Args:
        request: what the user asked for.
        stored: dtype of the checkpoint.
        needs: what the model needs of memory; None when it does not matter, since no weights are loaded at once.
        sums: whether sums are added up in float64 on the device, as scores and refits are.

    Raises:
        RequestError: a device that is not there, or that cannot compute what is asked for; less memory than one block
            needs.
    """
    device, why_device = _device(request, sums)
    dtype, why_dtype = _dtype(request, device, stored)
    head = ", ".join([f"{device}{why_device}", f"{_name(dtype)}{why_dtype}"])
    offload, why = NO_OFFLOAD, ""
    if needs is not None:
        offload, why = _offload(request, device, stored.itemsize < dtype.itemsize, needs(dtype))
    if request.offload != AUTO:
        offload, why = request.offload, f"{_TEXTS[request.offload]}, as asked"
    return Placement(device, dtype, offload, request.max_memory, "; ".join(filter(None, (head, why))))


def one_step_more_frugal(placement: Placement) -> Placement | None:
    """What to try when memory ran out; None when nothing is left to try."""
    if placement.offload == OFFLOADS[-1]:
        return None
    offload = OFFLOADS[OFFLOADS.index(placement.offload) + 1]
    head = placement.why.partition(";")[0]
    return replace(placement, offload=offload, why=f"{head}; {_TEXTS[offload]}: {placement.offload} ran out of memory")


def whole(placement: Placement, because: str) -> Placement:
    """The placement of a model that has to be in memory as a whole; ``because`` says why."""
    if placement == STREAMED:  # the files could not be read one tensor at a time after all
        return WHOLE
    if placement.offload == NO_OFFLOAD:
        return placement
    head = placement.why.partition(";")[0]
    return replace(placement, offload=NO_OFFLOAD, why=f"{head}; {_TEXTS[NO_OFFLOAD]}: {because}")


class MemoryRanOutError(FxpruneError):
    """A device was out of memory.

    Attributes:
        device: the device.
        frugal: the next more frugal placement; None when nothing is left to try.
    """

    def __init__(self, message: str, hint: str, device: torch.device, frugal: Placement | None) -> None:
        super().__init__(message, hint)
        self.device, self.frugal = device, frugal


@contextmanager
def told_when_out_of_memory(placement: Placement) -> Iterator[None]:
    """Inside, a device that is out of memory is an error with a hint.

    Raises:
        MemoryRanOutError: naming the device and what was in its memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        memory = device_memory(placement.device) if placement.device != CPU else None
        whole = f" ({size_text(memory.total)})" if memory is not None else ""
        frugal = one_step_more_frugal(placement)
        raise MemoryRanOutError(
            f"out of memory on {placement.device}{whole}, with --offload {placement.offload}",
            "give fewer samples or shorter ones, a smaller batch, "
            + (f"--offload {frugal.offload}, or another --device" if frugal is not None else "or another --device"),
            placement.device,
            frugal,
        ) from error


def more_frugally(
    attempt: Callable[[Placement | None], Result], request: PlacementRequest, tell: Callable[[str], None]
) -> Result:
    """What an attempt returns; where memory runs out, it is made again with weights kept one step more frugally, as
    long as there is one.

    Args:
        attempt: is called with None, and again with a more frugal placement. It raises :class:`MemoryRanOutError`, see
            :func:`told_when_out_of_memory`.
        request: what the user asked for; who named an ``offload`` gets that one only.
        tell: is told what is tried again.

    Raises:
        MemoryRanOutError: nothing is left to try.
    """
    placement: Placement | None = None
    while True:
        try:
            return attempt(placement)
        except MemoryRanOutError as error:
            if request.offload != AUTO or error.frugal is None:
                raise
            device, placement = error.device, error.frugal
            tell(f"{error.message}; trying again with --offload {placement.offload}")
        # Only here is nothing left of that attempt: the error held its frames.
        gc.collect()
        if device != CPU:
            torch.accelerator.empty_cache()


_TEXTS = {
    NO_OFFLOAD: "all weights in memory",
    MEMORY: "weights wait in the memory of the host",
    DISK: "weights stay on disk",
}


def _device(request: PlacementRequest, sums: bool) -> tuple[torch.device, str]:
    device = find_device(request.device)
    if not sums or computes(device, torch.float64):
        title = title_of(device)
        return device, f" ({title})" if title else ""
    if request.device == AUTO:
        return CPU, f" ({device} has no float64, in which scores are added up)"
    raise RequestError(
        f"--device {request.device}: it cannot compute in float64, in which scores and refits are added up",
        f"torch finds {names_of(found_devices())}; give --device cpu",
    )


def _dtype(request: PlacementRequest, device: torch.device, stored: torch.dtype) -> tuple[torch.dtype, str]:
    if request.dtype == AUTO:
        if device == CPU or stored not in ARITHMETICS.values():
            return torch.float32, ""
        return (stored, "") if computes(device, stored) else (torch.float32, f" ({device} cannot do {_name(stored)})")
    dtype = ARITHMETICS[request.dtype]
    if computes(device, dtype):
        return dtype, ""
    able = [name for name, other in ARITHMETICS.items() if computes(device, other)]
    raise RequestError(
        f"--dtype {request.dtype}: {device} cannot compute in it",
        f"give --dtype {' or '.join(able)}, or another --device; torch finds {names_of(found_devices())}",
    )


def _offload(request: PlacementRequest, device: torch.device, narrower: bool, needs: Needs) -> tuple[str, str]:
    """The first of :data:`OFFLOADS` that fits, and why; ``narrower``: whether the checkpoint's dtype takes less."""
    host = host_memory()
    own = host if device == CPU else device_memory(device)
    free = _least(own.free if own else None, request.max_memory)
    host_free = _least(host.free if host else None, request.max_memory)
    if free is None:
        return NO_OFFLOAD, f"{_TEXTS[NO_OFFLOAD]}: torch cannot tell how much of it is free"
    allowed = free == request.max_memory
    there = f"{size_text(free)} {'allowed' if allowed else 'free'}"
    if needs.one_block > free:
        raise RequestError(
            f"{f'--max-memory {size_text(free)}' if allowed else f'{device} has {there}'}: the largest block takes "
            f"{size_text(needs.largest_block)}, what is outside the blocks {size_text(needs.outside)}, and a gradient "
            f"{size_text(needs.largest_gradient)}",
            f"give at least {size_text(needs.one_block)}; a coarser --dtype takes less",
        )
    whole = needs.weights + needs.beside
    if whole <= free:
        return NO_OFFLOAD, f"{_TEXTS[NO_OFFLOAD]}: {size_text(whole)} of {there}"
    short = f"{size_text(whole)} do not fit in {there}"
    working = needs.one_block + needs.activations + needs.logits
    waiting = needs.stored + (working if device == CPU else 0)
    fits = (device != CPU or narrower) and (host_free is None or waiting <= host_free)
    offload = MEMORY if fits else DISK
    return offload, f"{_TEXTS[offload]}: {short}"


def _least(*amounts: int | None) -> int | None:
    """The smallest amount that is known."""
    return min((amount for amount in amounts if amount is not None), default=None)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
