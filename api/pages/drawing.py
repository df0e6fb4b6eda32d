"""Pictures: drawn by matplotlib, which only the extra ``report`` brings, to SVG or PNG, the same for the same data."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.placed_file import placed_file
from ...backends.seen import Seen
from ...ir.errors import RequestError
from ...ir.extras import require
from .written_file import claim_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]
"""Draws a picture, under the style of :func:`styled`."""

PICTURES = {".svg": b"<?xml", ".png": b"\x89PNG\r\n\x1a\n"}
"""Endings of pictures -> the bytes that such a file begins with."""

COLOURS = ("#3b82d0", "#d8703a", "#469e66", "#9a6fc4", "#c25a80", "#8f8f3c")
"""Of lines, in order; each has contrast enough on white and on near black."""

SHADES = ("#3b82d0", "#b06fc4", "#e0603a", "#c9a227")
"""Between which lines are coloured that have an order, such as layers."""

GREY = "#888888"
"""Of axes and what stands behind, on either background."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "fxprune",
    "text.parse_math": False,
}
"""Of every picture. Text in SVG stays text, which can be searched; names in it are no formulas."""

WITHOUT_DATES = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}

_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAMED = re.compile(r'(\bid="|url\(#|xlink:href="#)')


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises:
        RequestError: matplotlib is not there.
    """
    require("a picture", "matplotlib")


def claim_picture(file: str | Path, *, force: bool, reads: object = None) -> Seen:
    """Check that a picture can be drawn and written. To be called before any work.

    Raises:
        RequestError: matplotlib is not there, the ending is of no picture, or the file cannot be written.
    """
    ending = Path(file).suffix.lower()
    if ending not in PICTURES:
        raise RequestError(f"--plot {file}: pictures end in .svg or .png", "give a name such as curves.svg")
    require_matplotlib()
    begins, example = PICTURES[ending], f"curves{ending}"
    return claim_text(file, "--plot", begins=begins, force=force, reads=reads, example=example)


def styled() -> AbstractContextManager[None]:
    """Inside, figures are drawn in the style of the house."""
    import matplotlib

    style = {**STYLE, "axes.prop_cycle": matplotlib.rcsetup.cycler("color", COLOURS)}
    return matplotlib.rc_context(style)


def svg(draw: Draw, number: int) -> str:
    """A picture as an ``<svg>`` element, equal for equal data.

    Args:
        draw: draws it.
        number: of the picture in its page: what is named in it bears other names than in the others.
    """
    with styled():
        held = io.StringIO()
        draw().savefig(held, format="svg", metadata=WITHOUT_DATES["svg"], transparent=True)
    text = held.getvalue()
    return _NAMED.sub(rf"\g<1>p{number}-", _METADATA.sub("", text[text.index("<svg") :]))


def write_picture(file: str | Path, draw: Draw, seen: Seen) -> None:
    """Draw to a file that was claimed.

    Raises:
        FxpruneError: the file cannot be written.
    """
    path = Path(file).expanduser()
    ending = path.suffix.lower()[1:]
    with styled(), placed_file(path, seen) as beside:
        draw().savefig(beside, format=ending, metadata=WITHOUT_DATES[ending], dpi=150, facecolor="white")
