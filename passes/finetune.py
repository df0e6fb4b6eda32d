"""finetune: recovery training of all weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from .recovery import Recovery, reported, require_finite
from .state import State
from .teacher import Teacher
from .training import Example


@dataclass(frozen=True, kw_only=True)
class Finetune(Recovery):
    """Recovery training of every parameter, on the text, on what the dense model says of it, or on both.

    Takes memory for the gradients and two moments of all parameters, besides the model; with a teacher also for the
    dense model. A training that fails leaves the model as it was when it failed.
    """

    name: ClassVar[str] = "finetune"

    def recover(
        self, state: State, model: PreTrainedModel, examples: list[Example], teacher: Teacher | None
    ) -> dict[str, Any]:
        """Train all parameters."""
        from .trainer import train

        del state
        model.requires_grad_(True)
        training = train(model, examples, self.recipe, teacher)
        require_finite(model, "nothing was written")
        return reported(training)
