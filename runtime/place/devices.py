"""The devices that torch finds, and what they can compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir.errors import RequestError
from ..ranks import ranks_here

CPU = torch.device("cpu")


def found_devices() -> list[torch.device]:
    """The accelerator's devices, the one that is used by default first; after them the CPU."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return [CPU]
    default, count = torch.accelerator.current_device_index(), torch.accelerator.device_count()
    order = [default, *(index for index in range(count) if index != default)]
    return [*(torch.device(kind.type, index) for index in order), CPU]


def find_device(text: str) -> torch.device:
    """The device of a name such as ``cpu``, ``cuda``, ``cuda:1``; for ``auto`` the first that torch finds.

    Of several processes on one machine each gets a device of its own, where the name leaves that open.

    Raises:
        RequestError: it is no name of a device, or of none that is there, or of one for several processes.
    """
    there = found_devices()
    if ranks_here()[1] > 1:
        return _own_device(text, there)
    if text == "auto":
        return there[0]
    return _named_device(text, there)


def _named_device(text: str, there: Sequence[torch.device]) -> torch.device:
    try:
        asked = torch.device(text)
    except RuntimeError:
        raise RequestError(
            f"--device {text!r} is not the name of a device", f"torch finds {names_of(there)}; auto takes the first"
        ) from None
    for device in there:
        if device.type == asked.type and asked.index in (None, device.index, 0 if device == CPU else None):
            return device
    raise RequestError(
        f"--device {text}: torch {torch.__version__} does not find it",
        f"torch finds {names_of(there)}; give one of them, or install a torch that was built for the device",
    )


def _own_device(text: str, there: Sequence[torch.device]) -> torch.device:
    """The device of this process, one of several on this machine."""
    index, count = ranks_here()
    kind, _, number = (there[0].type if text == "auto" else text).partition(":")
    found = sorted(device.index for device in there if device.type == kind and device != CPU)
    if not found:
        return _named_device(kind if text == "auto" else text, there)
    if number:
        raise RequestError(
            f"--device {text}: {count} processes cannot share one device", f"give --device {kind}: one for each of them"
        )
    if len(found) < count:
        raise RequestError(
            f"torchrun started {count} processes on this machine, and torch finds {names_of(there)}",
            f"start {len(found)}, or give --device cpu",
        )
    return torch.device(kind, found[index])


def names_of(devices: Sequence[torch.device]) -> str:
    """Devices as text."""
    return ", ".join(map(str, devices))


def title_of(device: torch.device) -> str:
    """What the device itself is called, such as the model of the card; empty where torch does not know."""
    name = getattr(torch.get_device_module(device), "get_device_name", None) if device != CPU else None
    return str(name(device)) if name is not None else ""


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in a dtype, and not by emulating it."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        ones = torch.ones(2, 2, dtype=dtype, device=device)
        return bool((ones @ ones + ones).sum().isfinite())
    except (RuntimeError, TypeError, NotImplementedError):
        return False
