"""Figures of the models while they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from mgdm_ray.results.report.figures import base


@base.styled
def guide_over_t(
    curves: Mapping[str, base.Curve], chance: Mapping[str, float], errors: Mapping[str, base.Curve]
) -> Figure:
    """The noisy classifier's balanced accuracy from clean (t = 0) to noise, with chance levels, and
    where it is known its calibration error."""
    palette = base.colours(list(curves))
    figure, (axes, *more) = base.panels_in_rows(2 if errors else 1, 3.0, sharey=False)
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
    figure, panels = base.panels_in_rows(len(panels_of), 2.9, sharey=False)
    for axes, (title, curves) in zip(panels, panels_of.items(), strict=True):
        for name, curve in curves.items():
            steps, losses = [x for x, _ in curve], [y for _, y in curve]
            axes.plot(steps, losses, color=palette[name], lw=0.7, alpha=0.25)
            axes.plot(steps, running_mean(losses), color=palette[name], lw=1.6)
        values = [y for curve in curves.values() for _, y in curve]
        if values and min(values) > 0 and max(values) > 5 * min(values):
            axes.set_yscale("log")
            base.log_axis(axes.yaxis)
        axes.set(title=title, xlabel="step", ylabel="training loss")
    for name in dict.fromkeys(names):
        panels[0].plot([], [], color=palette[name], lw=2, label=name)
    if palette:
        figure.legend(loc="outside lower center", ncols=7)
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over a fifteenth of the curve, shorter at its ends."""
    window = 2 * (len(values) // 30) + 1
    means = pd.Series(values, dtype=float).rolling(window, center=True, min_periods=1).mean()
    return [float(mean) for mean in means]
