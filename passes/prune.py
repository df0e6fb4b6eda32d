"""The base of all pruning passes: their options, and what each of them says for itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ..ir.errors import RequestError
from ..ir.options import option
from .base import Pass, PassKind
from .select.runtimes import AS_NEEDED, DEFAULT_MULTIPLE, RUNTIMES
from .select.target import BUDGET_TOLERANCE, LATENCY, SEARCH, UNIFORM, WAYS, Target

if TYPE_CHECKING:
    from ..ir.groups import Group
    from .data import Scores
    from .select.costs import Costs
    from .state import State

HEAD_CHOICES = ("auto", "kv", "query", "off")
"""What ``heads`` may be, as in :class:`~.select.scope.Scope`."""


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """A pass that scores units and removes those with the lowest scores."""

    kind: ClassVar[PassKind] = PassKind.SCORE
    needs: ClassVar[tuple[str, ...]] = ("couple",)
    invalidates: ClassVar[tuple[str, ...]] = ("couple",)
    keeps_values: ClassVar[bool] = True

    ratio: float = option(
        0.25, "share of the units of every group to remove, in [0, 1)", at_least=0, below=1,
        hint="give the share to remove: 0.25 removes a quarter",
    )  # fmt: skip
    layers: tuple[int, int] | None = option(
        None, "layers to prune, START:END, END exclusive; 1:-1 leaves out the first and the last; none means all layers"
    )
    within: str | None = option(
        None, "a part of the model, such as language_model: prune only what lies wholly in modules of this name"
    )
    heads: str = option(
        "auto",
        "kv: kv heads with their query heads; query: query heads of each kv head; off; auto: kv, or query "
        "in layers with so few kv heads that none would go",
        HEAD_CHOICES,
    )
    values: bool = option(
        False, "where turn ran: prune channels of the values of heads, alike in all heads of a layer; with by=uniform "
        "instead of heads, otherwise beside them"
    )  # fmt: skip
    ffn: bool = option(True, "prune inner widths, such as those of feed-forward layers")
    channels: bool = option(
        False, "prune the residual width (the paper's channel-wise mode); true for package.module:callable"
    )
    experts: bool = option(False, "prune whole experts with their router rows; keep at least as many as a token needs")
    ordered: bool = option(
        False, "prune units that carry a value by their index too, such as the bins of a distribution"
    )
    multiple_of: int | Literal["auto"] = option(
        1, "round widths other than heads up to a multiple of this; auto: what runtime needs, or 32", at_least=1,
        hint="use 1 for no constraint, or 8, 64, ...",
    )  # fmt: skip
    runtime: str | None = option(
        None, "what the result is for: widths, heads and experts are kept in the counts that its kernels need",
        tuple(RUNTIMES),
    )  # fmt: skip
    target: str | None = option(
        None,
        "budget for the whole model instead of ratio: params:0.8, params:5e9, bytes:0.8, macs:0.8, latency:0.8, "
        "active:0.8 of a mixture's parameters, memory:6GB@8192x4 with the cache of 4 sequences of 8192 tokens",
        replaces="ratio",
    )
    tolerance: float = option(
        BUDGET_TOLERANCE, "largest relative difference between the budget and what is reached", at_least=0, below=1,
        hint="give a share of the budget: 0.03 allows 3 percent more or less",
    )  # fmt: skip
    by: str = option(
        "uniform", "uniform: one ratio for all; kinds: equal widths in all layers, scores weigh heads against widths; "
        "global: any widths, by scores; search: any widths, by measured effects on the predictions", WAYS
    )  # fmt: skip
    moves: int = option(
        64, "by=search: number of exchanges between groups to try", only_with=("by", SEARCH), at_least=0
    )

    def check(self) -> None:
        """Also refuse a target that cannot be read, and a scope that holds nothing."""
        super().check()
        if self.heads == "off" and not (self.ffn or self.channels or self.experts):
            raise RequestError(
                "heads=off, ffn=false, channels=false, experts=false leave nothing to prune", "turn one of them on"
            )
        needed = 1 if self.runtime is None else RUNTIMES[self.runtime].columns
        if isinstance(self.multiple_of, int) and self.multiple_of > 1 and self.multiple_of % needed:
            raise RequestError(
                f"multiple_of={self.multiple_of} is no multiple of {needed}, which runtime={self.runtime} needs",
                f"leave one of the two out, or give multiple_of={needed}",
            )
        if self.target is not None:
            Target.parse(self.target)
        elif self.by == UNIFORM and self.tolerance != BUDGET_TOLERANCE:
            raise RequestError(
                f"tolerance={self.tolerance:g} has no effect: there is no budget to meet", "give a target too"
            )

    @property
    def loads_model(self) -> bool:
        """Also where the model is timed, or run with fewer units."""
        timed = self.target is not None and Target.parse(self.target).measure == LATENCY
        return super().loads_model or self.by == SEARCH or timed

    def step(self, group: Group) -> int:
        """The number of units that a group keeps is a multiple of this."""
        from .select.select import step_of

        return step_of(group, self.width_multiple)

    @property
    def width_multiple(self) -> int:
        """What widths other than heads are multiples of."""
        if self.runtime is not None and self.multiple_of in (1, AS_NEEDED):
            return RUNTIMES[self.runtime].columns
        return self.multiple_of if isinstance(self.multiple_of, int) else DEFAULT_MULTIPLE

    @abstractmethod
    def scores(self, groups: Sequence[Group], state: State) -> Mapping[str, Scores]:
        """The importance of every unit of every group: name -> float64 ``[group.units]``."""

    def losses(self, group: Group, scores: Scores) -> Scores:
        """Summed scores of the 0, 1, ... lowest-scored units of every parent unit: float64 ``[size + 1]``."""
        import numpy as np

        rows = np.sort(scores.reshape(-1, group.size), axis=1)
        return np.concatenate([np.zeros(1), rows.sum(0).cumsum()])

    def run(self, state: State) -> None:
        """Score, select, rewrite the graph and shrink the module in place."""
        from .pruning import prune

        prune(self, state)

    @property
    def for_one_budget(self) -> bool:
        """Whether scores depend on the budget, so that they cannot be used for another budget."""
        return False

    @property
    def compares(self) -> bool:
        """Whether scores of different groups have the same unit; if not, they are standardised within their group."""
        return False

    def in_one_unit(self, losses: Mapping[str, Scores], groups: Sequence[Group], costs: Costs) -> Mapping[str, Scores]:
        """The losses of all groups in one unit, so that a budget can be divided among them.

        Args:
            losses: group name -> what :meth:`losses` gave, ``[size + 1]``.
            groups: the groups to cut.
            costs: what they cost.
        """
        if self.compares:
            return losses
        from .select.common_unit import standardized, with_one_threshold

        return with_one_threshold(standardized(losses, groups), groups, costs)
