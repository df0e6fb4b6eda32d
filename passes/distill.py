"""distill: recovery training of all weights towards the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from ..ir.errors import RequestError
from ..ir.options import option
from .block_distillation import distil_blocks
from .finetune import Finetune
from .state import State
from .teacher import Teacher
from .training import Example


@dataclass(frozen=True, kw_only=True)
class Distill(Finetune):
    """Train what is left to predict what the dense model predicts (Hinton et al., arXiv 1503.02531; for pruned language
    models Minitron, arXiv 2407.14679), with ``blocks`` first every block alone to give what the dense one gives.

    The text is only where predictions are compared: it need not be what the dense model was trained on, but should be
    like it.
    """

    name: ClassVar[str] = "distill"

    lr: float = option(1e-3, "peak learning rate, falling linearly to 0", above=0, hint="usual is 1e-3")
    batch: int = option(16, "examples in an optimizer step", at_least=1)
    teacher: float = option(
        1.0, "share of the loss that is the distance from the dense model's predictions; the rest is the text's",
        at_least=0, at_most=1,
    )  # fmt: skip
    blocks: int = option(0, "optimizer steps of every block alone, in order, before the whole is trained", at_least=0)

    def check(self) -> None:
        """Also refuse no teacher at all: that is ``finetune``."""
        super().check()
        if not self.teacher:
            raise RequestError("distill: teacher=0 learns nothing from the dense model", "write finetune instead")

    def recover(
        self, state: State, model: PreTrainedModel, examples: list[Example], teacher: Teacher | None
    ) -> dict[str, Any]:
        """Train the blocks, then all parameters."""
        assert teacher is not None, "check refuses a share of 0"
        found: dict[str, Any] = {}
        if self.blocks:
            found["blocks"] = distil_blocks(
                model, teacher.model, examples, steps=self.blocks, lr=self.lr, batch=self.batch, seed=self.seed
            )
        return super().recover(state, model, examples, teacher) | found
