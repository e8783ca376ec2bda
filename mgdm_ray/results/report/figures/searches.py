"""Figures of the searches: score over strength, heat map, confirmed settings, importance.

Trials are a frame with ``where`` (search), ``measurement``, ``gamma``, ``guidance``, ``score`` and
``chosen``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mgdm_ray.results.report.figures import base
from mgdm_ray.results.report.words import GAMMA, percent, signed

BINS = 6
"""Of gamma in the heat map, equally wide on a logarithmic scale."""


@base.styled
def search_scatter(trials: pd.DataFrame) -> Figure:
    """Score over strength per search; the chosen setting of each is circled."""
    palette = base.colours([str(name) for name in trials["measurement"]])
    scales = sorted({float(scale) for scale in trials["guidance"]})
    markers = dict(zip(scales, base.MARKERS * len(scales), strict=False))
    searches = {str(where): rows for where, rows in trials.groupby("where", sort=False)}
    xlabel = f"uncertainty_scale {GAMMA}"
    figure, panels = base.panels(searches, 3.1, xlabel=xlabel, ylabel="validation score")
    for axes, rows in panels:
        for (measurement, scale), some in rows.groupby(["measurement", "guidance"]):
            axes.plot(
                some["gamma"], some["score"], markers[scale], ms=7.5, mew=0.8, mec="white",
                color=palette[measurement],
            )  # fmt: skip
        chosen = rows[rows["chosen"]]
        base.circle(axes, chosen["gamma"], chosen["score"])
        if rows["gamma"].min() > 0:
            axes.set_xscale("log")
            base.log_axis(axes.xaxis)
        axes.margins(0.12)
    for name, colour in palette.items():
        panels[0][0].plot([], [], "o", color=colour, label=name)
    for scale in scales if len(scales) > 1 else ():
        label = f"guidance_scale {scale:g}"
        panels[0][0].plot([], [], markers[scale], color=base.GREY, label=label)
    panels[0][0].plot([], [], "o", ms=11, mfc="none", mec=base.INK, label="best")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


@base.styled
def confirmed(searches: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Per search (score of the search, fresh score of the proxies, of other networks) of each
    setting, the chosen one first; the last of the three may be nan."""
    figure, panels = base.panels(
        searches, 3.2, xlabel="score in the search", ylabel="score with fresh seeds"
    )
    proxy, other = base.CYCLE[5], base.CYCLE[0]
    for axes, means in panels:
        claimed = [row[0] for row in means]
        ends = [min(claimed), max(claimed)]
        axes.plot(ends, ends, color=proxy, lw=1, ls=(0, (4, 4)))
        axes.plot(claimed, [row[1] for row in means], "o", ms=7, mfc="white", mec=proxy, mew=1.4)
        axes.plot(claimed, [row[2] for row in means], "o", ms=7.5, mec="white", color=other)
        for value in means[0][1:]:
            base.circle(axes, claimed[0], value)
        axes.margins(0.15)
    panels[0][0].plot([], [], "o", ms=7.5, color=other, label="other networks")
    panels[0][0].plot([], [], "o", mfc="white", mec=proxy, mew=1.4, label="proxy networks")
    panels[0][0].plot([], [], "o", ms=11, mfc="none", mec=base.INK, label="chosen setting")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@base.styled
def importance(searches: Mapping[str, Mapping[str, float]]) -> Figure:
    """Per search a bar for the share of each parameter; the same parameter in the same row."""
    names = sorted({name for shares in searches.values() for name in shares}, reverse=True)
    height = 0.9 + 0.35 * len(names)
    figure, panels = base.panels(searches, height, sharey=True, xlabel="importance")
    for axes, shares in panels:
        for y, name in enumerate(names):
            if name in shares:
                axes.barh(y, shares[name], height=0.55, color=base.CYCLE[0])
                axes.annotate(
                    percent(shares[name]), (shares[name], y), xytext=(4, 0),
                    textcoords="offset points", va="center",
                )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(0, 1.15)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


@base.styled
def heat_map(trials: pd.DataFrame) -> Figure:
    """Per measurement (a panel) and search (a row) the scores in each bin of gamma (> 0).

    A cell shows the mean score minus that of all trials of the search, and the number of trials;
    the one with the chosen setting is framed; hatched ones hold none.
    """
    edges = gamma_edges(trials["gamma"].min(), trials["gamma"].max())
    searches = list(dict.fromkeys(trials["where"]))
    bins = np.searchsorted(edges, trials["gamma"], side="right") - 1
    value = trials["score"] - trials.groupby("where")["score"].transform("mean")
    binned = (
        trials.assign(bin=bins.clip(0, BINS - 1), value=value)
        .groupby(["measurement", "where", "bin"])
        .agg(value=("value", "mean"), trials=("value", "size"), chosen=("chosen", "any"))
    )
    most = float(binned["value"].abs().max()) or 1e-6
    measurements = {name: name for name in sorted(set(trials["measurement"]))}
    xlabel, height = f"uncertainty_scale {GAMMA} (bins on a log scale)", 1.0 + 0.5 * len(searches)
    figure, panels = base.panels(measurements, height, 2, sharey=True, xlabel=xlabel)
    for axes, name in panels:
        grid = np.full((len(searches), BINS), np.nan)
        for (where, x), row in binned.loc[name].iterrows():
            y = searches.index(where)
            grid[y, x] = row["value"]
            _heat_cell(axes, x, y, row, most)
        for y, x in np.argwhere(np.isnan(grid)):
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="///", ec=base.FAINT, lw=0))
        mesh = axes.pcolormesh(
            np.arange(BINS + 1), np.arange(len(searches) + 1), np.ma.masked_invalid(grid),
            cmap="RdBu", norm=TwoSlopeNorm(0, -most, most), edgecolors="white", lw=1.5, zorder=0.5,
        )  # fmt: skip
        axes.set_xticks(range(BINS + 1), [f"{edge:.2g}" for edge in edges], fontsize=8)
        axes.set_yticks([y + 0.5 for y in range(len(searches))], searches)
        axes.tick_params(length=0)
        axes.grid(visible=False)
    panels[0][0].set_ylim(len(searches), 0)  # shared by all panels
    figure.colorbar(
        mesh, ax=[axes for axes, _ in panels], label="score minus mean", shrink=0.9, pad=0.01
    )
    return figure


def _heat_cell(axes: Axes, x: int, y: int, row: pd.Series, most: float) -> None:
    axes.text(
        x + 0.5, y + 0.5, f"{signed(row['value'])}\nn = {row['trials']}", ha="center",
        va="center", fontsize=7.5, color="white" if abs(row["value"]) > 0.6 * most else base.INK,
    )  # fmt: skip
    if row["chosen"]:
        axes.add_patch(Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, fill=False, ec=base.INK, lw=2))


def gamma_edges(low: float, high: float) -> list[float]:
    """``BINS + 1`` edges, equally wide on a log scale."""
    if high <= low * 1.01:
        low, high = low / 1.5, high * 1.5
    return [float(edge) for edge in np.geomspace(low, high, BINS + 1)]
