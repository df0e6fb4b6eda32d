"""distill: recovery training of all weights with the dense model as the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...ir.errors import RequestError
from ...ir.options import option
from ...runtime.place.choices import AUTO
from .base import SWEEP
from .finetune import Finetune

if TYPE_CHECKING:
    from torch import nn

    from ..state import State
    from .answer_loss import AnswerLoss
    from .teacher import Teacher
    from .training import Lessons, Recipe


@dataclass(frozen=True, kw_only=True)
class Distill(Finetune):
    """Train the pruned model to match the dense model's predictions (arXiv 1503.02531; Minitron, arXiv 2407.14679).

    With ``blocks``, every block is first trained alone to match the output of the dense model's block.
    Predictions are compared on the data. It need not be the dense model's training data, but it should be similar. Of a
    model without predictions (``logits``) the outputs are compared, such as the last hidden states of an encoder.
    """

    name: ClassVar[str] = "distill"
    first_rate: ClassVar[float] = 3e-4

    lr: float | Literal["auto"] = option(
        1e-3, f"peak learning rate, falling linearly to 0; {SWEEP}", above=0, hint="usual is 1e-3, or auto"
    )
    batch: int = option(16, "examples in an optimizer step", at_least=1)
    teacher: float = option(
        1.0, "weight of the distance to the dense model's predictions in the loss; the rest is the loss on the data",
        at_least=0, at_most=1,
    )  # fmt: skip
    blocks: int = option(
        0, "optimizer steps for every block alone, in order, before the whole model is trained", at_least=0
    )

    def check(self) -> None:
        """Also refuse ``teacher=0``: that is ``finetune``."""
        super().check()
        if not self.teacher:
            raise RequestError("distill: teacher=0 does not use the dense model", "use finetune instead")
        if self.blocks and self.lr == AUTO:
            raise RequestError(
                "distill: lr=auto is for the whole model, and blocks are trained before it",
                "give lr, or leave blocks out",
            )

    def recover(
        self,
        state: State,
        model: nn.Module,
        lessons: Lessons,
        recipe: Recipe,
        teacher: Teacher | AnswerLoss | None,
    ) -> dict[str, Any]:
        """Train the blocks, then all parameters."""
        from ...runtime.streaming.block_runner import BlockRunner
        from .block_distillation import distil_blocks

        assert teacher is not None, "check refuses a share of 0"
        found: dict[str, Any] = {}
        if self.blocks:
            dense = state.before.runner("model")
            assert dense is not None, "it is the teacher"
            assert not isinstance(self.lr, str), "check refuses auto beside blocks"
            student = BlockRunner(model, whole=state.subject.whole)  # while it trains, it holds its weights
            found["blocks"] = distil_blocks(
                student, dense, lessons, steps=self.blocks, lr=self.lr, batch=self.batch, seed=self.seed
            )
        return super().recover(state, model, lessons, recipe, teacher) | found
