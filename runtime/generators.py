"""The random number generators of a process as data: of Python, of NumPy, and of PyTorch on the CPU and on devices."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """The states of all generators, as JSON data in which tensors and arrays stand too.

    A device that this process has not used is left out: nothing has been drawn on it.
    """
    version, numbers, spare = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    return {
        "python": [version, list(numbers), spare],
        "numpy": {**legacy, "state": dict(legacy["state"])},
        "torch": torch.get_rng_state(),
        "devices": _device_states(),
    }


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Restore what :func:`generator_states` gave. The state of a device that is missing here is left out.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: for other data.
    """
    version, numbers, spare = states["python"]
    random.setstate((version, tuple(numbers), spare))
    np.random.set_state(dict(states["numpy"]))
    torch.set_rng_state(states["torch"])
    module, count = _devices()
    for number, held in states["devices"].items():
        if module is not None and int(number) < count:
            module.set_rng_state(held, *_place(module, int(number)))


def _device_states() -> dict[str, torch.Tensor]:
    module, count = _devices()
    if module is None or not getattr(module, "is_initialized", lambda: True)():
        return {}
    return {str(number): module.get_rng_state(*_place(module, number)).cpu() for number in range(count)}


def _devices() -> tuple[Any, int]:
    """The module of PyTorch for the accelerator of this machine, and how many there are; None and 0 without one."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return (None, 0) if kind is None else (torch.get_device_module(kind), torch.accelerator.device_count())


def _place(module: Any, number: int) -> tuple[int, ...]:
    """The arguments that name a device; Metal has only one."""
    return () if module is torch.mps else (number,)
