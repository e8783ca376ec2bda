"""Figures of what the judge says of the images: entropy and distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mgdm_ray.results.report.figures.base import (
    ARM_COLOURS,
    INK,
    MARKERS,
    legend_below,
    panels_in_rows,
    styled,
)

REAL = "real"


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
