"""The base class of passes, and the state that a pipeline hands from pass to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..ir.errors import RequestError
from ..ir.repairs import Repairs

if TYPE_CHECKING:
    import torch

    from ..ir import Indices, Plan
    from ..ir.graph import Graph
    from .couple import Coupling
    from .saved import Saved


def option(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    """A dataclass field of a pass that is an option in pipeline text.

    Args:
        default: the value when the pipeline text does not give the option.
        help: one line for ``fxprune passes``.
        choices: the allowed values; None when they cannot be listed.
    """
    return field(default=default, metadata={"help": help, "choices": tuple(choices) if choices else None})


class Corpus(Protocol):
    """Tokenised text, for calibration and recovery training."""

    @property
    def name(self) -> str:
        """The name that the user gave, such as a path."""

    def windows(self, length: int, count: int | None = None, seed: int | None = None) -> torch.Tensor:
        """Token ids, int64 ``[count, length]``, without overlap and padding.

        Args:
            length: tokens in a window.
            count: number of windows; all when None.
            seed: None takes the first windows in order; an integer draws them at random.

        Raises:
            RequestError: when the text holds fewer than ``count`` windows.
        """


class Weights(Protocol):
    """Reads parameters one at a time, by their first names."""

    def __call__(self, names: Iterable[str]) -> Iterable[tuple[str, torch.Tensor]]:
        """Name and value of each named parameter, in the order that is fastest to read."""


@dataclass
class State:
    """What a pipeline works on. Passes read it and change it.

    Attributes:
        graph: the traced graph; after a pruning pass, the rewritten one.
        model: the module that the graph was traced from. Its parameters are on the meta device when only a config was
            given. A pruning pass shrinks it in place.
        coupling: the dependency analysis of ``graph``; None after a rewrite, until it is computed again.
        plan: what the pruning passes removed so far.
        calibration: text for scores; None when the user gave none.
        losses: for a module that is not a language model: scores are computed from these instead of text. Each takes
            the module and returns a scalar.
        data: text for recovery training; None when the user gave none.
        example: the keyword arguments of ``forward`` that the graph was traced with.
        repairs: the module attributes that pruning passes changed so far.
        outputs: keys of the model's outputs that count; all outputs when empty.
        execute: runs a graph with the weights of the model; returns its output and the model's own output for the same
            inputs. None when there are no weights to run.
        rebuild: makes a module from a rewritten graph, tensors by name and a reason, for a model whose own forward
            does not work at the smaller widths. None when only the model itself can be used.
        weights: for a model without values in memory: reads the named parameters from the checkpoint one at a time,
            sliced as ``plan`` says, in the dtype of the file.
        recorded: the slices of a plan that another run wrote, for the pass ``replay``.
        original: a copy of the model before the first pruning pass, when a later pass compares with it.
        dense: a copy of the model before the first pass that removed anything, when a later pass learns from it; may be
            the same object as ``original``.
        consumers: (tensor, dimension) of every weight that reads units which were cut.
        retrace: traces the model again, after a pass that changes more than widths.
        renamed: for tensors that were renamed: present name -> name in the source.
        whole: the graph before any pass; budgets that are shares refer to it.
        saved: scores from a file, or the place to store those of this run; None when neither was asked for.
        report: what each pass records in the artifact, by pass name.
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


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One step of a pipeline. Its dataclass fields are its options; pipeline text refers to it by ``name``.

    Attributes:
        name: as written in pipeline text.
        kind: ``score``, ``recover`` or ``analysis``; for presentation.
        needs: analyses that must be valid before it runs, by name (``couple``).
        invalidates: analyses that are no longer valid after it ran.
        needs_weights: whether it reads parameter values; a pass that does not can run with a config alone.
        needs_original: whether it compares with the model before pruning.
        streams: whether it can read one tensor at a time from ``State.weights``, so that it also runs on models that do
            not fit in memory.
        takes_loss: whether its scores come from the gradients of a loss; for a module that is not a language model the
            user gives that loss.
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
        """Whether, with these options, it learns from the dense model."""
        return False

    def check(self) -> None:
        """Check the option values before anything runs.

        Raises:
            RequestError: with the option, its value, and the allowed values.
        """

    def run(self, state: State) -> None:
        """Run the pass: read and change ``state``."""
        raise NotImplementedError
