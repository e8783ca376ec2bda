"""Figures of the searches: score over strength, heat map, confirmed settings, importance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mgdm_ray.results.report.figures.base import (
    CYCLE,
    FAINT,
    INK,
    MARKERS,
    colours,
    log_axis,
    panels_in_rows,
    styled,
)
from mgdm_ray.results.report.tables import GAMMA, MINUS

BINS = 6
"""Of gamma in the heat map, equally wide on a logarithmic scale."""


@styled
def search_scatter(trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Score over strength per search. A trial has measurement, uncertainty_scale, guidance_scale,
    score and best (bool)."""
    flat = [trial for rows in trials.values() for trial in rows]
    palette = colours([trial["measurement"] for trial in flat])
    scales = sorted({trial["guidance_scale"] for trial in flat})
    figure, panels = panels_in_rows(len(trials), 3.1, sharey=False)
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
            log_axis(axes.xaxis)
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
    figure, panels = panels_in_rows(len(searches), 3.2, sharey=False)
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
    figure, panels = panels_in_rows(len(searches), 0.9 + 0.35 * len(names))
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
def heat_map(trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Per measurement (a panel) and search (a row): how far the mean score of the trials in each
    bin of gamma is from the mean of all trials of that search.

    A trial has measurement, uncertainty_scale (> 0), score and best (bool). Each cell holds the
    difference and the number of trials; the one with the chosen setting is framed; hatched ones
    hold none.
    """
    flat = [trial for rows in trials.values() for trial in rows]
    edges = gamma_edges([trial["uncertainty_scale"] for trial in flat])
    measurements = sorted({trial["measurement"] for trial in flat})
    cells = {name: _binned(trials, name, edges) for name in measurements}
    every = [abs(value) for rows in cells.values() for row in rows for value, _, _ in row]
    most = max([value for value in every if not math.isnan(value)], default=0.0) or 1e-6
    figure, panels = panels_in_rows(
        len(measurements), 1.0 + 0.5 * len(trials), columns=min(2, len(measurements))
    )
    for axes, (name, rows) in zip(panels, cells.items(), strict=True):
        values = np.array([[value for value, _, _ in row] for row in rows])
        mesh = axes.pcolormesh(
            np.arange(len(edges)), np.arange(len(rows) + 1), np.ma.masked_invalid(values),
            cmap="RdBu", norm=TwoSlopeNorm(0, -most, most), edgecolors="white", lw=1.5,
        )  # fmt: skip
        for y, row in enumerate(rows):
            for x, (value, count, chosen) in enumerate(row):
                if not count:
                    patch = Rectangle((x, y), 1, 1, fill=False, hatch="///", ec=FAINT, lw=0)
                    axes.add_patch(patch)
                    continue
                colour = "white" if abs(value) > 0.6 * most else INK
                words = f"{value:+.3f}\nn = {count}".replace("-", MINUS)
                axes.text(
                    x + 0.5, y + 0.5, words, ha="center", va="center", fontsize=7.5, color=colour
                )
                if chosen:
                    frame = Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, fill=False, ec=INK, lw=2)
                    axes.add_patch(frame)
        axes.set_xticks(range(len(edges)), [f"{edge:.2g}" for edge in edges], fontsize=8)
        axes.set_yticks([y + 0.5 for y in range(len(rows))], list(trials))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set(title=name, xlabel=f"uncertainty_scale {GAMMA} (bins on a log scale)")
    panels[0].set_ylim(len(trials), 0)  # shared by all panels
    figure.colorbar(mesh, ax=panels, label="score minus mean", shrink=0.9, pad=0.01)
    return figure


def gamma_edges(values: Sequence[float]) -> list[float]:
    """``BINS + 1`` edges from the smallest to the largest value, equally wide on a log scale."""
    low, high = min(values), max(values)
    if high <= low * 1.01:
        low, high = low / 1.5, high * 1.5
    return [float(edge) for edge in np.geomspace(low, high, BINS + 1)]


def _binned(
    trials: Mapping[str, Sequence[Mapping[str, Any]]], measurement: str, edges: Sequence[float]
) -> list[list[tuple[float, int, bool]]]:
    """Per search and bin (mean score minus the search's mean, trials, holds the best)."""
    table = []
    for rows in trials.values():
        middle = float(np.mean([trial["score"] for trial in rows]))
        bins: list[list[Mapping[str, Any]]] = [[] for _ in edges[1:]]
        for trial in rows:
            if trial["measurement"] == measurement:
                place = int(np.searchsorted(edges, trial["uncertainty_scale"], side="right")) - 1
                bins[min(max(place, 0), len(bins) - 1)].append(trial)
        table.append(
            [
                (
                    float(np.mean([trial["score"] for trial in held])) - middle
                    if held
                    else math.nan,
                    len(held),
                    any(trial["best"] for trial in held),
                )
                for held in bins
            ]
        )
    return table
