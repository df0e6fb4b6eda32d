"""How much memory there is and how much of it is free: of the host, of a device; and amounts of memory as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...ir.errors import RequestError
from ..ranks import ranks_here

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "k", "M", "G", "T"))}} | {
    f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}
_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_SCALES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))

UNLIMITED = 1 << 60
"""A control group without a limit shows a number beyond this."""


@dataclass(frozen=True)
class Memory:
    """An amount of memory, in bytes.

    Attributes:
        total: what there is.
        free: what can be had now.
    """

    total: int
    free: int


@dataclass(frozen=True)
class HostMemory(Memory):
    """The memory of this machine as far as this process may use it. Ranks on one machine get equal shares of it.

    Attributes:
        limit: of the process's control group (a container, a batch system), which ``total`` and ``free`` respect; None
            when there is none.
    """

    limit: int | None = None


def parse_bytes(text: str | int, name: str) -> int:
    """An amount of memory from text: ``4GB``, ``3.5GiB``, or a number of bytes.

    Args:
        text: the amount; an integer counts bytes.
        name: of the option, for messages.

    Raises:
        RequestError: it cannot be read, is nothing, or does not fit into 64 bits.
    """
    hint = "give an amount such as 4GB, 3.5GiB, or a number of bytes"
    match = _AMOUNT.fullmatch(str(text).strip()) if not isinstance(text, bool) else None
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match["unit"].lower() not in units:
        raise RequestError(f"{name} {text!r} is no amount of memory", hint)
    amount = float(match["number"]) * units[match["unit"].lower()]
    if amount >= 2**63:
        raise RequestError(f"{name} {str(text)[:40]!r} is more than any memory", hint)
    found = int(amount)
    if found < 1:
        raise RequestError(f"{name} {text!r} is no memory at all", hint)
    return found


def size_text(count: float) -> str:
    """A number of bytes as text, in a unit of fitting size: ``27.0 GB``."""
    unit, scale = next(((unit, scale) for unit, scale in _SCALES if abs(count) >= scale), ("bytes", 1.0))
    return f"{count:.0f} {unit}" if scale == 1 else f"{count / scale:.1f} {unit}"


def host_memory(root: Path = Path("/")) -> HostMemory | None:
    """The memory of this machine, within the limits of the process's control groups; None if the system cannot tell.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    whole = _of_kernel(root) or _of_pages()
    if whole is None:
        return None
    groups = list(_control_groups(root))
    limit = min((group.total for group in groups), default=None)
    if limit is None or limit >= whole.total:
        limit = None
    free = min([whole.free, *(group.free for group in groups)]) // ranks_here()[1]
    return HostMemory(whole.total if limit is None else limit, max(0, free), limit)


def device_memory(device: torch.device) -> Memory | None:
    """The memory of an accelerator; None if torch cannot tell."""
    import torch

    module = torch.get_device_module(device)
    try:
        if device.type == "mps":  # it shares the memory of the host; this much of it is for the device
            total = int(module.recommended_max_memory())
            return Memory(total, max(0, total - int(module.driver_allocated_memory())))
        free, total = torch.accelerator.get_memory_info(device)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    return Memory(int(total), int(free))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch has a class of its own for accelerators only."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def peak_of(device: torch.device) -> int | None:
    """The most memory of an accelerator that tensors of this process took at once; None if torch cannot tell."""
    import torch

    try:
        return int(torch.accelerator.max_memory_allocated(device))
    except (NotImplementedError, RuntimeError):
        return None


def _of_kernel(root: Path) -> Memory | None:
    """From Linux's own count, which knows what can be given back."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return Memory(found["MemTotal"], found["MemAvailable"])
    except (OSError, ValueError, KeyError):
        return None


def _of_pages() -> Memory | None:
    """From POSIX; where it does not say what is free, all of it counts."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError):
        free = total
    return Memory(page * total, page * free)


def _control_groups(root: Path) -> Iterator[Memory]:
    """Limit and rest of every control group around this process, of version 1 and 2, that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            home, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            home = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = home / path.lstrip("/")
        # In a container the path is that of the host, and its own group is mounted as the root.
        for folder in [inner, *inner.parents]:
            if not folder.is_relative_to(home):
                break
            found = _control_group(folder, *names)
            if found is not None:
                yield found


def _control_group(folder: Path, limit_file: str, usage_file: str, cache: str) -> Memory | None:
    try:
        limit = int((folder / limit_file).read_text(encoding="ascii"))
        usage = int((folder / usage_file).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
    if limit >= UNLIMITED:
        return None
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    # Files that were read lately are counted as used, and given up when memory is wanted.
    cached = next((int(line.split()[1]) for line in lines if line.split()[:1] == [cache]), 0)
    return Memory(limit, max(0, limit - usage + cached))
