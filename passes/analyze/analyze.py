"""analyze: measure what every cut costs, and remove nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...ir.errors import RequestError
from ...ir.options import option
from ..base import Pass, PassKind
from ..pipeline import parse_pipeline
from ..prune import Prune
from ..select.target import SEARCH

if TYPE_CHECKING:
    from ..state import State

BOUND = 0.1
"""Distance from the dense model that a recommended budget stays within, where nothing else is said."""

SUMMED = ("params", "bytes", "macs")
"""Measures of a budget that add up over groups."""


@dataclass(frozen=True, kw_only=True)
class Analyze(Pass):
    """Measure what cuts of single groups, layers and parts of layers cost, and find a budget. The model stays as it is.

    Units go in the order of the scores of a pruning pass. The measurements are those of ``by=search``.
    """

    name: ClassVar[str] = "analyze"
    kind: ClassVar[PassKind] = PassKind.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    keeps_values: ClassVar[bool] = True

    scores: str = option("taylor", "the pruning pass whose scores say which units go first, as pipeline text")
    bound: float = option(
        BOUND, "distance from the dense model that the recommended budget stays within", above=0,
        hint="give nats per token, such as 0.1",
    )  # fmt: skip
    measure: str = option("params", "what a budget counts", SUMMED)

    def check(self) -> None:
        """Also refuse a pass that scores nothing, or that says how much is to go."""
        super().check()
        given = self._given()
        for name in ("target", "ratio", "by", "moves"):
            unset = getattr(type(given), name)
            if getattr(given, name) not in (unset, SEARCH):
                raise RequestError(
                    f"analyze: {name} in {self.scores!r} has no effect: the analysis finds how much may go",
                    f"leave {name} out",
                )

    @property
    def step(self) -> Prune:
        """The pruning pass, as a search runs it."""
        return replace(self._given(), by=SEARCH)

    @property
    def samples(self) -> int:
        """Windows of one forward pass at most."""
        return int(getattr(self.step, "samples", 10))

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return int(getattr(self.step, "length", 128))

    def _given(self) -> Prune:
        return scoring_pass(self.scores)

    def run(self, state: State) -> None:
        """Measure, and report.

        Raises:
            RequestError: without calibration data, or when nothing can be cut or measured.
            FxpruneError: for a distance that is not finite.
        """
        from .analysis import analyze

        analyze(self, state)


def scoring_pass(text: str, defaults: Mapping[str, Any] | None = None) -> Prune:
    """The pruning pass that text stands for, by search unless it says otherwise.

    Args:
        text: pipeline text.
        defaults: as :func:`~fxprune.passes.pipeline.parse_pipeline` takes them.

    Raises:
        RequestError: a mistake in the text, several passes, or one that scores nothing.
    """
    from ..registry import all_passes

    try:
        steps = parse_pipeline(text, all_passes(), defaults={**(defaults or {}), "by": SEARCH})
    except RequestError:  # also of a pass whose own option is called so
        steps = parse_pipeline(text, all_passes())
    if len(steps) != 1 or not isinstance(steps[0], Prune):
        raise RequestError(f"analyze takes one pass that scores units, not {text!r}", "give one, such as --pass taylor")
    return steps[0]
