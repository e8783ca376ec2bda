"""Figures of the models: guide and losses while they were trained, and the judge's measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mgdm_ray.results.report.figures import base

REAL = "real"


@base.styled
def guide_over_t(
    curves: Mapping[str, base.Curve], chance: Mapping[str, float], errors: Mapping[str, base.Curve]
) -> Figure:
    """The noisy classifier's balanced accuracy from clean (t = 0) to noise, with chance levels, and
    where it is known its calibration error."""
    palette = base.colours(list(curves))
    figure = Figure(figsize=(base.WIDTH, 3.0), layout="constrained")
    axes, *more = figure.subplots(1, 2 if errors else 1, squeeze=False).flat
    for name, curve in errors.items():
        more[0].plot(*zip(*curve, strict=True), "o-", ms=4, color=palette[name])
        more[0].set(xlabel="training timestep t", ylabel="expected calibration error")
        more[0].set_ylim(bottom=0)
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), "o-", ms=4, color=palette[name], label=name)
        if name in chance:
            axes.axhline(chance[name], color=palette[name], lw=1, ls=(0, (4, 4)))
    axes.set(
        xlabel="training timestep t   (0: clean image, 999: noise)", ylabel="balanced accuracy"
    )
    axes.set_ylim(0, 1.02)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", title="dashed: chance",
        title_fontsize=8.5, ncols=6,
    )  # fmt: skip
    return figure


@base.styled
def loss_curves(panels_of: Mapping[str, Mapping[str, base.Curve]]) -> Figure:
    """One panel per key, one curve per arm or dataset: losses faint, a running mean on top."""
    names = [name for curves in panels_of.values() for name in curves]
    palette = {
        name: base.ARM_COLOURS.get(name, other) for name, other in base.colours(names).items()
    }
    figure, panels = base.panels(panels_of, 2.9, xlabel="step", ylabel="training loss")
    for axes, curves in panels:
        for name, curve in curves.items():
            steps, losses = [x for x, _ in curve], [y for _, y in curve]
            axes.plot(steps, losses, color=palette[name], lw=0.7, alpha=0.25)
            axes.plot(steps, running_mean(losses), color=palette[name], lw=1.6)
        values = [y for curve in curves.values() for _, y in curve]
        if values and min(values) > 0 and max(values) > 5 * min(values):
            axes.set_yscale("log")
            base.log_axis(axes.yaxis)
    for name in dict.fromkeys(names):
        panels[0][0].plot([], [], color=palette[name], lw=2, label=name)
    if palette:
        figure.legend(loc="outside lower center", ncols=7)
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over a fifteenth of the curve, shorter at its ends."""
    window = 2 * (len(values) // 30) + 1
    means = pd.Series(values, dtype=float).rolling(window, center=True, min_periods=1).mean()
    return [float(mean) for mean in means]


@base.styled
def entropies(panels_of: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Per dataset (a panel) and arm (a line) the share of images in each bin of entropy.

    ``panels_of[dataset][arm]`` has ``edges`` (one more than bins) and ``counts``; the arm ``real``
    is held-out real images, drawn as an area.
    """
    xlabel = "entropy of the judge's prediction"
    figure, panels = base.panels(panels_of, 2.9, 2, xlabel=xlabel, left="share of images")
    for axes, rows in panels:
        for arm, bins in rows.items():
            counts = np.asarray(bins["counts"], dtype=np.float64)
            is_real = arm == REAL
            axes.stairs(
                counts / max(counts.sum(), 1e-12), np.asarray(bins["edges"], dtype=np.float64),
                fill=is_real, color="#d5dae1" if is_real else base.arm_colour(arm), lw=1.7,
                label="held-out real" if is_real else arm, zorder=1 if is_real else 2,
            )  # fmt: skip
        axes.set_ylim(0, None)
    base.legend_below(figure)
    return figure


@base.styled
def fd_against_gain(panels_of: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Per dataset (a panel) and arm (a point) Fréchet distance and mean gain over ``real``:
    ``panels_of[dataset][arm]`` is (fd, fd of held-out real images, gain)."""
    xlabel = "Fréchet distance to real training images"
    figure, panels = base.panels(panels_of, 3.0, 2, xlabel=xlabel, left="mean gain over real")
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
    base.legend_below(figure)
    return figure
