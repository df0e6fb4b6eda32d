"""``trace``: find the graph and the coupled groups of a model, without reading weights."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import FxpruneError, RequestError
from ..ir.graph import Graph, Op, Value
from ..ir.groups import Group
from ..ir.text import print_graph
from ..passes.couple.coupling import VALUES, Coupling, couple
from ..passes.couple.explain import why as shortest_paths
from ..tracer.export import Traced
from ..tracer.model import build_meta, load_config
from .model_call import ModelCall
from .places import check_apart
from .progress import Progress, silent
from .request_checks import Model, check_example, check_paths
from .shown import InOneLine
from .sources import open_source


@dataclass(frozen=True)
class Hop:
    """One step of the answer to "why do these shrink together?".

    Attributes:
        place: a dimension of a tensor, as ``name.dim``; or the integers in a tensor, as ``name values``.
        axis: its axis term.
        operator: the operator that couples it to the place before; None for the first place.
        module, source, code: the module, the source line and the code of that operator.
    """

    place: str
    axis: str
    operator: str | None
    module: str
    source: str
    code: str

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, repr=False)
class Trace(InOneLine):
    """A traced model and its dependency analysis.

    Attributes:
        name: the model as the user gave it.
        traced: the graph, with its constants and inputs.
        coupling: its axes and groups.
        parameters: number of parameters; a tied one is counted once.
        origin: the directory that the model was read from, if it was read from one.
    """

    name: str
    traced: Traced
    coupling: Coupling
    parameters: int
    origin: Path | None = None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return f"{self.name}, {self.parameters:,} parameters in {len(self.coupling.groups)} coupled groups"

    @property
    def graph(self) -> Graph:
        return self.traced.graph

    @property
    def groups(self) -> list[Group]:
        """The coupled groups, in the order of the parameters."""
        return list(self.coupling.groups.values())

    @property
    def operators(self) -> dict[str, int]:
        """Operator -> number of times that it occurs."""
        return dict(Counter(op.target for op in self.graph.ops).most_common())

    def text(self) -> str:
        """The graph and its groups in the text form."""
        return print_graph(self.graph, [group_line(group) for group in self.groups])

    def why(self, first: str, second: str) -> dict[str, list[Hop]]:
        """Group -> shortest chain of operators that makes two weights shrink together, for every group with both.

        Raises:
            RequestError: a name is not a parameter, or no group contains both.
        """
        names = [name for p in self.graph.parameters for name in (p.name, *p.aliases)]
        for name in (first, second):
            if name not in names:
                close = difflib.get_close_matches(name, names, n=3)
                hint = f"did you mean {' or '.join(close)}?" if close else f"parameters look like {names[0]}"
                raise RequestError(f"{self.name!r} has no parameter {name!r}", hint)
        paths = shortest_paths(self.coupling, first, second)
        if not paths:
            raise RequestError(
                f"{first!r} and {second!r} do not shrink together: no group contains both",
                "`fxprune trace MODEL` lists the tensors of each group",
            )
        return {group: [self._hop(*place) for place in path] for group, path in paths.items()}

    def _hop(self, value: Value, dim: int, op: Op | None) -> Hop:
        held = {p.value: p.name for p in self.graph.parameters}
        return Hop(
            place=_place(held.get(value, f"%{value.name}"), dim),
            axis=str(self.coupling.axis(value, dim)),
            operator=op.target if op else None,
            module=op.source.module if op else "",
            source=f"{op.source.file}:{op.source.line}" if op and op.source.file else "",
            code=op.source.code if op else "",
        )

    def write_dot(self, file: str | Path) -> None:
        """Write the coupling graph for Graphviz.

        Raises:
            FxpruneError: the file cannot be written.
        """
        check_paths(file=file)
        check_apart(reads={"MODEL": self.origin}, files={"--dot": file})
        try:
            Path(file).write_text(self.dot(), encoding="utf-8")
        except OSError as error:
            raise FxpruneError(
                f"cannot write {str(file)!r}: {error.strerror}", "name a file in a directory that exists"
            ) from error

    def dot(self) -> str:
        """The coupling graph for Graphviz: dimensions of tensors are nodes, operators edges, groups clusters."""
        held = {p.value: p.name for p in self.graph.parameters}
        network = self.coupling.network
        numbers = {node: number for number, node in enumerate(network)}
        lines = ["graph coupling {", "  node [shape=box, fontsize=10];"]
        for group in self.groups:
            lines.append(f"  subgraph {_quote('cluster ' + group.name)} {{ label={_quote(_title(group))};")
            for node in network:
                value, dim, atom = node
                if atom == group.atom:
                    style = " style=filled" if value in held else ""
                    label = _quote(_place(held.get(value, value.name), dim))
                    lines.append(f"    n{numbers[node]} [label={label}{style}];")
            lines.append("  }")
        lines += [
            f"  n{numbers[a]} -- n{numbers[b]} [label={_quote(op.target)}];" for a, b, op in network.edges(data="op")
        ]
        return "\n".join([*lines, "}", ""])

    def to_json(self, *, with_text: bool = False) -> dict[str, Any]:
        """As JSON data."""
        data: dict[str, Any] = {
            "model": self.name,
            "parameters": self.parameters,
            "operators": self.operators,
            "unknown_operators": sorted({op.target for op in self.coupling.unknown}),
            "groups": [_group_json(group) for group in self.groups],
        }
        return data | ({"text": self.text()} if with_text else {})


def trace(
    model: Model,
    *,
    example: str | None = None,
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    progress: Progress = silent,
) -> Trace:
    """Trace a model from its config alone and find its coupled groups.

    Args:
        model: a Hugging Face model directory, a Hub id, ``demo``, or a loaded model of transformers, of which only the
            configuration is read.
        example: what a model that is no causal language model is called with, such as
            ``pixel_values=float32[2,3,224,224]``; made from its configuration when None.
        trust_remote_code: whether the model's own code may run.
        merge_adapter: as in :func:`fxprune.apply`; what is traced does not differ.
        progress: told what is going on.

    Raises:
        RequestError: the model cannot be found, has an adapter, or is none that can be traced.
        FxpruneError: ``torch.export`` fails on it.
    """
    check_example(example)
    allowed = {"trust_remote_code": trust_remote_code, "merge_adapter": merge_adapter}
    with open_source(model, weights=False, progress=progress, **allowed) as source:
        progress(f"building {source.name} without weights")
        config = load_config(source)
        model_call = ModelCall(config, example)
        module = build_meta(config, consent=source.consent)
    progress(f"tracing {source.name}")
    traced = model_call.trace(module)
    progress("finding groups")
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Trace(source.name, traced, couple(traced.graph), parameters, source.origin)


def _place(name: str, dim: int) -> str:
    return f"{name} values" if dim == VALUES else f"{name}.{dim}"


def group_line(group: Group) -> str:
    """One group in the text form of a graph."""
    frozen = f" frozen {_quote(group.frozen)}" if group.frozen else ""
    under = f" under {group.parent.name}" if group.parent else ""
    members = " ".join(f"{member.tensor}.{member.dim}" for member in group.members)
    return f"group {group.name} size {group.size}{under}{frozen}: {members}"


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "kind": group.kind.value,
        "size": group.size,
        "parent": group.parent.name if group.parent else None,
        "layer": group.layer,
        "frozen": group.frozen,
        "normalised": group.normalised,
        "ordered": group.ordered,
        "members": [
            {"tensor": m.tensor, "dim": m.dim, "axis": str(m.axis), "role": m.role.value} for m in group.members
        ],
    }


def _title(group: Group) -> str:
    return f"{group.name} ({group.size})" + (" frozen" if group.frozen else "")


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
