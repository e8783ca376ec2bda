"""Figures of the answer: contrasts, gains, networks, ratios, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mgdm_ray.evaluation.stats.paired import Contrast, Summary, summarise
from mgdm_ray.evaluation.stats.ranks import Ranking
from mgdm_ray.results.report.figures import base
from mgdm_ray.results.report.words import MINUS, signed


@base.styled
def forest(
    contrasts: Sequence[Contrast],
    differences: Sequence[Mapping[str, Sequence[float]]],
    primary: int,
) -> Figure:
    """Mean difference and intervals per contrast, above the paired differences of each dataset.

    Thick: these datasets; thin, with ends: datasets in general.

    A line separates the first ``primary`` contrasts from the others.
    """
    palette = base.colours([dataset for row in differences for dataset in row])
    height = 0.75 + 0.62 * len(contrasts)
    figure = Figure(figsize=(base.WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for row, (contrast, points) in enumerate(zip(contrasts, differences, strict=True)):
        y = len(contrasts) - 1 - row
        for i, (dataset, values) in enumerate(points.items()):
            offset = -0.2 - 0.16 * i / max(1, len(points) - 1)
            axes.plot(
                values, [y + offset] * len(values), "o", ms=4, mew=0, alpha=0.5,
                color=palette[dataset], label=dataset if row == 0 else None,
            )  # fmt: skip
        _contrast(axes, y, contrast)
    axes.axvline(0, color=base.GREY, lw=1)
    if 0 < primary < len(contrasts):
        axes.axhline(len(contrasts) - primary - 0.5, color=base.FAINT, lw=1, ls=(0, (4, 4)))
    names = [f"{c.arm_a} {MINUS} {c.arm_b}" for c in reversed(contrasts)]
    axes.set_yticks(range(len(contrasts)), names)
    axes.set_ylim(-0.6, len(contrasts) - 0.45)
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference in balanced accuracy on the test split   (right: first arm better)")
    if palette:
        figure.legend(loc="outside upper right", ncols=len(palette), handletextpad=0.1)
    return figure


def _contrast(axes: Axes, y: float, contrast: Contrast) -> None:
    if contrast.n == 0:
        axes.text(0, y, " no data", va="center", color=base.GREY)
        return
    bars = ((contrast.general, 1.0, "|", base.GREY), (contrast.here, 3.2, "", base.INK))
    for found, width, ends, colour in bars:
        if found and found.estimate.is_known:
            axes.plot(
                [found.estimate.low, found.estimate.high], [y, y], color=colour, lw=width,
                marker=ends, ms=9, solid_capstyle="butt",
            )  # fmt: skip
    axes.plot(contrast.difference, y, "D", color=base.INK, ms=7)
    axes.annotate(
        signed(contrast.difference), (contrast.difference, y), xytext=(0, 8),
        textcoords="offset points", ha="center", fontweight="bold",
    )  # fmt: skip


@base.styled
def gains(per_dataset: Mapping[str, Mapping[str, Mapping[tuple[str, int], float]]]) -> Figure:
    """Per dataset and arm: gain over ``real`` of each cell, and their mean (bar and number)."""
    networks = sorted({n for arms in per_dataset.values() for g in arms.values() for n, _ in g})
    middle = (len(networks) - 1) / 2
    spread = {n: 0.6 * (i - middle) / len(networks) for i, n in enumerate(networks)}
    figure, panels = base.panels(per_dataset, 3.1, 2, sharey=True, left="gain over real")
    for axes, arms in panels:
        for x, (arm, cells) in enumerate(arms.items()):
            if not cells:
                continue
            colour = base.arm_colour(arm)
            places = [x + spread[network] for network, _ in cells]
            axes.plot(places, list(cells.values()), "o", ms=4.5, mew=0, alpha=0.45, color=colour)
            mean = summarise(cells.values()).mean
            axes.plot([x - 0.34, x + 0.34], [mean, mean], color=colour, lw=3)
            # In one line at the top, where numbers of neighbours cannot overlap.
            axes.annotate(
                signed(mean), (x, 0.99), xycoords=axes.get_xaxis_transform(), ha="center",
                va="top", color=colour, fontweight="bold",
            )  # fmt: skip
        axes.axhline(0, color=base.ARM_COLOURS["real"], lw=1)
        axes.set_xticks(range(len(arms)), list(arms), fontsize=8.5)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.grid(axis="x", visible=False)
    low, high = panels[0][0].get_ylim()
    panels[0][0].set_ylim(low, high + 0.14 * (high - low))
    return figure


@base.styled
def network_gains(
    panels_of: Mapping[str, Mapping[str, Contrast]],
    points: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
) -> Figure:
    """Per pair of arms (a panel) and network (a row) the mean difference and its interval, and
    fainter the paired differences by dataset (``points[pair][network][dataset]``)."""
    networks = sorted({name for rows in panels_of.values() for name in rows})
    palette = base.colours([d for rows in points.values() for row in rows.values() for d in row])
    height = 0.8 + 0.3 * len(networks)
    figure, panels = base.panels(panels_of, height, sharex=True, sharey=True)
    for pair, (axes, rows) in zip(panels_of, panels, strict=True):
        for y, name in enumerate(reversed(networks)):
            if name not in rows or rows[name].n == 0:
                continue
            contrast = rows[name]
            for i, (dataset, values) in enumerate(points[pair][name].items()):
                places = [y - 0.18 - 0.09 * i] * len(values)
                axes.plot(values, places, "o", ms=3, mew=0, alpha=0.55, color=palette[dataset])
            here = contrast.here.estimate if contrast.here else None
            if here and here.is_known:
                colour = base.GREY if here.spans_zero else base.INK
                axes.plot(
                    [here.low, here.high], [y, y], color=colour, lw=2, solid_capstyle="butt",
                    gid=f"interval {name}",
                )  # fmt: skip
            axes.plot(contrast.difference, y, "D", ms=5, color=base.INK, gid=f"mean {name}")
        axes.axvline(0, color=base.GREY, lw=1)
        axes.set_yticks(range(len(networks)), list(reversed(networks)))
        axes.set_ylim(-0.7, len(networks) - 0.5)
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.tick_params(axis="x", labelbottom=True)
    figure.supxlabel("difference in balanced accuracy   (right: first arm better)", fontsize=9.5)
    for name, colour in palette.items():
        panels[0][0].plot([], [], "o", ms=5, color=colour, label=name)
    figure.legend(loc="outside upper center", ncols=4, handletextpad=0.1)
    return figure


@base.styled
def ratio_curves(curves: Mapping[str, Mapping[str, Mapping[float, Summary]]]) -> Figure:
    """Per dataset (a panel) and arm (a line) the gain over ``real`` at each ratio of added images
    to real ones; bars: standard deviation over networks and seeds."""
    figure, panels = base.panels(
        curves, 3.0, 2, sharey=True, xlabel="added images per real image", left="gain over real"
    )
    for axes, rows in panels:
        ratios = sorted({ratio for curve in rows.values() for ratio in curve})
        step = 0.012 * (max(ratios, default=1.0) or 1.0)
        for i, (arm, curve) in enumerate(rows.items()):
            shift = step * (i - (len(rows) - 1) / 2)  # so that bars lie beside each other
            points = [curve[ratio] for ratio in sorted(curve)]
            axes.errorbar(
                [0.0, *(ratio + shift for ratio in sorted(curve))],
                [0.0, *(point.mean for point in points)],
                [0.0, *(0.0 if math.isnan(point.sd) else point.sd for point in points)],
                color=base.arm_colour(arm), marker=base.MARKERS[i % len(base.MARKERS)], ms=5,
                lw=1.6, elinewidth=0.9, alpha=0.9, label=arm,
            )  # fmt: skip
        axes.axhline(0, color=base.ARM_COLOURS["real"], lw=1)
        axes.set_xticks([0, *ratios], ["0", *(f"{ratio:g}" for ratio in ratios)])
    base.legend_below(figure)
    return figure


@base.styled
def rank_diagram(found: Ranking) -> Figure:
    """Critical-difference diagram of Demsar (2006)."""
    from scikit_posthocs import critical_difference_diagram

    names = list(found.mean_ranks)
    table = pd.DataFrame(1.0, index=names, columns=names)
    for (a, b), p in found.nemenyi.items():
        table.loc[a, b] = table.loc[b, a] = p
    figure = Figure(figsize=(base.WIDTH, 1.0 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    critical_difference_diagram(
        dict(found.mean_ranks),
        table,
        ax=axes,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        color_palette={name: base.arm_colour(name) for name in names},
    )
    return figure
