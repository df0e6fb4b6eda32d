"""finetune: recovery training of all weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Recovery

if TYPE_CHECKING:
    from torch import nn

    from ..state import State
    from .answer_loss import AnswerLoss
    from .teacher import Teacher
    from .training import Lessons, Recipe


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
        model: nn.Module,
        lessons: Lessons,
        recipe: Recipe,
        teacher: Teacher | AnswerLoss | None,
    ) -> dict[str, Any]:
        """Train all parameters."""
        from .trainer import train
        from .training import reported, require_finite

        model.requires_grad_(True)
        training = train(model, lessons, recipe, teacher, self.kept(state))
        require_finite(model, "nothing was written")
        return reported(training, lessons)
