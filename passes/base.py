"""What every pass is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal

from ..ir.bounds import check_options

if TYPE_CHECKING:
    from .state import State


class PassKind(StrEnum):
    """What a pass does to a model.

    Attributes:
        SCORE: removes units or layers, chosen by scores or by a plan. Before it runs, copies of the model are kept for
            passes that look back.
        RECOVER: changes the values of weights and removes nothing, to win back what a removal cost. A dry run leaves it
            out.
        ANALYSIS: leaves the model as it is, and makes what later passes read.
    """

    SCORE = "score"
    RECOVER = "recover"
    ANALYSIS = "analysis"


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One step of a pipeline. Its dataclass fields are its options; its name is what pipeline text calls it.

    The module of a pass declares it, and imports what it runs with only when it runs: torch takes four CPU seconds, and
    whoever lists passes or mistypes an option should not wait for it.

    Attributes:
        name: as written in pipeline text.
        kind: what it does to a model.
        needs: analyses that must be valid before it runs, by name (``couple``).
        invalidates: analyses that are stale after it ran.
        needs_weights: whether it reads parameter values (a pass that does not can run from a config alone).
        streams: whether one tensor at a time is enough for it, from ``state.host.weights``, so that it runs on models
            that are larger than memory.
        takes_loss: whether it scores by the gradients of a loss, which for models that are no language models the user
            gives.
        reads_text: whether it can only read text, of a causal language model.
        reads_tokens: whether it reads calibration data, if there is any, also when it needs no weights.
        writes_text: whether passes behind it read another calibration text than was given, or other tokens of it.
        packages: modules that it imports and an extra brings (``ir/extras.py``).
        keeps_values: whether it slices, drops or reads weights and never changes a value that stays. Of a pass that
            does, ``--resume`` keeps the values.
    """

    name: ClassVar[str]
    kind: ClassVar[PassKind]
    needs: ClassVar[tuple[str, ...]] = ()
    invalidates: ClassVar[tuple[str, ...]] = ()
    needs_weights: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    takes_loss: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    writes_text: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    keeps_values: ClassVar[bool] = False

    @property
    def looks_back_at(self) -> tuple[Literal["model", "same_layers"], ...]:
        """The copies of the model as it was, in ``State.before``, that it needs with its options."""
        return ()

    @property
    def loads_model(self) -> bool:
        """Whether the model must be one that runs, with its options: one tensor at a time is not enough."""
        return not self.streams

    def check(self) -> None:
        """Refuse option values that make no sense, before anything runs: here those outside their bounds or choices.

        Raises:
            RequestError: naming the option, its value, and what is allowed.
        """
        check_options(self.name, self)

    def run(self, state: State) -> None:
        """Run the pass: read and change ``state``."""
        raise NotImplementedError
