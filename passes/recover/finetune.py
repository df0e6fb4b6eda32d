"""finetune: recovery training of all weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..state import State
from .base import Recovery, reported, require_finite
from .teacher import Teacher
from .training import Example, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Finetune(Recovery):
    """Recovery training of every parameter: on the text, on the dense model's predictions for it, or on both.

    Besides the model, this needs memory for the gradients and two moments of all parameters, and with a teacher for the
    dense model. After a failure the model keeps its state at that moment.
    """

    name: ClassVar[str] = "finetune"

    def recover(
        self,
        state: State,
        model: PreTrainedModel,
        examples: list[Example],
        recipe: Recipe,
        teacher: Teacher | None,
    ) -> dict[str, Any]:
        """Train all parameters."""
        from .trainer import train

        model.requires_grad_(True)
        training = train(model, examples, recipe, teacher, self.kept(state))
        require_finite(model, "nothing was written")
        return reported(training)
