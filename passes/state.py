"""What passes hand to one another: the model, what they may read, what has been done, and what was before.

The metadata of every field, or of the part that it is in, says where a run that is resumed has it from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ..ir.errors import FxpruneError, RequestError
from ..ir.graph import Graph
from ..ir.repairs import Repairs
from ..runtime.ranks import Ranks
from ..runtime.streaming.block_runner import BlockRunner
from ..runtime.streaming.residence import Residence
from .data import is_inputs
from .halfway import Halfway
from .model.blocks import read_elsewhere

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..ir import Indices, Plan
    from .couple.coupling import Coupling
    from .data import Calibration, Corpus, Observed, Storage, TokenCut, Weights
    from .score_cache import ScoreCache
    from .sizes import NestedSizes


class OnResume(StrEnum):
    """Where a run that goes on has a part of its :class:`State` from.

    Attributes:
        ANEW: it makes it anew, as any run does.
        REPEATED: it repeats the decisions of the passes that were done, see :class:`Decision`.
        STORED: the run that broke off wrote it down.
    """

    ANEW = "anew"
    REPEATED = "repeated"
    STORED = "stored"


ON_RESUME = "on_resume"
"""In the metadata of the fields of a state's parts: an :class:`OnResume`."""

_ANEW, _REPEATED, _STORED = ({ON_RESUME: how} for how in OnResume)


class Decision(Protocol):
    """What a pass did to the structure of a model, as data with which it can be done again without scores.

    An implementation is a frozen dataclass; ``fxprune.passes.structure.DECISIONS`` lists them all.

    Attributes:
        name: what the saved state of a run calls it.
    """

    name: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """As JSON data, in which NumPy arrays may stand too."""

    def redo(self, state: State) -> None:
        """Do it again.

        Raises:
            FxpruneError: it does not fit the model.
        """


@dataclass(frozen=True)
class Finished:
    """A pass that has run.

    Attributes:
        name: of the pass.
        decisions: what it did to the structure of the model, in order.
        can_be_repeated: whether these are all that it did, besides the values of weights and what the ledger holds.
    """

    name: str
    decisions: tuple[Decision, ...] = ()
    can_be_repeated: bool = True


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
        observed: which integers its modules read as it runs, and for what; None while that is not known.
        whole: what runs as a whole although it is a list of blocks -> why; of the graph, that a block's weights are
            read elsewhere.
    """

    graph: Graph = field(metadata=_REPEATED)
    model: torch.nn.Module = field(metadata=_REPEATED)
    coupling: Coupling | None = field(default=None, metadata=_REPEATED)
    example: Mapping[str, Any] = field(default_factory=dict, metadata=_REPEATED)
    outputs: Sequence[str] = field(default=(), metadata=_ANEW)
    residence: Residence | None = field(default=None, metadata=_ANEW)
    observed: Observed | None = field(default=None, metadata=_ANEW)
    whole: dict[str, str] = field(default_factory=dict, metadata=_ANEW)

    def __post_init__(self) -> None:
        if isinstance(self.graph, Graph):  # a pass that reads no graph can do without
            self.whole.update(read_elsewhere(self.graph, self.model))

    @property
    def runner(self) -> BlockRunner:
        """Runs the model, with the weights of one block in memory where they are not in the module."""
        return BlockRunner(self.model, self.residence, self.whole)


@dataclass
class Data:
    """What passes may read.

    Attributes:
        calibration: text or other inputs for scores, None when the user gave none.
        recovery: text or other inputs for recovery training, None when the user gave none.
        losses: for a module that is no language model, what scores are computed from instead of data: each takes the
            module and returns a scalar.
        recorded: the slices of a plan that another run wrote, for the pass that replays them.
        sizes: what this run shares with those for other sizes of the model; None where there is one size.
    """

    calibration: Calibration | None = None
    recovery: Calibration | None = None
    losses: Sequence[Callable[[torch.nn.Module], torch.Tensor]] = ()
    recorded: Mapping[tuple[str, int], Indices] | None = None
    sizes: NestedSizes | None = None

    def text(self, who: str) -> Corpus:
        """The calibration text.

        Args:
            who: subject and verb of the error message, such as ``taylor scores need``.

        Raises:
            RequestError: when the user gave none, or other inputs.
        """
        found = self.given(who)
        if is_inputs(found):
            raise RequestError(f"{who} text, and '{found.name}' holds inputs of another kind", "leave the pass out")
        return found

    def given(self, who: str) -> Calibration:
        """The calibration data of either kind.

        Args:
            who: subject and verb of the error message, as above.

        Raises:
            RequestError: when the user gave none.
        """
        if self.calibration is None:
            raise RequestError(
                f"{who} calibration text",
                "give --calib FILE with text like the model's later input; or put generate before the first pass, so "
                "that a language model writes the text; for another model give a data set of its inputs, for a module "
                "in Python calib=batches or its loss",
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

    @property
    def scratch(self) -> Callable[[], Path] | None:
        """Gives a directory for large files that are not wanted after the run; None for the system's."""

    @property
    def why_not_plain(self) -> Callable[[Plan, Graph], str] | None:
        """Why no plain configuration describes the model after a plan, with the rewritten graph; "" where one does.
        None where any result will do."""

    @property
    def storage(self) -> Storage | None:
        """What the model takes where it is used; None where its graph says all that is known of it."""

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer of transformers that belongs to the model; None where there is none to cut with it.

        Raises:
            RequestError: the model should have one.
        """

    def tokens_kept(self, cut: TokenCut) -> None:
        """Told that tokens go: what holds ids besides the model is renumbered.

        Raises:
            RequestError: data that later passes read cannot be.
        """

    @property
    def halfway(self) -> Halfway | None:
        """Where the pass that runs may keep how far it got; None for nowhere."""

    def retrace(self, model: torch.nn.Module) -> tuple[Graph, Mapping[str, Any]]:
        """Trace the model anew, after a change of more than widths: the graph, and the example it was traced with."""


class NoHost:
    """Offers nothing: for a model without weights, and wherever passes are run by hand."""

    weights: Weights | None = None
    execute: Callable[[Graph, torch.nn.Module], tuple[torch.Tensor, torch.Tensor]] | None = None
    rebuild: Callable[[Graph, Mapping[str, torch.Tensor], str], torch.nn.Module] | None = None
    scratch: Callable[[], Path] | None = None
    why_not_plain: Callable[[Plan, Graph], str] | None = None
    storage: Storage | None = None
    halfway: Halfway | None = None
    tokenizer: Any | None = None

    def tokens_kept(self, cut: TokenCut) -> None:
        """Has nothing that holds ids."""

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
        changed: attribute -> :attr:`Ledger.changed` when that copy was made.
        whole: as in :class:`Subject`.
    """

    graph: Graph | None = field(default=None, metadata=_REPEATED)
    model: torch.nn.Module | None = field(default=None, metadata=_REPEATED)
    same_layers: torch.nn.Module | None = field(default=None, metadata=_REPEATED)
    residences: dict[str, Residence] = field(default_factory=dict, metadata=_REPEATED)
    changed: dict[str, frozenset[str]] = field(default_factory=dict, metadata=_STORED)
    whole: dict[str, str] = field(default_factory=dict, metadata=_REPEATED)

    def keep(self, name: Literal["model", "same_layers"], runner: BlockRunner, changed: frozenset[str]) -> None:
        """Look back at this model from now on; ``changed`` as in the ledger."""
        setattr(self, name, runner.model)
        self.changed[name] = changed
        self.whole = runner.whole
        self.residences.pop(name, None)
        if runner.residence is not None:
            self.residences[name] = runner.residence

    def runner(self, name: Literal["model", "same_layers"]) -> BlockRunner | None:
        """Runs one of the two models; None when there is none."""
        model: torch.nn.Module | None = getattr(self, name)
        return None if model is None else BlockRunner(model, self.residences.get(name), self.whole)


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
        decisions: what passes did to the structure of the model, in order.
        changed: names of the tensors whose values passes may have changed; the others are those of the source, sliced.
        finished: the passes that have run. This and ``changed`` are kept up only in a run that can be resumed.
    """

    plan: Plan | None = field(default=None, metadata=_REPEATED)
    repairs: Repairs = field(default_factory=Repairs, metadata=_REPEATED)
    consumers: list[tuple[str, int]] = field(default_factory=list, metadata=_REPEATED)
    renamed: dict[str, str] = field(default_factory=dict, metadata=_REPEATED)
    written: list[tuple[int, torch.Tensor]] = field(default_factory=list, metadata=_STORED)
    scores: ScoreCache | None = field(default=None, metadata=_STORED)
    report: dict[str, Any] = field(default_factory=dict, metadata=_STORED)
    decisions: list[Decision] = field(default_factory=list, metadata=_REPEATED)
    changed: frozenset[str] = field(default=frozenset(), metadata=_STORED)
    finished: list[Finished] = field(default_factory=list, metadata=_STORED)


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

    subject: Subject
    data: Data = field(default_factory=Data, metadata=_ANEW)
    host: Host = field(default_factory=NoHost, metadata=_ANEW)
    before: Before = field(default_factory=Before)
    ledger: Ledger = field(default_factory=Ledger)
    ranks: Ranks = field(default_factory=Ranks, metadata=_ANEW)
