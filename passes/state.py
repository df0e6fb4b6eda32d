"""What passes hand to one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir.errors import RequestError
from ..ir.repairs import Repairs

if TYPE_CHECKING:
    import torch

    from ..ir import Indices, Plan
    from ..ir.graph import Graph
    from .couple import Coupling
    from .data import Corpus, Weights
    from .saved import Saved


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
