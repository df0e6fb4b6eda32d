"""The vocabulary as a coupled group: the rows of embeddings and heads, whose units are tokens.

For all other passes this axis is frozen, since the integers in an input count along it and the model gives a score for
each of its positions. Tokens have names, which a tokenizer knows. Where it and the configuration are renumbered
together with the model, tokens can go like any other units: the scores of those that stay are as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from ...ir.axes import Atom, atoms_of
from ...ir.errors import RequestError
from ...ir.graph import Graph, Op, Value
from ...ir.groups import Group, Kind
from ...ir.rules import compared
from ...ir.rules.picking import PASSING
from ...runtime.model.embeddings import input_embeddings
from ...runtime.tensors import first_names
from .coupling import Coupling, couple
from .token_places import TokenPlaces

LOOK_UP = "aten.embedding"


def couple_tokens(graph: Graph, model: nn.Module) -> tuple[Coupling, Group]:
    """The coupling of a graph in which tokens may go, and their group.

    Args:
        graph: of the model.
        model: of transformers; only the names of its tensors are used.

    Raises:
        RequestError: the model reads no tokens; or it does something with the axis of its tokens in which one cannot go
            without changing what is computed for the others. The message says what and where.
    """
    places = token_places(graph, model)
    coupling = couple(graph, places)
    group = next((group for group in coupling.groups.values() if group.kind is Kind.TOKENS), None)
    why = "" if group is not None else "its rows are no axis of their own"
    if group is not None:
        unsaved = sorted(group.tensors - model.state_dict(keep_vars=True).keys())
        why = f"no checkpoint holds {unsaved[0]}" if unsaved else ""
        why = group.frozen or why or next(_obstacles(coupling, group, places), "")
    if group is None or why:
        raise RequestError(
            f"tokens of this {type(model).__name__} cannot be removed: {why}",
            "leave the pass vocabulary out for this model",
        )
    return coupling, group


def token_places(graph: Graph, model: nn.Module) -> TokenPlaces:
    """Where a graph reads and scores tokens.

    Raises:
        RequestError: it reads none.
    """
    named = {parameter.name: parameter.value for parameter in graph.parameters}
    first = first_names(model)
    own = _weight_of(model, input_embeddings(model), first)
    table = named.get(own)
    made = {value: op for op in graph.ops for value in op.made}
    looked = [(op, source) for op in graph.ops if (source := _looked_up(op, graph, made)) is not None]
    if table is None or not any(op.args[0] is table for op, _ in looked):
        raise RequestError(
            f"this {type(model).__name__} looks no token up that is its input, so none can be removed",
            "leave the pass vocabulary out for this model",
        )
    tables = [op.args[0] for op, _ in looked if isinstance(op.args[0], Value) and op.args[0].shape[0] == table.shape[0]]
    inputs = [source for op, source in looked if op.args[0] in tables]
    give = getattr(model, "get_output_embeddings", None)
    head = named.get(_weight_of(model, give() if give is not None else None, first))
    heads = () if head is None or head.shape[0] != table.shape[0] else (head,)
    return TokenPlaces(
        tuple(dict.fromkeys([table, *(value for value in tables if isinstance(value, Value))])),
        heads,
        tuple(dict.fromkeys(inputs)),
    )


def compared_tokens(coupling: Coupling) -> set[int]:
    """The tokens that the model itself looks for in its inputs."""
    found = {compared(op) for op in coupling.graph.ops if op.args and op.args[0] in coupling.positions}
    return {number for number in found if number is not None}


def _weight_of(model: nn.Module, module: object, first: dict[str, str]) -> str:
    """The first name of the weight of a module; "" where there is none."""
    path = next((path for path, held in model.named_modules() if held is module), None)
    return "" if path is None else first.get(f"{path}.weight", "")


def _looked_up(op: Op, graph: Graph, made: Mapping[Value, Op]) -> Value | None:
    """The input of whose integers a call looks rows up."""
    if op.packet != LOOK_UP or len(op.args) < 2 or not isinstance(op.args[1], Value):
        return None
    value: object = op.args[1]
    while isinstance(value, Value) and value in made and made[value].packet in PASSING:
        value = made[value].args[0]
    return value if isinstance(value, Value) and value in graph.inputs else None


def _obstacles(coupling: Coupling, group: Group, places: TokenPlaces) -> Iterator[str]:
    """Why a token cannot go without changing what is computed for others."""
    graph, size = coupling.graph, places.tables[0].shape[0]
    mixed = [member.tensor for member in group.members if not isinstance(member.axis, Atom)]
    if mixed:
        yield f"in {mixed[0]} they are one part of a dimension"
    if group.normalised:
        yield "the model normalises over its tokens, so that each score depends on all others"
    constants = (*graph.constants, *(value for op in graph.folded for value in op.made))
    for op in graph.ops:
        where = f"{op.target}{f' at {op.source}' if str(op.source) else ''}"
        for value in op.operands:
            if not _holds(coupling, group, value):
                continue
            if value in constants:
                yield f"{where} reads values for each of them that the model's code computes"
            if op.packet != LOOK_UP and not all(_holds(coupling, group, made) for made in op.made):
                yield f"{where} computes with all of them together"
    heads = {head for head in (*places.heads, *places.tables)}
    for value in graph.outputs:
        if value.shape and value.shape[-1] == size and not _holds(coupling, group, value) and heads:
            yield f"the model gives {size:,} values by %{value.name}, and nothing shows that these are its tokens"


def _holds(coupling: Coupling, group: Group, value: Value) -> bool:
    return any(atom.id == group.atom for axis in coupling.axes[value] for atom in atoms_of(axis))


__all__ = ["compared_tokens", "couple_tokens", "token_places"]
