"""Figures of what the judge says of the images: entropy, distance, and a map of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mgdm_ray.results.report.figures.base import (
    ARM_COLOURS,
    INK,
    MARKERS,
    legend_below,
    panels_in_rows,
    styled,
)

REAL = "real"
CLASS_COLOURS = ("#3d7ab8", "#d9822b", "#2f9587", "#c8384f", "#8d5fbf", "#6b7a1f", "#d17bb0",
                 "#5b6470", "#00a0c6", "#8c564b")  # fmt: skip
"""In the order of labels; the tenth and later classes start again."""
PER_ROW = 4
LEVELS = [round(0.1 * i, 1) for i in range(11)]
"""Of the shading: steps are told apart where a smooth one is not."""


@styled
def entropies(panels_of: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Per dataset (a panel) and arm (a line) the share of images in each bin of entropy.

    ``panels_of[dataset][arm]`` has ``edges`` (one more than bins) and ``counts``; the arm ``real``
    is held-out real images, drawn as an area.
    """
    figure, panels = panels_in_rows(len(panels_of), 2.9, columns=2, sharey=False)
    for index, (axes, (dataset, rows)) in enumerate(zip(panels, panels_of.items(), strict=True)):
        for arm, bins in rows.items():
            counts = np.asarray(bins["counts"], dtype=np.float64)
            shares = counts / max(counts.sum(), 1e-12)
            is_real = arm == REAL
            axes.stairs(
                shares, np.asarray(bins["edges"], dtype=np.float64), fill=is_real,
                color="#d5dae1" if is_real else ARM_COLOURS.get(arm, INK), lw=1.7,
                label="held-out real" if is_real else arm, zorder=1 if is_real else 2,
            )  # fmt: skip
        axes.set(title=dataset, xlabel="entropy of the judge's prediction", ylim=(0, None))
        if index % 2 == 0:
            axes.set_ylabel("share of images")
    legend_below(figure)
    return figure


@styled
def fd_against_gain(panels_of: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Per dataset (a panel) and arm (a point) Frechet distance and mean gain over ``real``:
    ``panels_of[dataset][arm]`` is (fd, fd of held-out real images, gain)."""
    figure, panels = panels_in_rows(len(panels_of), 3.0, columns=2, sharey=False)
    for index, (axes, (dataset, rows)) in enumerate(zip(panels, panels_of.items(), strict=True)):
        yardsticks = [real for _, real, _ in rows.values()]
        if yardsticks:
            axes.axvline(
                float(np.median(yardsticks)), color="#8a93a0", lw=1, ls=(0, (4, 4)),
                label="held-out real images",
            )  # fmt: skip
        axes.axhline(0, color=ARM_COLOURS["real"], lw=1)
        for i, (arm, (fd, _, gain)) in enumerate(rows.items()):
            axes.plot(
                fd, gain, MARKERS[i % len(MARKERS)], ms=9, mec="white", label=arm,
                color=ARM_COLOURS.get(arm.split(" ")[0], INK),
            )  # fmt: skip
        axes.margins(0.15)
        axes.set(title=dataset, xlabel="Frechet distance to real training images")
        if index % 2 == 0:
            axes.set_ylabel("mean gain over real")
    legend_below(figure)
    return figure


@styled
def feature_map(
    panels_of: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    grid: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    classes: Sequence[str],
) -> Figure:
    """Panels of points ``[N, 2]`` coloured by label ``[N]``, on one shading.

    ``grid`` is (x ``[W]``, y ``[H]``, uncertainty ``[H, W]`` in [0, 1]); points outside lie on the
    border, as hollow marks.
    """
    xs, ys, shade = grid
    figure, panels = panels_in_rows(len(panels_of), 2.3, columns=PER_ROW, sharex=True)
    for index, (axes, (name, (points, labels))) in enumerate(
        zip(panels, panels_of.items(), strict=True)
    ):
        axes.contourf(xs, ys, shade, levels=LEVELS, cmap="Greys", vmin=0, vmax=1.6, gid="shading")
        low, high = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]])
        inside = ((points >= low) & (points <= high)).all(axis=1)
        shown = np.clip(points, low, high)
        for label in range(len(classes)):
            colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            mine = labels == label
            axes.plot(
                *shown[mine & inside].T, "o", ms=3.4, mew=0.3, mec="white", color=colour, alpha=0.85
            )
            if (mine & ~inside).any():  # an empty unclipped line has no place, and no layout
                outside = shown[mine & ~inside].T
                axes.plot(*outside, "o", ms=4, mfc="none", mec=colour, clip_on=False)
        axes.set_title(f"{name} ({len(points)})", fontsize=9.5)
        axes.set(xticks=[], yticks=[], xlim=(xs[0], xs[-1]), ylim=(ys[0], ys[-1]))
        axes.grid(visible=False)
        if index == 0:
            for label, name_of_class in enumerate(classes):
                colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
                axes.plot([], [], "o", ms=5, color=colour, label=name_of_class)
    legend_below(figure)
    return figure
