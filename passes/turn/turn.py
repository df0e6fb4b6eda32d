"""turn: give the values of attention heads a basis whose last directions can go, without changing what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.options import option, seed_option
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from ..state import State


@dataclass(frozen=True, kw_only=True)
class TurnValues(Pass):
    """Turn the values of every attention head so that its outputs need as few of their channels as possible.

    Attention mixes values over positions and leaves their channels alone. So a turn of the rows that make the values of
    a head, and the opposite turn of the columns that read them, cancel out. The turn puts those directions first of
    which the outputs on the calibration text consist (the singular vectors of the output map times the root of the
    second moments of what it reads, made orthogonal; SliceGPT, arXiv 2401.15024, turns the residual stream likewise).
    Behind it, a pruning pass with ``values=true`` removes channels of values, equally many in all heads of a layer.
    Heads whose values and queries come from one weight stay as they are.
    """

    name: ClassVar[str] = "turn"
    kind: ClassVar[PassKind] = PassKind.ANALYSIS
    needs: ClassVar[tuple[str, ...]] = ("couple",)

    samples: int = option(64, "calibration windows", at_least=1)
    length: int = option(128, "tokens in a calibration window", at_least=1)
    seed: int | None = seed_option(None, "random seed for the choice of windows; none takes the first windows in order")
    batch: int = option(8, "windows in one forward pass", at_least=1)

    def run(self, state: State) -> None:
        """Turn in place.

        Raises:
            RequestError: without calibration data; for a model without values that can be turned.
            FxpruneError: for inputs that are not finite, or a model that computes something else afterwards.
        """
        from .turned_values import turn_values

        turn_values(self, state)
