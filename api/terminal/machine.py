"""What ``doctor`` found, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from ...runtime.place.memory import size_text
from .cells import line, new_table

if TYPE_CHECKING:
    from ...runtime.place.memory import Memory
    from ..machine import Machine


def examined(found: Machine) -> list[RenderableType]:
    """Devices with their memory, what runs where by default, and the versions of the libraries."""
    devices = new_table("device", "name", "free", "memory", "computes in", right=("free", "memory"))
    for device in found.devices:
        memory = device.memory if device.memory is not None or device.name != "cpu" else found.host
        devices.add_row(device.name, device.title, *_amounts(memory), ", ".join(device.dtypes))
    uses = new_table("command", "runs by default, with weights in bfloat16, on")
    for command, where in found.uses.items():
        uses.add_row(command, where)
    versions = new_table("package", "version", "")
    for name, version in found.versions.items():
        versions.add_row(name, version or "missing", "")
    for name, version in found.optional.items():
        versions.add_row(name, version or "not installed", f"optional: {_adds(name)}")
    limit = found.host.limit if found.host is not None else None
    limited = f"; limited to {size_text(limit)} by its control group" if limit is not None else ""
    head = f"{found.system}, {found.threads} threads{limited}"
    plugins = [line("extended by " + ", ".join(found.plugins))] if found.plugins else []
    return [line(head), devices, Text(""), uses, Text(""), versions, *plugins]


def _adds(name: str) -> str:
    from ..machine import OPTIONAL

    return OPTIONAL[name]


def _amounts(memory: Memory | None) -> tuple[str, str]:
    return ("unknown", "unknown") if memory is None else (size_text(memory.free), size_text(memory.total))
