"""``doctor``: the devices, the memory and the libraries of this machine, and what fxprune uses of them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.errors import RequestError
from ..ir.extras import installed_version
from ..runtime.place.devices import CPU, computes, found_devices, title_of
from ..runtime.place.memory import HostMemory, Memory, device_memory, host_memory
from ..runtime.place.placement import ARITHMETICS, PlacementRequest, place

REQUIRED = ("fxprune", "torch", "transformers", "safetensors", "numpy", "networkx")
"""What fxprune is built on."""

OPTIONAL = {
    "peft": "lora, --merge-adapter",
    "accelerate": "lora, finetune, distill",
    "datasets": "texts from data sets",
    "onnx": "export to ONNX",
    "onnxscript": "export to ONNX",
    "onnxruntime": "runs what export writes",
    "gguf": "export to GGUF",
    "pillow": "folders of images",
    "soundfile": "folders of sounds",
    "onnxruntime-genai": "the same, with its own generation loop",
    "lm-eval": "zero-shot accuracy (benchmarks/zeroshot.py)",
}
"""Package -> what it adds."""

EXTENSION_POINTS = ("fxprune.rules", "fxprune.passes", "fxprune.exporters")
"""The entry points by which installed packages add to fxprune."""


@dataclass(frozen=True)
class DeviceInfo:
    """A device that torch finds.

    Attributes:
        name: as ``--device`` takes it.
        title: what it is called itself; empty where torch does not know.
        memory: of an accelerator; None if torch cannot tell, and for the CPU, which has the memory of the host.
        dtypes: names of the dtypes that it computes in: those of ``--dtype``, and float64.
    """

    name: str
    title: str
    memory: Memory | None
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """What ``fxprune doctor`` shows.

    Attributes:
        devices: what torch finds, the one that is used by default first.
        host: memory of this machine; None if the system cannot tell.
        threads: of one operator of torch.
        system: operating system and processor.
        versions: of Python and of the packages that fxprune is built on; None for a missing one.
        optional: of the packages that add something, likewise.
        plugins: packages that bring rules, passes or formats.
        uses: command -> what it uses by default.
    """

    devices: tuple[DeviceInfo, ...]
    host: HostMemory | None
    threads: int
    system: str
    versions: dict[str, str | None]
    optional: dict[str, str | None]
    plugins: tuple[str, ...]
    uses: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return dataclasses.asdict(self)


def examine() -> Machine:
    """Look at this machine."""
    versions = {"python": platform.python_version(), **{name: installed_version(name) for name in REQUIRED}}
    return Machine(
        devices=tuple(map(_device, found_devices())),
        host=host_memory(),
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        optional={name: installed_version(name) for name in OPTIONAL},
        plugins=_plugins(),
        uses={"apply": _default(sums=True), "eval, bench": _default(sums=False), "export": "cpu, float32"},
    )


def _device(device: torch.device) -> DeviceInfo:
    known = {**ARITHMETICS, "float64": torch.float64}
    able = tuple(name for name, dtype in known.items() if computes(device, dtype))
    memory = None if device == CPU else device_memory(device)
    return DeviceInfo(str(device), title_of(device) or ("" if device != CPU else platform.processor()), memory, able)


def _default(*, sums: bool) -> str:
    """Where a model with weights in bfloat16 would run."""
    try:
        return place(PlacementRequest(), stored=torch.bfloat16, sums=sums).why
    except RequestError as error:
        return error.message


def _plugins() -> tuple[str, ...]:
    found = {
        f"{point.dist.name} {point.dist.version}"
        for group in EXTENSION_POINTS
        for point in importlib.metadata.entry_points(group=group)
        if point.dist is not None
    }
    return tuple(sorted(found))
