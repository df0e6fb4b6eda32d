"""The base of all recovery passes: their options, and what each of them says for itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ...ir.errors import RequestError
from ...ir.options import option
from ...runtime.model.training_rows import ALL_TOKENS, ANSWERS_ALONE
from ...runtime.place.choices import AUTO
from ..base import Pass, PassKind

if TYPE_CHECKING:
    from torch import nn

    from ..data import InputSet
    from ..state import State
    from .answer_loss import AnswerLoss
    from .kept_training import KeptTraining
    from .teacher import Teacher
    from .training import Lessons, Recipe


SWEEP = "auto: by short trainings from the same weights, judged on what validation holds out"
"""What the help says of a learning rate that is not given."""


@dataclass(frozen=True, kw_only=True)
class Recovery(Pass):
    """Trains what pruning left: of a causal language model of transformers on text, of any model on its inputs.

    ``state.ledger.report[name]`` receives the loss of every step, steps, tokens and seconds, and what the pass adds.

    Attributes:
        keeps_weights: whether the model's own weights stay as they are while it trains.
        first_rate: where ``lr=auto`` begins, one of :data:`.rates.RATES`.
    """

    kind: ClassVar[PassKind] = PassKind.RECOVER
    packages: ClassVar[tuple[str, ...]] = ("accelerate",)
    keeps_weights: ClassVar[bool] = False
    first_rate: ClassVar[float] = 1e-4

    epochs: int = option(2, "epochs over the data; used when steps is 0", at_least=1)
    lr: float | Literal["auto"] = option(
        1e-4, f"peak learning rate, falling linearly to 0; {SWEEP}", above=0, hint="usual is 1e-4, or auto"
    )
    batch: int = option(64, "examples per optimizer step", at_least=1)
    micro_batch: int = option(
        4, "examples per forward pass and device; a batch of several uses gradient accumulation", at_least=1
    )
    length: int = option(256, "maximum number of tokens in an example", at_least=2)
    steps: int = option(0, "optimizer steps; with 0, epochs decides", replaces="epochs", at_least=0)
    warmup: int = option(100, "steps of linear warm-up, limited to a tenth of all steps", at_least=0)
    seed: int = option(42, "random seed for data order, dropout and adapter weights", at_least=0, below=2**32)
    validation: int = option(
        0, "examples that are held out of the training; the weights with the smallest loss on them are kept, at worst "
        "those from before; 0 trains on all", at_least=0, hint="about a twentieth of the examples",
    )  # fmt: skip
    dtype: str = option(
        AUTO,
        "arithmetic: float32 (also for half-precision weights), or bfloat16 autocast; auto: bfloat16 for a model that "
        "is bfloat16 on an accelerator, though what is trained is float32; else float32",
        (AUTO, "float32", "bfloat16"),
    )
    checkpointing: str = option(
        AUTO,
        "compute the activations of a block again when its gradients are computed, which takes less memory and a third "
        "more time, and changes no result; auto: where those of all blocks do not fit in what is free",
        (AUTO, "on", "off"),
    )
    train_on: str = option(
        AUTO,
        "tokens of a row that count in the loss: all, or those of answers alone; auto: those of answers where rows are "
        "conversations or prompts with their completions, else all",
        (AUTO, ALL_TOKENS, ANSWERS_ALONE),
    )
    teacher: float = option(
        0.0, "weight of the distance to the dense model's predictions in the loss; the rest is the loss on the data",
        at_least=0, at_most=1, hint="0 uses the data only, 1 the dense model only",
    )  # fmt: skip
    temperature: float = option(
        1.0, "softmax temperature of the comparison with the dense model's predictions", above=0,
        hint="1 compares the predictions unchanged",
    )  # fmt: skip
    top_k: int = option(
        0, "how many of the dense model's most probable tokens are compared, all others counting as one token; they "
        "are computed once and kept on the disk, 8 bytes each for every token of the text; 0 compares all", at_least=0,
        hint="64 is usual for a large vocabulary",
    )  # fmt: skip

    @property
    def looks_back_at(self) -> tuple[Literal["model"], ...]:
        """A teacher is the model as it was before anything was removed."""
        return ("model",) if self.teacher else ()

    def check(self) -> None:
        """Also refuse a temperature for no teacher, a batch that is no whole number of micro-batches, and a rate that
        would be chosen on nothing."""
        super().check()
        if isinstance(self.lr, str) and self.lr != AUTO:
            raise RequestError(f"{self.name}: lr={self.lr} is not supported", "give a number, or auto")
        if self.lr == AUTO and not self.validation:
            raise RequestError(
                f"{self.name}: lr=auto has no held-out examples to choose by", "give validation=32, say, too"
            )
        if self.temperature != 1 and not self.teacher:
            raise RequestError(
                f"{self.name}: temperature={self.temperature:g} means nothing without a teacher",
                "give teacher=1 too",
            )
        if self.top_k and not self.teacher:
            raise RequestError(f"{self.name}: top_k={self.top_k} means nothing without a teacher", "give teacher=1 too")
        if self.batch % min(self.micro_batch, self.batch):
            raise RequestError(
                f"{self.name}: batch={self.batch} is not a multiple of micro_batch={self.micro_batch}",
                "change one of them",
            )

    def run(self, state: State) -> None:
        """Train; ``state.subject.model`` stays the same object with the same parameters, in eval mode.

        Raises:
            RequestError: no data, or too little of it; data without labels where there is no teacher; a model that
                this pass finds nothing to train in; a teacher, and no dense model to be it.
            FxpruneError: a loss that is not finite.
        """
        from .training_run import TrainingRun

        TrainingRun.of(self, state).run(state)

    def check_inputs(self, data: InputSet) -> None:
        """Refuse to train on inputs without labels, where these are needed, and what only text can be trained with.

        Raises:
            RequestError: naming what is missing.
        """
        if self.teacher < 1 and not data.labelled:
            raise RequestError(
                f"{self.name}: '{data.name}' has no labels to learn from",
                f"give data with labels; or {self.name}{{teacher=1}}, which learns from the dense model alone",
            )
        if self.train_on != AUTO:
            raise RequestError(
                f"{self.name}: train_on is for text, and '{data.name}' is none",
                "leave it out; labels of -100 say which outputs do not count",
            )
        if self.top_k:
            raise RequestError(f"{self.name}: top_k is for text, and '{data.name}' is none", "leave top_k out")
        if not data.divided and (self.batch > 1 and self.micro_batch > 1):
            raise RequestError(
                f"{self.name}: batches of '{data.name}' cannot be put together", f"write {self.name}{{micro_batch=1}}"
            )

    def trained(self, model: nn.Module) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in model.parameters())

    def require(self, state: State, model: nn.Module) -> None:
        """Check that this pass can train the model.

        Raises:
            RequestError: with what is missing.
        """

    def written(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of the model that the training or what follows it writes to."""
        return list(model.parameters())

    @abstractmethod
    def recover(
        self,
        state: State,
        model: nn.Module,
        lessons: Lessons,
        recipe: Recipe,
        teacher: Teacher | AnswerLoss | None,
    ) -> dict[str, Any]:
        """Train ``model`` in place; returns what to report."""

    def kept(self, state: State) -> KeptTraining | None:
        """Where the training keeps how far it got."""
        from ..pipeline import print_pass
        from .kept_training import KeptTraining

        if state.host.halfway is None:
            return None
        return KeptTraining(state.host.halfway, print_pass(self, defaults=True), state.ranks)
