"""What passes hand to one another: the model, what they may read, what has been done, and what was before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..ir.errors import FxpruneError, RequestError
from ..ir.repairs import Repairs
from ..runtime.block_runner import BlockRunner
from ..runtime.ranks import Ranks
from ..runtime.residence import Residence

if TYPE_CHECKING:
    import torch

    from ..ir import Indices, Plan
    from ..ir.graph import Graph
    from .couple.coupling import Coupling
    from .data import Corpus, Weights
    from .score_cache import ScoreCache

KEPT_ON_RESUME = "kept"
"""In the metadata of a part of :class:`State`: whether a run that goes on has it from the one that broke off. What is
not kept, it makes anew."""


@dataclass
class Subject:
    """What is pruned.

    Attributes:
        graph: the traced graph; after a pruning pass, the rewritten one.
        model: the module that the graph was traced from; its parameters are on the meta device when only a config was
            given. A pruning pass shrinks it in place.
        coupling: the dependency analysis of ``graph``, None once a rewrite has invalidated it.
        example: the keyword arguments of ``forward`` that the graph was traced with.
        outputs: keys of what counts among the things that the model returns; all of it when empty.
        residence: brings its weights into memory; None when the module holds them.
        whole: what runs as a whole although it is a list of blocks -> why.
    """

    graph: Graph
    model: torch.nn.Module
    coupling: Coupling | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    residence: Residence | None = None
    whole: dict[str, str] = field(default_factory=dict)

    @property
    def runner(self) -> BlockRunner:
        """Runs the model, with the weights of one block in memory where they are not in the module."""
        return BlockRunner(self.model, self.residence, self.whole)


@dataclass
class Data:
    """What passes may read.

    Attributes:
        calibration: text for scores, None when the user gave none.
        recovery: text for recovery training, None when the user gave none.
        losses: for a module that is no language model, what scores are computed from instead of text: each takes the
            module and returns a scalar.
        recorded: the slices of a plan that another run wrote, for the pass that replays them.
    """

    calibration: Corpus | None = None
    recovery: Corpus | None = None
    losses: Sequence[Callable[[torch.nn.Module], torch.Tensor]] = ()
    recorded: Mapping[tuple[str, int], Indices] | None = None

    def text(self, who: str) -> Corpus:
        """The calibration text.

        Args:
            who: subject and verb of the error message, such as ``taylor scores need``.

        Raises:
            RequestError: when the user gave none.
        """
        if self.calibration is None:
            raise RequestError(
                f"{who} calibration text",
                "give --calib FILE with text like the model's later input; or put generate before the first pass, so "
                "that a language model writes the text; for a module in Python, give its loss",
            )
        return self.calibration


class Host(Protocol):
    """What whoever runs the pipeline can do with the model; None where it cannot."""

    @property
    def weights(self) -> Weights | None:
        """Where the model holds no values but its checkpoint can be read: yields name and value of the parameters that
        are asked for by their first names, one at a time, cut as the plan says and in the dtype of the file."""

    @property
    def execute(self) -> Callable[[Graph, torch.nn.Module], tuple[torch.Tensor, torch.Tensor]] | None:
        """Runs a graph with the weights of the model and returns its output, and the model's own on the same inputs;
        None where there are no weights to run."""

    @property
    def rebuild(self) -> Callable[[Graph, Mapping[str, torch.Tensor], str], torch.nn.Module] | None:
        """Makes a module of a rewritten graph, its tensors by name and the reason, for a model whose own forward does
        not hold at the smaller widths; None where only the model itself will do."""

    def retrace(self, model: torch.nn.Module) -> tuple[Graph, Mapping[str, Any]]:
        """Trace the model anew, after a change of more than widths: the graph, and the example it was traced with."""


class NoHost:
    """Offers nothing: for a model without weights, and wherever passes are run by hand."""

    weights: Weights | None = None
    execute: Callable[[Graph, torch.nn.Module], tuple[torch.Tensor, torch.Tensor]] | None = None
    rebuild: Callable[[Graph, Mapping[str, torch.Tensor], str], torch.nn.Module] | None = None

    def retrace(self, model: torch.nn.Module) -> tuple[Graph, Mapping[str, Any]]:
        """Refuse.

        Raises:
            FxpruneError: always.
        """
        raise FxpruneError(
            f"only widths of a {type(model).__name__} can be pruned here", "take layers out of it before it is pruned"
        )


@dataclass
class Before:
    """The model as it was, for passes that look back; the manager fills it in.

    The two models are one object until ``drop`` takes something out: ``drop,taylor,compensate,distill`` refits to the
    model without the layers that went, and learns from the one with them.

    Attributes:
        graph: before any pass; shares of the whole model refer to it.
        model: one from before the first pass that removed anything, to learn from. It shares the values of the present
            model's tensors that are still the same.
        same_layers: one from before the first pass that cut widths of the layers that are there now, to compare
            activations with.
        residences: for each of the two models, by the name of its attribute, what brings its weights into memory;
            nothing for models that hold them.
    """

    graph: Graph | None = None
    model: torch.nn.Module | None = None
    same_layers: torch.nn.Module | None = None
    residences: dict[str, Residence] = field(default_factory=dict)

    def keep(self, name: Literal["model", "same_layers"], runner: BlockRunner) -> None:
        """Look back at this model from now on."""
        setattr(self, name, runner.model)
        self.residences.pop(name, None)
        if runner.residence is not None:
            self.residences[name] = runner.residence

    def runner(self, name: Literal["model", "same_layers"]) -> BlockRunner | None:
        """Runs one of the two models; None when there is none."""
        model: torch.nn.Module | None = getattr(self, name)
        return None if model is None else BlockRunner(model, self.residences.get(name))


@dataclass
class Ledger:
    """What passes have done.

    Attributes:
        plan: what the pruning passes removed so far.
        repairs: the module attributes that pruning passes changed so far.
        consumers: (tensor, dimension) of everything that takes in units which were cut.
        renamed: where tensors changed their names, present name -> name in the source.
        written: texts that passes wrote and put after the calibration text: how many of its windows come first, and
            theirs, int64 ``[N, L]``.
        scores: those of another run, or a place to keep those of this one; None when they are not wanted.
        report: what passes want recorded in the artifact, by pass name.
    """

    plan: Plan | None = None
    repairs: Repairs = field(default_factory=Repairs)
    consumers: list[tuple[str, int]] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    written: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    scores: ScoreCache | None = None
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class State:
    """What a pipeline works on. Passes read and replace the contents of its parts.

    Attributes:
        subject: what is pruned.
        data: what passes may read.
        host: what whoever runs the pipeline can do with the model.
        before: the model as it was.
        ledger: what has been done.
        ranks: the processes that share the work; all of them run the same passes on the same state.
    """

    subject: Subject = field(metadata={KEPT_ON_RESUME: True})
    data: Data = field(default_factory=Data, metadata={KEPT_ON_RESUME: False})
    host: Host = field(default_factory=NoHost, metadata={KEPT_ON_RESUME: False})
    before: Before = field(default_factory=Before, metadata={KEPT_ON_RESUME: True})
    ledger: Ledger = field(default_factory=Ledger, metadata={KEPT_ON_RESUME: True})
    ranks: Ranks = field(default_factory=Ranks, metadata={KEPT_ON_RESUME: False})
