"""Low-rank adapters in the reports of passes: written beside the model that they were merged into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ...backends.artifact import write_json
from ...passes.recover.adapters import Adapter

ADAPTER = "adapter"


def write_adapters(report: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write the adapter of a pass, if there is one, in the format of PEFT.

    Args:
        report: of all passes, by name.
        folder: the model directory.
    """
    for entry in report.values():
        adapter = entry.get(ADAPTER)
        if isinstance(adapter, Adapter):
            (folder / ADAPTER).mkdir(exist_ok=True)
            write_json(folder / ADAPTER / "adapter_config.json", adapter.config)
            save_file(adapter.tensors, folder / ADAPTER / "adapter_model.safetensors")


def without_adapter(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a pass as JSON data, without its adapter, which is written to files of its own."""
    return {name: value for name, value in entry.items() if not isinstance(value, Adapter)}
