"""Tokens taken out of a state: of its model, its configuration, its graph, and of the copies to look back at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from ...ir import FxpruneError, Indices, Plan
from ...ir.groups import Group
from ...ir.repairs import Repairs
from ...runtime.model.embeddings import input_embeddings
from ...runtime.streaming.block_runner import BlockRunner
from ...runtime.tensors import slice_tensors
from ...runtime.vocabulary.configured import holds_ids, needed_ids, renumber_configs
from ...runtime.vocabulary.kept import Renumbering
from ..couple.coupling import Coupling
from ..couple.tokens import compared_tokens, couple_tokens, token_places
from ..data import TokenCut
from ..state import State
from .attributes import put
from .cut import carry_out

TO_LOOK_BACK_AT: tuple[Literal["model", "same_layers"], ...] = ("model", "same_layers")
"""The copies in :class:`~fxprune.passes.state.Before`."""

PADDING_INDEX = "padding_idx"
"""What ``torch.nn.Embedding``, and modules that make one, call the id of the padding token."""


@dataclass(frozen=True)
class TokensKept:
    """The tokens that stayed.

    Attributes:
        kept: their ids, ascending.
        count: how many rows there were.
    """

    name: ClassVar[str] = "tokens"

    kept: Indices
    count: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data with an array."""
        return {"kept": self.kept, "count": self.count}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokensKept:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for other data.
        """
        kept, count = data["kept"], data["count"]
        if not isinstance(kept, np.ndarray) or (kept.dtype, kept.ndim) != (np.dtype(np.int64), 1):
            raise ValueError("the tokens to keep are no int64 vector")
        if (
            type(count) is not int
            or not len(kept)
            or (np.diff(kept) <= 0).any()
            or not 0 <= kept[0] <= kept[-1] < count
        ):
            raise ValueError(f"the tokens to keep are not among {count}, in ascending order")
        return cls(np.array(kept), count)

    def redo(self, state: State) -> None:
        """Take the other tokens out.

        Raises:
            FxpruneError: the model has another number of tokens, or they cannot be removed.
        """
        coupling, group = couple_tokens(state.subject.graph, state.subject.model)
        if group.units != self.count:
            raise FxpruneError(f"the model has {group.units} tokens, not {self.count}")
        keep_tokens(state, coupling, group, self.kept)


def configured_tokens(model: nn.Module) -> set[int]:
    """The ids that the configurations of a model and its modules name."""
    found = {number for config in _configs(model) for number in needed_ids(config.to_dict())}
    found |= {number for module in model.modules() for _, number in _own_ids(module) if number >= 0}
    return found.union(*(range(number + 1) for number in _counted_from(model)))


def _counted_from(model: nn.Module) -> Iterator[int]:
    """Ids of padding tokens that a model computes with beside looking them up: it may count positions from there. Such
    a token keeps its id, and so all before it stay."""
    table: Any = getattr(input_embeddings(model), "weight", None)
    for module in model.modules():
        tokens = isinstance(module, nn.Embedding) and table is not None and len(module.weight) == len(table)
        number = vars(module).get(PADDING_INDEX)
        if type(number) is int and number >= 0 and not tokens:
            yield number


def keep_tokens(state: State, coupling: Coupling, group: Group, kept: Indices) -> None:
    """Take all other tokens out of the model, of the copies of it, and of what its host has by ids.

    Args:
        state: what is changed.
        coupling, group: from :func:`~fxprune.passes.couple.tokens.couple_tokens`.
        kept: the ids of those that stay, ascending.

    Raises:
        FxpruneError: the model does not hold with fewer tokens; its configuration is as before then.
    """
    renumbering, model, ledger = Renumbering(kept, group.units), state.subject.model, state.ledger
    take_back = _renumber(model, renumbering)
    places, compared = token_places(state.subject.graph, model), compared_tokens(coupling)
    state.host.tokens_kept(TokenCut(group, renumbering, places.arguments, frozenset(compared)))
    state.subject.example = {
        name: value % len(kept) if name in places.arguments and isinstance(value, torch.Tensor) else value
        for name, value in state.subject.example.items()
    }  # dry runs may look these up; which ones they are does not matter
    earlier, ledger.repairs = ledger.repairs, Repairs()
    try:
        plan = carry_out(state, coupling, {group.name: kept})
    except Exception:
        take_back()
        ledger.repairs = earlier
        raise
    repairs, ledger.repairs = ledger.repairs, earlier.then(ledger.repairs)
    renumber_configs(_configs(model), lambda number: number, (group.units, len(kept)))
    copies = (state.before.runner(name) for name in TO_LOOK_BACK_AT)
    for runner in {id(copy.model): copy for copy in copies if copy is not None}.values():
        _cut_copy(runner, renumbering, plan, repairs)
    ledger.decisions.append(TokensKept(np.asarray(kept, dtype=np.int64), group.units))


def _cut_copy(runner: BlockRunner, renumbering: Renumbering, plan: Plan, repairs: Repairs) -> None:
    """Do the same to a model to look back at, which has the same tensors."""
    slice_tensors(runner.model, plan)
    if runner.residence is not None:
        runner.residence.store.cut(plan)
    put(runner.model, repairs)
    _renumber(runner.model, renumbering, count=True)


def _renumber(model: nn.Module, renumbering: Renumbering, *, count: bool = False) -> Callable[[], None]:
    """Give a model the new ids, besides its weights; returns what takes that back."""
    counts = (renumbering.count, len(renumbering.kept)) if count else None
    configs = renumber_configs(_configs(model), renumbering.new, counts)
    before = [(module, name, number) for module in model.modules() for name, number in _own_ids(module)]
    for module, name, number in before:
        setattr(module, name, renumbering.new(number))

    def take_back() -> None:
        configs()
        for module, name, number in before:
            setattr(module, name, number)

    return take_back


def _configs(model: nn.Module) -> list[Any]:
    """The configurations that a model and its modules hold, each once."""
    held = [getattr(model, "generation_config", None), *(vars(module).get("config") for module in model.modules())]
    return list({id(config): config for config in held if hasattr(config, "to_dict")}.values())


def _own_ids(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The ids that a module holds by itself."""
    for name, value in vars(module).items():
        if type(value) is int and (name == PADDING_INDEX or holds_ids(name)):
            yield name, value
