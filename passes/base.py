"""What every pass is, and the state that passes hand to one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..ir.bounds import check_options
from ..ir.errors import RequestError
from ..ir.repairs import Repairs

if TYPE_CHECKING:
    import torch

    from ..ir import Indices, Plan
    from ..ir.graph import Graph
    from .couple import Coupling
    from .saved import Saved


class Corpus(Protocol):
    """Text that has been tokenised: what calibration and recovery read."""

    @property
    def name(self) -> str:
        """What the user called it."""

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids ``[count, length]`` int64, non-overlapping and unpadded.

        Args:
            length: tokens in a window.
            count: how many; all of them when None.
            seed: None takes the first windows in order, an integer draws them at random.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows.
        """


class Weights(Protocol):
    """Parameters by their first names, read one at a time."""

    def __call__(self, names: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
        """Name and value of the named parameters, in whatever order is quickest."""


@dataclass
class State:
    """What a pipeline works on. Passes read and replace its parts.

    Attributes:
        graph: the traced graph; after a pruning pass, the rewritten one.
        model: the module that the graph was traced from; its parameters are on the meta device when only a config was
            given. A pruning pass shrinks it in place.
        coupling: the dependency analysis of ``graph``, None once a rewrite has invalidated it.
        plan: what the pruning passes removed so far.
        calibration: text for scores, None when the user gave none.
        losses: for a module that is no language model, what scores are computed from instead of text: each takes the
            module and returns a scalar.
        data: text for recovery training, None when the user gave none.
        example: the keyword arguments of ``forward`` that the graph was traced with.
        repairs: the module attributes that pruning passes changed so far.
        outputs: keys of what counts among the things that the model returns; all of it when empty.
        execute: runs a graph with the weights of the model and returns its output, and the model's own on the
            same inputs; None where there are no weights to run.
        rebuild: makes a module of a rewritten graph, its tensors by name and the reason, for a model whose own forward
            does not hold at the smaller widths; None where only the model itself will do.
        weights: where the model holds no values but its checkpoint can be read: yields name and value of the parameters
            that are asked for by their first names, one at a time, cut as ``plan`` says and in the dtype of the file.
        recorded: the slices of a plan that another run wrote, for the pass that replays them.
        original: a copy of the model as it was before the first pruning pass, where a later pass compares with it.
        dense: a copy of the model as it was before the first pass that removed anything, where a later pass learns from
            it; may be the same object as ``original``.
        consumers: (tensor, dimension) of everything that takes in units which were cut.
        retrace: traces the model anew, for a pass that changes more than widths.
        renamed: where tensors changed their names, present name -> name in the source.
        whole: the graph before any pass, which shares of the whole model refer to.
        saved: scores of another run, or a place to keep those of this one; None when they are not wanted.
        report: what passes want recorded in the artifact, by pass name.
    """

    graph: Graph
    model: torch.nn.Module
    coupling: Coupling | None = None
    plan: Plan | None = None
    calibration: Corpus | None = None
    losses: Sequence[Callable[[torch.nn.Module], torch.Tensor]] = ()
    data: Corpus | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    repairs: Repairs = field(default_factory=Repairs)
    outputs: Sequence[str] = ()
    execute: Callable[[Graph, torch.nn.Module], tuple[torch.Tensor, torch.Tensor]] | None = None
    rebuild: Callable[[Graph, Mapping[str, torch.Tensor], str], torch.nn.Module] | None = None
    weights: Weights | None = None
    recorded: Mapping[tuple[str, int], Indices] | None = None
    original: torch.nn.Module | None = None
    dense: torch.nn.Module | None = None
    consumers: list[tuple[str, int]] = field(default_factory=list)
    retrace: Callable[[torch.nn.Module], Graph] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    whole: Graph | None = None
    saved: Saved | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def text(self, who: str) -> Corpus:
        """The calibration text.

        Args:
            who: needs it, with its verb, for the error: ``taylor scores need``.

        Raises:
            RequestError: when the user gave none.
        """
        if self.calibration is None:
            raise RequestError(
                f"{who} calibration text",
                "give --calib FILE, text the model should keep modelling; or let a language model write some, with "
                "generate before the first pass; for a module in Python, give its loss",
            )
        return self.calibration


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
        """Refuse option values that make no sense, before anything runs: here those outside their bounds or choices.

        Raises:
            RequestError: naming the option, its value, and what is allowed.
        """
        check_options(self.name, self)

    def run(self, state: State) -> None:
        """Do the work on ``state``."""
        raise NotImplementedError
