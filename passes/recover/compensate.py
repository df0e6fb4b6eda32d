"""compensate: refit the weights that read removed units, so that their outputs stay close to the dense model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...ir.options import option, seed_option
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from ..state import State

METHODS = ("lstsq", "bias")


@dataclass(frozen=True, kw_only=True)
class Compensate(Pass):
    """Refit every linear map whose inputs lost units, one after the other in execution order.

    When a linear map is refitted, all layers before it are already pruned and refitted. The target is the dense model's
    output; with ``residual``, it is the output that makes the pruned residual stream equal to the dense one (sequential
    least squares as in OSSCAR, SlimGPT and Tyr-the-Pruner, arXiv 2503.09657). ``method=bias`` only adds the mean
    contribution of the removed inputs to the bias (FLAP, arXiv 2312.11983).
    """

    name: ClassVar[str] = "compensate"
    kind: ClassVar[PassKind] = PassKind.RECOVER

    method: str = option("lstsq", "lstsq: refit the kept weights; bias: correct the mean", METHODS)
    damping: float | Literal["auto"] = option(
        0.01, "strength of the pull to the present weights, relative to the mean second moment of inputs; auto: from "
        "how much of what is missing the inputs explain", at_least=0, hint="use auto, or 0 for none",
    )  # fmt: skip
    samples: int = option(64, "calibration windows", at_least=1)
    length: int = option(128, "tokens in a calibration window", at_least=1)
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")
    batch: int = option(8, "windows in one forward pass", at_least=1)
    residual: bool = option(
        True, "fit to the dense model's residual stream, so that errors of earlier layers are corrected too"
    )

    @property
    def looks_back_at(self) -> tuple[Literal["same_layers"]]:
        """It fits to what the same layers gave."""
        return ("same_layers",)

    def run(self, state: State) -> None:
        """Refit in place.

        Raises:
            RequestError: without a pruning pass before it; without calibration data, or with too little for a fit
                without damping; for ``method=bias`` where a consumer has no bias.
            FxpruneError: for statistics that are not finite, or singular without damping.
        """
        from .consumer_refits import refit_consumers

        refit_consumers(self, state)
