"""What every pass is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .state import State


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One step of a pipeline. Its dataclass fields are its options; its name is what pipeline text calls it.

    Attributes:
        name: as written in pipeline text.
        kind: ``score``, ``recover`` or ``analysis``; for presentation.
        needs: analyses that must be valid before it runs, by name (``couple``).
        invalidates: analyses that are stale after it ran.
        needs_weights: whether it reads parameter values (a pass that does not can run from a config alone).
        needs_original: whether it compares with the model as it was before pruning.
        streams: whether one tensor at a time is enough for it, from ``State.weights``, so that it runs on models that
            are larger than memory.
        takes_loss: whether it scores by the gradients of a loss, which for models that are no language models the user
            gives.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    invalidates: ClassVar[tuple[str, ...]] = ()
    needs_weights: ClassVar[bool] = True
    needs_original: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    takes_loss: ClassVar[bool] = False

    @property
    def needs_dense(self) -> bool:
        """Whether, with its options, it learns from the model as it was before anything was removed."""
        return False

    def check(self) -> None:
        """Refuse option values that make no sense, before anything runs.

        Raises:
            RequestError: naming the option, its value, and what is allowed.
        """

    def run(self, state: State) -> None:
        """Do the work on ``state``."""
        raise NotImplementedError
