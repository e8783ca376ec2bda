"""What all figures share: colours, style, panels, and how a figure becomes a PNG.

Drawn by matplotlib without a display. An arm, a dataset or a measurement has the same colour
everywhere. Figures have a white background, also on a dark page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike
from PIL import Image, ImageChops

ARM_COLOURS = {
    "real": "#5b6470",
    "augment": "#8f9aa6",
    "duplicate": "#b3823a",
    "generate": "#3d7ab8",
    "roundtrip": "#2f9587",
    "perturb": "#9467bd",
    "disturb": "#c8384f",
}
CYCLE = ("#3d7ab8", "#c8384f", "#2f9587", "#b3823a", "#9467bd", "#5b6470", "#d17bb0", "#7a8f2a")
MARKERS = "osD^vP"
INK, GREY, FAINT = "#1d2530", "#8a93a0", "#c9ced6"
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
WIDTH = 9.6  # inches
DPI = 160  # makes 1536 px for a column of about 1000 px
COLOUR_ERROR = 16  # of 255, in any channel of any pixel
Curve = Sequence[tuple[float, float]]
T = TypeVar("T")
styled = context(STYLE)  # rcParams act when text and legends are made, so on whole functions


@styled
def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure (no date in it)."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    drawn = Image.open(raw).convert("RGB")
    # With a palette it has a third of the bytes; but every colour must stay what the legend says.
    few = drawn.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    error = np.asarray(ImageChops.difference(drawn, few.convert("RGB"))).max()
    buffer = io.BytesIO()
    picture = few if error <= COLOUR_ERROR else drawn
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def arm_colour(name: str) -> str:
    return ARM_COLOURS.get(name, INK)


def colours(names: Sequence[str]) -> dict[str, str]:
    return {name: CYCLE[i % len(CYCLE)] for i, name in enumerate(sorted(set(names)))}


def panels(
    content: Mapping[str, T],
    height: float,
    columns: int | None = None,
    sharex: bool = False,
    sharey: bool = False,
    xlabel: str = "",
    ylabel: str = "",
    left: str = "",
) -> tuple[Figure, list[tuple[Axes, T]]]:
    """A panel per key of ``content``, its title, with the key's value.

    In rows of ``columns`` and ``height`` inches; default: three, but four as 2 x 2. ``left`` labels
    the first column only.
    """
    count = len(content)
    columns = max(1, min(columns or (2 if count == 4 else 3), count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).ravel()
    for i, (axes, title) in enumerate(zip(grid, content, strict=False)):
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel if i % columns else left or ylabel)
    for unused in grid[count:]:
        unused.set_visible(False)
    return figure, list(zip(grid, content.values(), strict=False))


def circle(axes: Axes, x: ArrayLike, y: ArrayLike) -> None:
    """Mark a chosen setting."""
    axes.plot(x, y, "o", ms=15, mfc="none", mec=INK, mew=1.4)


def log_axis(axis: Axis) -> None:
    """A logarithmic axis whose ticks are plain numbers: 0.02, 0.05, 0.1, ..."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def legend_below(figure: Figure) -> None:
    """One legend for all panels, every name once, in as many columns as fit."""
    found = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if found:
        widths = [0.5 + 0.08 * len(label) for label in found]  # inches
        one_row = sum(widths) <= WIDTH
        columns = len(found) if one_row else max(1, int(WIDTH / max(widths)))
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)
