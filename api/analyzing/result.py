"""The result of ``analyze``: for the caller, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backends.seen import Seen
from ...passes.analyze.reading import HALF_THE_UNITS, costly_layers, layer_losses, spared_layers
from ...runtime.place.placement import Placement
from ..pages.written_file import claim_text, write_text
from ..shown import InOneLine
from .next_command import Asked, next_commands

ANALYSIS_MARK = "analysis"
"""The value of ``fxprune`` in its JSON, by which ``fxprune report`` knows it."""


@dataclass(frozen=True, repr=False)
class AnalysisResult(InOneLine):
    """What the cuts of a model cost.

    Attributes:
        model: as the user gave it.
        parameters: elements of all parameters.
        macs: multiply-accumulates of one call with the example inputs of the trace.
        report: what the pass ``analyze`` measured; :meth:`to_json` holds all of it.
        asked: what the next command must repeat.
        placement: where it ran.
    """

    model: str
    parameters: int
    macs: int
    report: Mapping[str, Any]
    asked: Asked = field(repr=False)
    placement: Placement | None = None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{self.model}, {self.parameters:,} parameters; recommended: {self.target or 'no cut'}"

    @property
    def target(self) -> str | None:
        """The recommended budget, such as ``params=0.83``; None where even the smallest cut exceeds the bound."""
        found = self.report["recommended"]
        return None if found is None else f"{self.report['measure']}={found['share']:g}"

    @property
    def spared(self) -> list[int]:
        """Layers that the recommended budget leaves whole."""
        return spared_layers(self.report["groups"]) if self.target is not None else []

    @property
    def costly(self) -> dict[int, float]:
        """The layers to spare, the costliest first, with what it costs to cut half of the units of all their groups."""
        losses = layer_losses(self.report["groups"], HALF_THE_UNITS)
        return {layer: losses[layer] for layer in costly_layers(losses)}

    @property
    def commands(self) -> list[str]:
        """The next commands: with widths as measured, and with equal widths where that can be."""
        return [command for _, command in next_commands(self.asked, self.report)]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "fxprune": ANALYSIS_MARK,
            "model": Path(self.model).name if Path(self.model).is_dir() else self.model,
            "parameters": self.parameters,
            "macs": self.macs,
            **self.report,
            "target": self.target,
            "spared": self.spared,
            "costly": [{"layer": layer, "loss": round(loss, 9)} for layer, loss in self.costly.items()],
            "next": [{"for": why, "command": command} for why, command in next_commands(self.asked, self.report)],
            "placement": self.placement.to_json() if self.placement else None,
        }

    def write(self, file: str | Path, *, force: bool = False, seen: Seen | None = None) -> None:
        """Write the JSON to a file, which appears complete or not at all.

        Raises:
            RequestError: the file exists, and ``force`` is not set or it holds something else.
        """
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        write_text(file, text, seen or claim_text(file, "--json", begins=ANALYSIS_BEGINS, force=force))

    def plot(self, file: str | Path, *, force: bool = False, seen: Seen | None = None) -> None:
        """Draw the curves to ``file``, an SVG or PNG by its name. Needs matplotlib, of the extra ``report``.

        Raises:
            RequestError: matplotlib is not there, the name has another ending, or as :meth:`write`.
        """
        from ..pages.curves import budget_and_curves
        from ..pages.drawing import claim_picture, write_picture

        found = seen or claim_picture(file, force=force)
        write_picture(file, budget_and_curves(self.to_json()), found)


ANALYSIS_BEGINS = b'{\n "fxprune": "analysis"'
"""The first bytes of a file that :meth:`AnalysisResult.write` made."""
