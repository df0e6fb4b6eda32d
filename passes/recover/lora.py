"""lora: recovery training with low-rank adapters that are merged into the weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...ir.errors import RequestError
from ...ir.options import option
from .base import Recovery

if TYPE_CHECKING:
    from torch import nn

    from ..state import State
    from .answer_loss import AnswerLoss
    from .teacher import Teacher
    from .training import Lessons, Recipe


@dataclass(frozen=True, kw_only=True)
class Lora(Recovery):
    """Recovery training as LLM-Pruner does it (arXiv 2305.11627, section 3.3), with PEFT and the transformers Trainer.

    ``state.ledger.report["lora"]`` receives besides the projections adapted, and the worst logit difference between
    adapter and merged model; with ``keep_adapter`` an ``Adapter`` under ``adapter``. When training fails the model is
    as it was before; when the merge does, it is not.
    """

    name: ClassVar[str] = "lora"
    packages: ClassVar[tuple[str, ...]] = ("peft", "accelerate")
    keeps_weights: ClassVar[bool] = True
    first_rate: ClassVar[float] = 1e-3

    r: int = option(8, "rank of the adapters", at_least=1)
    alpha: int = option(16, "scale of the adapters: their output is multiplied by alpha / r", at_least=1)
    dropout: float = option(
        0.05, "dropout on the inputs of the adapters", at_least=0, below=1, hint="the paper uses 0.05"
    )
    keep_adapter: bool = option(False, "also write the adapter, beside the merged model")

    def require(self, state: State, model: nn.Module) -> None:
        """Check that the model has projections to adapt."""
        from ...runtime.model.held_values import narrow_values
        from .adapters import projection_modules

        del state
        if self.keep_adapter and narrow_values(model):
            raise RequestError(
                "lora: keep_adapter has no use here: PEFT adds adapters within the layers that fill up narrower values",
                "leave keep_adapter out: the merged model holds what was trained",
            )
        if not projection_modules(model):
            raise RequestError(
                f"{type(model).__name__} has no projection that lora could adapt",
                "use distill or finetune in its place",
            )

    def written(self, model: nn.Module) -> list[nn.Parameter]:
        """The projections, into which the adapters are merged."""
        from .adapters import projection_modules

        return [model.get_parameter(f"{name}.weight") for name in projection_modules(model)]

    def trained(self, model: nn.Module) -> int:
        """The numbers in the adapters."""
        return sum(self.r * sum(weight.shape) for weight in self.written(model))

    def recover(
        self,
        state: State,
        model: nn.Module,
        lessons: Lessons,
        recipe: Recipe,
        teacher: Teacher | AnswerLoss | None,
    ) -> dict[str, Any]:
        """Train and merge.

        Raises:
            FxpruneError: for a loss that is not finite, or a merged model that differs from the trained one.
        """
        from .adapters import train_adapters

        return train_adapters(self, model, lessons, recipe, teacher, kept=self.kept(state))
