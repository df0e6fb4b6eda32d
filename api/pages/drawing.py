"""Pictures: drawn by matplotlib, which only the extra ``report`` brings, to SVG or PNG, the same for the same data."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.placed_file import placed_file
from ...backends.seen import Seen
from ...ir.errors import RequestError
from ..written_file import claim_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]
"""Draws a picture, under the style of :func:`styled`."""

BEGINS = {".svg": b"<?xml", ".png": b"\x89PNG\r\n\x1a\n"}
"""Endings of pictures -> the bytes that such a file begins with."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "fxprune",
}
"""Of every picture. Text in SVG stays text: it can be searched, and is small."""


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises:
        RequestError: matplotlib is not there.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError(
            "matplotlib is not there, which draws pictures", "install the extra: pip install 'fxprune[report]'"
        )


def claim_picture(file: str | Path, *, force: bool, reads: object = None) -> Seen:
    """Check that a picture can be drawn and written. To be called before any work.

    Raises:
        RequestError: matplotlib is not there, the ending is of no picture, or the file cannot be written.
    """
    ending = Path(file).suffix.lower()
    if ending not in BEGINS:
        raise RequestError(f"--plot {file}: pictures end in .svg or .png", "give a name such as curves.svg")
    require_matplotlib()
    return claim_text(
        file, "--plot", begins=BEGINS[ending], force=force, reads=reads, example=f"curves{ending}"
    )  # fmt: skip


def styled() -> AbstractContextManager[None]:
    """Inside, figures are drawn in the style of the house."""
    import matplotlib

    style = {**STYLE, "axes.prop_cycle": matplotlib.rcsetup.cycler("color", COLOURS)}
    return matplotlib.rc_context(style)  # type: ignore[no-any-return]


COLOURS = ("#2a6fbb", "#d1622b", "#3f8f5a", "#8a5fb0", "#b04a6f", "#7a7a2e")
"""Of lines, in order; each has contrast enough on white and on near black."""


def svg(draw: Draw) -> str:
    """A picture as an ``<svg>`` element: nothing before it, equal for equal data."""
    with styled():
        held = io.StringIO()
        draw().savefig(held, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = held.getvalue()
    return text[text.index("<svg") :]


def write_picture(file: str | Path, draw: Draw, seen: Seen) -> None:
    """Draw to a file that was claimed.

    Raises:
        FxpruneError: the file cannot be written.
    """
    path = Path(file).expanduser()
    ending = path.suffix.lower()[1:]
    metadata = {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
    with styled():
        figure = draw()
        with placed_file(path, seen) as beside:
            figure.savefig(beside, format=ending, metadata=metadata, dpi=150)
