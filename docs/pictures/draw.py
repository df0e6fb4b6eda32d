"""Draw the coupling graph of one Llama layer and of one residual block: ``python docs/pictures/draw.py``.

What is drawn is a real trace: shapes, axis terms, groups, operators and the positions of a unit come from it. Only the
order of the weights on the page, and what they are called there, is said here.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune.api.tracing import Trace
from fxprune.ir.axes import Axis, ConcatAxis, ProductAxis
from fxprune.ir.groups import Group, Occurrence
from fxprune.passes.couple.coupling import couple
from fxprune.tracer import module as modules

HERE = Path(__file__).parent
GREY = "#8a8f98"
TOP, GAP, BAR, STRIP, LABEL, HUB = 150, 36, 7, 11, 92, 46
"""Pixels: where weights begin, between two weights, of an edge, of a vector, of a label, of the box of a group."""


LEGEND = (
    "A rectangle is a weight, to scale; data flows from left to right. Its rows make outputs (left edge), its columns "
    "read inputs (top edge). An edge has the colour of its group; grey edges reach an input or an output of the model "
    "and are frozen. Dark: one unit of each group. To remove it is to slice all of its dark rows and columns at once. "
    "What is thinner than a line is drawn as one."
)


@dataclass(frozen=True)
class Shown:
    """Tensors that are drawn as one: a matrix, or the vectors of a normalisation side by side.

    Attributes:
        label: what it is called in the picture.
        tensors: their names in the trace.
        note: what the factors of its longer axis are.
    """

    label: str
    tensors: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Hub:
    """A group in the picture.

    Attributes:
        group: its name in the trace.
        says: what its units are.
        color: of the edges that hold it.
        unit: the unit whose positions are dark.
        above: whether its box is above the weights.
        first, last: indices of the items that its box spans.
    """

    group: str
    says: str
    color: str
    unit: int
    above: bool
    first: int
    last: int


@dataclass(frozen=True)
class Picture:
    """What is drawn: a trace, the weights from left to right, the groups, and the pixels of one unit.

    Attributes:
        within: the module path whose operators are named; every other operator is left out.
    """

    title: str
    trace: Trace
    items: tuple[Shown, ...]
    hubs: tuple[Hub, ...]
    scale: float
    within: str


@dataclass
class Box:
    """Where an item stands, in pixels."""

    x: float
    width: float
    height: float
    slot: float
    """Its width together with its label."""


def picture(drawn: Picture) -> str:
    """The picture as SVG text."""
    groups = {group.name: group for group in drawn.trace.groups}
    boxes = _places(drawn)
    width = boxes[-1].x + boxes[-1].slot + GAP + 30
    places = [62 if hub.above else _under(boxes[hub.first : hub.last + 1]) for hub in drawn.hubs]
    height = max(places) + HUB + 30
    body = [f'<text x="24" y="32" class="title">{escape(drawn.title)}</text>']
    for hub, y in zip(drawn.hubs, places, strict=True):
        body += _hub(drawn, hub, groups[hub.group], boxes, y)
        body += _lines(drawn, hub, groups[hub.group], boxes, y)
    for item, box in zip(drawn.items, boxes, strict=True):
        body += _item(drawn, item, box, groups)
    legend = textwrap.wrap(LEGEND, int(width / 6.3))
    body += [_text(24, height + 17 * number, line, "small") for number, line in enumerate(legend)]
    return _page(width, height + 17 * len(legend) + 8, body)


def _under(boxes: Sequence[Box]) -> float:
    """Where the box of a group begins that stands below these weights and their labels."""
    return TOP + max(box.height for box in boxes) + 68


def _page(width: float, height: float, body: Sequence[str]) -> str:
    style = (
        "text{font-family:'DejaVu Sans',Verdana,sans-serif;font-size:12px;fill:#22262c}"
        ".title{font-size:17px;font-weight:bold}.small{font-size:10.5px;fill:#555b64}.name{font-weight:bold}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}"
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<style>{style}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#ffffff"/>',
        *body,
        "</svg>",
        "",
    ])  # fmt: skip


def _shape(drawn: Picture, tensor: str) -> tuple[int, ...]:
    found = [p.value for p in drawn.trace.graph.parameters if tensor in (p.name, *p.aliases)]
    return tuple(found[0].shape)


def _places(drawn: Picture) -> list[Box]:
    boxes, x = [], 40.0
    for item in drawn.items:
        shape = _shape(drawn, item.tensors[0])
        wide = shape[1] * drawn.scale if len(shape) > 1 else len(item.tensors) * (STRIP + 3) - 3
        boxes.append(Box(x, max(wide, STRIP), shape[0] * drawn.scale, max(wide, LABEL) if len(shape) > 1 else wide))
        x += boxes[-1].slot + GAP
    return boxes


def _member(
    groups: Mapping[str, Group], tensor: str, dim: int, hubs: Sequence[Hub]
) -> tuple[Hub | None, Occurrence | None]:
    """The drawn group that a dimension of a tensor belongs to, and how."""
    for hub in hubs:
        for member in groups[hub.group].members:
            if (member.tensor, member.dim) == (tensor, dim):
                return hub, member
    return None, None


def _item(drawn: Picture, item: Shown, box: Box, groups: Mapping[str, Group]) -> Iterator[str]:
    """A matrix with its two coloured edges, or vectors with one each; dark where one unit lies."""
    shape = _shape(drawn, item.tensors[0])
    matrix = len(shape) > 1
    for number, tensor in enumerate(item.tensors):
        x = box.x if matrix else box.x + number * (STRIP + 3)
        wide = box.width if matrix else STRIP
        yield _rect((x, TOP, wide, box.height), "#eef0f3", stroke="#b8bec7")
        for dim in range(min(len(shape), 2)):
            hub, member = _member(groups, tensor, dim, drawn.hubs)
            color = hub.color if hub else GREY
            if hub and member:
                for start, end in _runs(groups[hub.group].unit_map(member.axis), hub.unit):
                    at, size = start * drawn.scale, max((end - start) * drawn.scale, 2.5)
                    place = (x, TOP + at, wide, size) if dim == 0 else (x + at, TOP, size, box.height)
                    yield _rect(place, color, opacity=0.75)
            edge = (x - BAR, TOP, BAR, box.height) if dim == 0 else (x, TOP - BAR, wide, BAR)
            yield _rect(edge if matrix else (x, TOP, wide, box.height), color, opacity=1 if matrix else 0.35)
    yield from _labels(drawn, item, box, shape)


def _labels(drawn: Picture, item: Shown, box: Box, shape: tuple[int, ...]) -> Iterator[str]:
    y = TOP + box.height + 15
    kernel = " × ".join(map(str, shape[2:]))
    yield _text(box.x - BAR, y, item.label + (f", {kernel}" if kernel else ""), "name")
    if len(shape) > 1:
        rows, columns = (_term(drawn, item.tensors[0], dim) for dim in range(2))
        said = [f"rows {rows}", f"columns {columns}"]
        said.insert(1 if "×" in rows else 2, item.note)
        yield from (_text(box.x - BAR, y + 14 * n, line, "small") for n, line in enumerate(filter(None, said), start=1))


def _term(drawn: Picture, tensor: str, dim: int) -> str:
    """The axis term of a dimension with the extents of its atoms."""
    value = next(p.value for p in drawn.trace.graph.parameters if tensor in (p.name, *p.aliases))
    said = _said(drawn.trace.coupling.axis(value, dim))
    return said[1:-1] if said.startswith("(") else said


def _said(axis: Axis) -> str:
    if isinstance(axis, ProductAxis):
        return "(" + " × ".join(map(_said, axis.factors)) + ")"
    if isinstance(axis, ConcatAxis):
        return "(" + " + ".join(map(_said, axis.parts)) + ")"
    return str(axis.size)


def _runs(units: Any, unit: int) -> Iterator[tuple[int, int]]:
    """The stretches of positions that hold a unit."""
    at = np.flatnonzero(np.asarray(units) == unit)
    for _, run in groupby(enumerate(at), key=lambda pair: pair[1] - pair[0]):
        inside = [int(position) for _, position in run]
        yield inside[0], inside[-1] + 1


def _hub(drawn: Picture, hub: Hub, group: Group, boxes: Sequence[Box], y: float) -> Iterator[str]:
    """The box of a group: what its units are, and the operators that couple them here."""
    left, right = boxes[hub.first].x - BAR - 12, boxes[hub.last].x + boxes[hub.last].slot + GAP / 2
    names = list(dict.fromkeys(_operators(drawn.trace, group, drawn.within)))
    while len(", ".join(names)) * 6.3 > right - left - 90:
        names = [*names[: len(names) // 2 - 1], "…", *names[len(names) // 2 + 1 :]]
        names = [name for name, _ in groupby(names)]
    yield _rect((left, y, right - left, HUB), hub.color, opacity=0.16, stroke=hub.color, rx=8)
    drawn_here = {tensor for item in drawn.items for tensor in item.tensors}
    others = len(group.tensors - drawn_here)
    more = f", {others} of them not drawn" if others else ""
    yield _text(left + 10, y + 18, f"{hub.says}: {group.size} units in {len(group.tensors)} tensors{more}", "name")
    yield _text(left + 10, y + 35, "coupled by " + ", ".join(names), "small")


def _operators(trace: Trace, group: Group, within: str) -> Iterator[str]:
    """The operators that equate occurrences of a group, in the order of the graph."""
    ops = {id(op) for (a, _, op) in trace.coupling.network.edges(data="op") if a[2] == group.atom}
    for op in trace.graph.ops:
        if id(op) in ops and re.match(within, op.source.module):
            yield op.packet.removeprefix("aten.")


def _lines(drawn: Picture, hub: Hub, group: Group, boxes: Sequence[Box], y: float) -> Iterator[str]:
    """From the box of a group to every edge that holds it."""
    for item, box in zip(drawn.items, boxes, strict=True):
        shape = _shape(drawn, item.tensors[0])
        for dim in range(min(len(shape), 2)):
            if _member({group.name: group}, item.tensors[0], dim, [hub])[0]:
                yield _line(_way(hub.above, dim, box, y, matrix=len(shape) > 1), hub.color)


def _way(above: bool, dim: int, box: Box, y: float, *, matrix: bool) -> list[tuple[float, float]]:
    """The corners of the line: from an edge straight up or down, from the other side around the weight."""
    middle, under, bottom = box.x + box.width / 2, TOP + box.height, y + HUB
    left = box.x - BAR / 2
    if not matrix:
        return [(middle, TOP), (middle, bottom)] if above else [(middle, under), (middle, y)]
    if dim == 0:
        return [(left, TOP), (left, bottom)] if above else [(left, TOP), (left - 12, TOP), (left - 12, y)]
    if above:
        return [(middle, TOP - BAR), (middle, bottom)]
    right = box.x + box.width
    around = box.x + box.slot + 14
    return [(right, TOP - BAR / 2), (around, TOP - BAR / 2), (around, y)]


def _rect(
    place: tuple[float, float, float, float], fill: str, *, opacity: float = 1, stroke: str = "", rx: float = 0
) -> str:
    """A rectangle at ``place``: left, top, width, height."""
    x, y, w, h = place
    line = f' stroke="{stroke}"' if stroke else ""
    round_ = f' rx="{rx}"' if rx else ""
    at = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"'
    return f'<rect {at} fill="{fill}" fill-opacity="{opacity}"{line}{round_}/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _line(corners: Sequence[tuple[float, float]], color: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return f'<polyline points="{points}" class="line" stroke="{color}"/>'


def llama_layer() -> Picture:
    """One layer of the built-in Llama."""
    layer = "model.layers.0"
    notes = {
        "q_proj": "kv × query × rotary",
        "k_proj": "kv × rotary",
        "v_proj": "kv × size",
        "o_proj": "kv × query × size",
    }
    items = [
        Shown("norm", (f"{layer}.input_layernorm.weight",)),
        *(Shown(name, (f"{layer}.self_attn.{name}.weight",), note) for name, note in notes.items()),
        Shown("norm", (f"{layer}.post_attention_layernorm.weight",)),
        *(Shown(name, (f"{layer}.mlp.{name}.weight",)) for name in ("gate_proj", "up_proj", "down_proj")),
    ]
    hubs = (
        Hub("model:channels", "residual stream", "#2f6fde", 40, True, 0, 8),
        Hub(f"{layer}.self_attn:kv_heads", "kv heads", "#d9730d", 1, False, 1, 4),
        Hub(f"{layer}.mlp:width", "inner width of the MLP", "#1f9d55", 100, False, 6, 8),
    )
    title = "One layer of a Llama: nine weights, three groups"
    return Picture(title, fxprune.trace("demo"), tuple(items), hubs, 0.5, layer)


class Residual(nn.Module):
    """A stem, one residual block and a classifier."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.conv1, self.bn1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.conv2, self.bn2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores ``[samples, 10]`` for images ``[samples, 3, height, width]``."""
        x = self.stem(x)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def residual_block() -> Picture:
    """A residual block of convolutions."""
    net = Residual().eval()
    traced = modules.trace_module(net, modules.bind(net, (torch.zeros(2, 3, 16, 16),)), batch=True)
    vectors = ("weight", "bias", "running_mean", "running_var")
    items = (
        Shown("stem", ("stem.weight",)),
        Shown("conv1", ("conv1.weight",)),
        Shown("bn1", tuple(f"bn1.{name}" for name in vectors)),
        Shown("conv2", ("conv2.weight",)),
        Shown("bn2", tuple(f"bn2.{name}" for name in vectors)),
        Shown("fc", ("fc.weight",)),
    )
    coupling = couple(traced.graph)
    named = {
        member.tensor: group.name for group in coupling.groups.values() for member in group.members if member.dim == 0
    }
    hubs = (
        Hub(named["conv2.weight"], "channels of the shortcut", "#2f6fde", 9, True, 0, 5),
        Hub(named["conv1.weight"], "inner width of the block", "#1f9d55", 30, False, 1, 3),
    )
    trace = Trace("residual", traced, coupling, sum(p.numel() for p in net.parameters()))
    return Picture("A residual block of a CNN: two groups", trace, items, hubs, 3.4, "")


PICTURES = {"llama-layer.svg": llama_layer, "residual-block.svg": residual_block}

if __name__ == "__main__":
    for name, made in PICTURES.items():
        (HERE / name).write_text(picture(made()), encoding="utf-8")
