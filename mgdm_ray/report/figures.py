"""The report's figures, by matplotlib without a display; every function returns a Figure.

Colours mean the same everywhere: an arm, a dataset or a measurement keeps its colour. Figures
are drawn on white, also for a dark page, where they lie on a light card.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import LogLocator

from mgdm_ray.report.tables import GAMMA, MINUS
from mgdm_ray.stats import Contrast, summarise

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
INK, FAINT = "#1d2530", "#c9ced6"
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#8a93a0",
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
WIDTH = 9.6  # inches; 160 dpi makes 1536 px for a column of about 1000 px
Curve = Sequence[tuple[float, float]]
styled = context(STYLE)  # rcParams act when text and legends are made, so on whole functions


@styled
def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure (no date in it)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, str]:
    return {name: CYCLE[i % len(CYCLE)] for i, name in enumerate(sorted(set(names)))}


def _panels(
    count: int, height: float, columns: int | None = None, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of ``columns``; default: three, but four as 2 x 2."""
    columns = max(1, min(columns or (2 if count == 4 else 3), count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


@styled
def forest(
    contrasts: Sequence[Contrast],
    differences: Sequence[Mapping[str, Sequence[float]]],
    primary: int,
) -> Figure:
    """Mean difference and interval per contrast, above the paired differences of each dataset.

    A line separates the first ``primary`` contrasts from the others.
    """
    palette = colours([dataset for row in differences for dataset in row])
    figure, (axes,) = _panels(1, 0.75 + 0.62 * len(contrasts))
    for row, (contrast, points) in enumerate(zip(contrasts, differences, strict=True)):
        y = len(contrasts) - 1 - row
        for i, (dataset, values) in enumerate(sorted(points.items())):
            offset = -0.2 - 0.16 * i / max(1, len(points) - 1)
            axes.plot(
                values, [y + offset] * len(values), "o", ms=4, mew=0, alpha=0.5,
                color=palette[dataset], label=dataset if row == 0 else None,
            )  # fmt: skip
        if contrast.n == 0:
            axes.text(0, y, " no data", va="center", color="#8a93a0")
            continue
        if not math.isnan(contrast.low):
            axes.plot(
                [contrast.low, contrast.high], [y, y], color=INK, lw=2.4, solid_capstyle="butt"
            )
        axes.plot(contrast.difference, y, "D", color=INK, ms=7)
        axes.annotate(
            f"{contrast.difference:+.3f}", (contrast.difference, y), xytext=(0, 8),
            textcoords="offset points", ha="center", fontweight="bold",
        )  # fmt: skip
    axes.axvline(0, color="#8a93a0", lw=1)
    if 0 < primary < len(contrasts):
        axes.axhline(len(contrasts) - primary - 0.5, color=FAINT, lw=1, ls=(0, (4, 4)))
    axes.set_yticks(
        range(len(contrasts)), [f"{c.arm_a} {MINUS} {c.arm_b}" for c in reversed(contrasts)]
    )
    axes.set_ylim(-0.6, len(contrasts) - 0.45)
    axes.tick_params(axis="y", length=0, labelsize=10.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference in balanced accuracy on the test split   (right: first arm better)")
    if palette:
        figure.legend(loc="outside upper right", ncols=len(palette), handletextpad=0.1)
    return figure


@styled
def gains(per_dataset: Mapping[str, Mapping[str, Mapping[tuple[str, int], float]]]) -> Figure:
    """Per dataset and arm: gain over ``real`` of each cell, and their mean (bar and number)."""
    networks = sorted({n for arms in per_dataset.values() for g in arms.values() for n, _ in g})
    middle = (len(networks) - 1) / 2
    spread = {n: 0.6 * (i - middle) / len(networks) for i, n in enumerate(networks)}
    figure, panels = _panels(len(per_dataset), 3.1, columns=2)
    for index, (axes, (dataset, arms)) in enumerate(zip(panels, per_dataset.items(), strict=True)):
        for x, (arm, cells) in enumerate(arms.items()):
            if not cells:
                continue
            colour = ARM_COLOURS.get(arm, INK)
            places = [x + spread[network] for network, _ in cells]
            axes.plot(places, list(cells.values()), "o", ms=4.5, mew=0, alpha=0.45, color=colour)
            mean = summarise(cells.values()).mean
            axes.plot([x - 0.34, x + 0.34], [mean, mean], color=colour, lw=3)
            # In one line at the top, where numbers of neighbours cannot overlap.
            axes.annotate(
                f"{mean:+.3f}",
                (x, 0.99),
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                color=colour,
                fontweight="bold",
            )
        axes.axhline(0, color=ARM_COLOURS["real"], lw=1)
        axes.set_xticks(range(len(arms)), list(arms), fontsize=8.5)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.set_title(dataset)
        if index % 2 == 0:
            axes.set_ylabel("gain over real")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high + 0.14 * (high - low))
    return figure


@styled
def search_scatter(trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Score over strength per search. A trial has measurement, uncertainty_scale, guidance_scale,
    score and best (bool)."""
    flat = [trial for rows in trials.values() for trial in rows]
    palette = colours([trial["measurement"] for trial in flat])
    scales = sorted({trial["guidance_scale"] for trial in flat})
    figure, panels = _panels(len(trials), 3.1, sharey=False)
    for axes, (where, rows) in zip(panels, trials.items(), strict=True):
        for trial in rows:
            axes.plot(
                trial["uncertainty_scale"], trial["score"], ms=7.5, mew=0.8, mec="white",
                color=palette[trial["measurement"]],
                marker=MARKERS[scales.index(trial["guidance_scale"]) % len(MARKERS)],
            )  # fmt: skip
            if trial["best"]:
                axes.plot(
                    trial["uncertainty_scale"],
                    trial["score"],
                    "o",
                    ms=15,
                    mfc="none",
                    mec=INK,
                    mew=1.4,
                )
        if rows and min(trial["uncertainty_scale"] for trial in rows) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.margins(0.12)
        axes.set(
            title=where, xlabel=f"uncertainty_scale {GAMMA}", ylabel="validation balanced accuracy"
        )
    for name, colour in palette.items():
        panels[0].plot([], [], "o", color=colour, label=name)
    for i, scale in enumerate(scales) if len(scales) > 1 else ():
        label = f"guidance_scale {scale:g}"
        panels[0].plot([], [], MARKERS[i % len(MARKERS)], color="#8a93a0", label=label)
    panels[0].plot([], [], "o", ms=11, mfc="none", mec=INK, label="best")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


@styled
def confirmed(searches: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Per search (score of the search, fresh score of the proxies, of other networks) of each
    setting, the chosen one first; the last of the three may be nan."""
    figure, panels = _panels(len(searches), 3.2, sharey=False)
    proxy, other = CYCLE[5], CYCLE[0]
    for axes, (where, means) in zip(panels, searches.items(), strict=True):
        claimed = [row[0] for row in means]
        ends = [min(claimed), max(claimed)]
        axes.plot(ends, ends, color=proxy, lw=1, ls=(0, (4, 4)))
        axes.plot(claimed, [row[1] for row in means], "o", ms=7, mfc="white", mec=proxy, mew=1.4)
        axes.plot(claimed, [row[2] for row in means], "o", ms=7.5, mec="white", color=other)
        for value in means[0][1:]:
            axes.plot(claimed[0], value, "o", ms=15, mfc="none", mec=INK, mew=1.4)
        axes.margins(0.15)
        axes.set(title=where, xlabel="score in the search", ylabel="score with fresh seeds")
    panels[0].plot([], [], "o", ms=7.5, color=other, label="other networks")
    panels[0].plot([], [], "o", mfc="white", mec=proxy, mew=1.4, label="proxy networks")
    panels[0].plot([], [], "o", ms=11, mfc="none", mec=INK, label="chosen setting")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def importance(searches: Mapping[str, Mapping[str, float]]) -> Figure:
    """Per search a bar for the share of each parameter; the same parameter in the same row."""
    names = sorted({name for shares in searches.values() for name in shares}, reverse=True)
    figure, panels = _panels(len(searches), 0.9 + 0.35 * len(names))
    for axes, (where, shares) in zip(panels, searches.items(), strict=True):
        for y, name in enumerate(names):
            if name in shares:
                axes.barh(y, shares[name], height=0.55, color=CYCLE[0])
                axes.annotate(
                    f"{shares[name]:.0%}", (shares[name], y), xytext=(4, 0),
                    textcoords="offset points", va="center",
                )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(0, 1.15)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set(title=where, xlabel="importance")
    return figure


@styled
def guide_over_t(
    curves: Mapping[str, Curve], chance: Mapping[str, float], errors: Mapping[str, Curve]
) -> Figure:
    """The noisy classifier's balanced accuracy from clean (t = 0) to noise, with chance levels, and
    where it is known its calibration error."""
    palette = colours(list(curves))
    figure, (axes, *more) = _panels(2 if errors else 1, 3.0, sharey=False)
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
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        title="dashed: chance",
        title_fontsize=8.5,
        ncols=6,
    )
    return figure


@styled
def loss_curves(panels_of: Mapping[str, Mapping[str, Curve]], arms: bool) -> Figure:
    """One panel per key; raw losses faint, a running mean on top. ``arms``: colour by arm."""
    names = [name for curves in panels_of.values() for name in curves]
    palette = {n: ARM_COLOURS.get(n, INK) for n in names} if arms else colours(names)
    figure, panels = _panels(len(panels_of), 2.9, sharey=False)
    for axes, (title, curves) in zip(panels, panels_of.items(), strict=True):
        for name, curve in curves.items():
            steps, losses = [x for x, _ in curve], [y for _, y in curve]
            axes.plot(steps, losses, color=palette[name], lw=0.7, alpha=0.25)
            axes.plot(steps, running_mean(losses), color=palette[name], lw=1.6)
        values = [y for curve in curves.values() for _, y in curve]
        if values and min(values) > 0 and max(values) > 5 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set(title=title, xlabel="step", ylabel="training loss")
    for name, colour in palette.items():
        panels[0].plot([], [], color=colour, lw=2, label=name)
    if palette:
        figure.legend(loc="outside lower center", ncols=7)
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over a fifteenth of the curve, shorter at its ends."""
    half = len(values) // 30
    out = []
    for i in range(len(values)):
        window = values[max(0, i - half) : i + half + 1]
        out.append(sum(window) / len(window))
    return out
