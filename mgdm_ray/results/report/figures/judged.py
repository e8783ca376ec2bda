"""Figures of the judge's measures: entropy and distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from mgdm_ray.results.report.figures import base

REAL = "real"


@base.styled
def entropies(panels_of: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Per dataset (a panel) and arm (a line) the share of images in each bin of entropy.

    ``panels_of[dataset][arm]`` has ``edges`` (one more than bins) and ``counts``; the arm ``real``
    is held-out real images, drawn as an area.
    """
    figure, panels = base.pairs_of_panels(panels_of, 2.9, "share of images", sharey=False)
    for axes, rows in panels:
        for arm, bins in rows.items():
            counts = np.asarray(bins["counts"], dtype=np.float64)
            is_real = arm == REAL
            axes.stairs(
                counts / max(counts.sum(), 1e-12), np.asarray(bins["edges"], dtype=np.float64),
                fill=is_real, color="#d5dae1" if is_real else base.arm_colour(arm), lw=1.7,
                label="held-out real" if is_real else arm, zorder=1 if is_real else 2,
            )  # fmt: skip
        axes.set(xlabel="entropy of the judge's prediction", ylim=(0, None))
    base.legend_below(figure)
    return figure


@base.styled
def fd_against_gain(panels_of: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Per dataset (a panel) and arm (a point) Fréchet distance and mean gain over ``real``:
    ``panels_of[dataset][arm]`` is (fd, fd of held-out real images, gain)."""
    figure, panels = base.pairs_of_panels(panels_of, 3.0, "mean gain over real", sharey=False)
    for axes, rows in panels:
        baselines = [real for _, real, _ in rows.values()]
        if baselines:
            axes.axvline(
                float(np.median(baselines)), color=base.GREY, lw=1, ls=(0, (4, 4)),
                label="held-out real images",
            )  # fmt: skip
        axes.axhline(0, color=base.ARM_COLOURS["real"], lw=1)
        for i, (arm, (fd, _, gain)) in enumerate(rows.items()):
            axes.plot(
                fd, gain, base.MARKERS[i % len(base.MARKERS)], ms=9, mec="white", label=arm,
                color=base.arm_colour(arm.split(" ")[0]),
            )  # fmt: skip
        axes.margins(0.15)
        axes.set_xlabel("Fréchet distance to real training images")
    base.legend_below(figure)
    return figure
