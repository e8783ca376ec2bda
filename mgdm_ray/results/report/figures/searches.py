"""Figures of the searches: score over strength, heat map, confirmed settings, importance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mgdm_ray.pipeline.trials import Trial
from mgdm_ray.results.report.figures.base import (
    CYCLE,
    FAINT,
    GREY,
    INK,
    MARKERS,
    circle,
    colours,
    log_axis,
    panels_in_rows,
    styled,
)
from mgdm_ray.results.report.words import GAMMA, percent, signed

BINS = 6
"""Of gamma in the heat map, equally wide on a logarithmic scale."""
Searches = Mapping[str, Sequence[Trial]]
"""Scored trials with a strength, by search."""


class Bin(NamedTuple):
    """Trials of one range of gamma: mean score minus the search's mean (nan without trials)."""

    value: float
    trials: int
    chosen: bool
    """Whether the chosen setting is among them."""


@styled
def search_scatter(trials: Searches, best: Mapping[str, Trial]) -> Figure:
    """Score over strength per search; the best trial of each is circled."""
    flat = [trial for rows in trials.values() for trial in rows]
    palette = colours([_measurement(trial) for trial in flat])
    scales = sorted({_guidance(trial) for trial in flat})
    figure, panels = panels_in_rows(len(trials), 3.1, sharey=False)
    for axes, (where, rows) in zip(panels, trials.items(), strict=True):
        for trial in rows:
            axes.plot(
                _gamma(trial), _score(trial), ms=7.5, mew=0.8, mec="white",
                color=palette[_measurement(trial)],
                marker=MARKERS[scales.index(_guidance(trial)) % len(MARKERS)],
            )  # fmt: skip
            if best.get(where) == trial:
                circle(axes, _gamma(trial), _score(trial))
        if rows and min(map(_gamma, rows)) > 0:
            axes.set_xscale("log")
            log_axis(axes.xaxis)
        axes.margins(0.12)
        axes.set(title=where, xlabel=f"uncertainty_scale {GAMMA}", ylabel="validation score")
    for name, colour in palette.items():
        panels[0].plot([], [], "o", color=colour, label=name)
    for i, scale in enumerate(scales) if len(scales) > 1 else ():
        label = f"guidance_scale {scale:g}"
        panels[0].plot([], [], MARKERS[i % len(MARKERS)], color=GREY, label=label)
    panels[0].plot([], [], "o", ms=11, mfc="none", mec=INK, label="best")
    figure.legend(loc="outside lower center", ncols=6)
    return figure


@styled
def confirmed(searches: Mapping[str, Sequence[tuple[float, float, float]]]) -> Figure:
    """Per search (score of the search, fresh score of the proxies, of other networks) of each
    setting, the chosen one first; the last of the three may be nan."""
    figure, panels = panels_in_rows(len(searches), 3.2, sharey=False)
    proxy, other = CYCLE[5], CYCLE[0]
    for axes, (where, means) in zip(panels, searches.items(), strict=True):
        claimed = [row[0] for row in means]
        ends = [min(claimed), max(claimed)]
        axes.plot(ends, ends, color=proxy, lw=1, ls=(0, (4, 4)))
        axes.plot(claimed, [row[1] for row in means], "o", ms=7, mfc="white", mec=proxy, mew=1.4)
        axes.plot(claimed, [row[2] for row in means], "o", ms=7.5, mec="white", color=other)
        for value in means[0][1:]:
            circle(axes, claimed[0], value)
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
    figure, panels = panels_in_rows(len(searches), 0.9 + 0.35 * len(names))
    for axes, (where, shares) in zip(panels, searches.items(), strict=True):
        for y, name in enumerate(names):
            if name in shares:
                axes.barh(y, shares[name], height=0.55, color=CYCLE[0])
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
        axes.set(title=where, xlabel="importance")
    return figure


@styled
def heat_map(trials: Searches, best: Mapping[str, Trial]) -> Figure:
    """Per measurement (a panel) and search (a row) the scores in each bin of gamma (> 0).

    A cell shows the mean score minus that of all trials of the search, and the number of trials;
    the one with the chosen setting is framed; hatched ones hold none.
    """
    flat = [trial for rows in trials.values() for trial in rows]
    edges = gamma_edges([_gamma(trial) for trial in flat])
    cells = {
        name: [_binned(rows, name, edges, best.get(where)) for where, rows in trials.items()]
        for name in sorted({_measurement(trial) for trial in flat})
    }
    values = [abs(b.value) for rows in cells.values() for row in rows for b in row if b.trials]
    most = max(values, default=0.0) or 1e-6
    figure, panels = panels_in_rows(len(cells), 1.0 + 0.5 * len(trials), columns=min(2, len(cells)))
    for axes, (name, rows) in zip(panels, cells.items(), strict=True):
        mesh = axes.pcolormesh(
            np.arange(len(edges)), np.arange(len(rows) + 1),
            np.ma.masked_invalid([[b.value for b in row] for row in rows]),
            cmap="RdBu", norm=TwoSlopeNorm(0, -most, most), edgecolors="white", lw=1.5,
        )  # fmt: skip
        for y, row in enumerate(rows):
            for x, held in enumerate(row):
                _heat_cell(axes, x, y, held, most)
        axes.set_xticks(range(len(edges)), [f"{edge:.2g}" for edge in edges], fontsize=8)
        axes.set_yticks([y + 0.5 for y in range(len(rows))], list(trials))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set(title=name, xlabel=f"uncertainty_scale {GAMMA} (bins on a log scale)")
    panels[0].set_ylim(len(trials), 0)  # shared by all panels
    figure.colorbar(mesh, ax=panels, label="score minus mean", shrink=0.9, pad=0.01)
    return figure


def _heat_cell(axes: Axes, x: int, y: int, held: Bin, most: float) -> None:
    if not held.trials:
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="///", ec=FAINT, lw=0))
        return
    axes.text(
        x + 0.5, y + 0.5, f"{signed(held.value)}\nn = {held.trials}", ha="center", va="center",
        fontsize=7.5, color="white" if abs(held.value) > 0.6 * most else INK,
    )  # fmt: skip
    if held.chosen:
        axes.add_patch(Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, fill=False, ec=INK, lw=2))


def gamma_edges(values: Sequence[float]) -> list[float]:
    """``BINS + 1`` edges from the smallest to the largest value, equally wide on a log scale."""
    low, high = min(values), max(values)
    if high <= low * 1.01:
        low, high = low / 1.5, high * 1.5
    return [float(edge) for edge in np.geomspace(low, high, BINS + 1)]


def _binned(
    rows: Sequence[Trial], measurement: str, edges: Sequence[float], best: Trial | None
) -> list[Bin]:
    middle = float(np.mean([_score(trial) for trial in rows]))
    bins: list[list[Trial]] = [[] for _ in edges[1:]]
    for trial in rows:
        if _measurement(trial) == measurement:
            place = int(np.searchsorted(edges, _gamma(trial), side="right")) - 1
            bins[min(max(place, 0), len(bins) - 1)].append(trial)
    return [
        Bin(
            float(np.mean([_score(trial) for trial in held])) - middle if held else math.nan,
            len(held),
            best in held,
        )
        for held in bins
    ]


def _score(trial: Trial) -> float:
    return math.nan if trial.score is None else trial.score


def _gamma(trial: Trial) -> float:
    return float(trial.setting["uncertainty_scale"])


def _measurement(trial: Trial) -> str:
    return str(trial.setting.get("measurement", "?"))


def _guidance(trial: Trial) -> float:
    return float(trial.setting.get("guidance_scale", 1.0))
