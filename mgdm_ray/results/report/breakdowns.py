"""The results taken apart: network by network, and by the number of added images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import Contrast, Summary, paired_contrast, summarise
from mgdm_ray.results.report import cells
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.cells import CellId
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.page import render
from mgdm_ray.results.report.table import Cell, Row, interval, number
from mgdm_ray.results.report.words import DASH, signed
from mgdm_ray.storage.records import Record

PANELS = 4  # pairs of arms whose networks are shown
Curves = dict[str, dict[str, dict[float, Summary]]]
"""Dataset, arm, ratio."""


def networks(report: Builder) -> Markup | str:
    """Contrasts per network; empty with one network or no pair of arms."""
    pairs = _pairs(report)
    found: dict[str, dict[str, Contrast]] = {}
    points: dict[str, dict[str, dict[str, list[float]]]] = {}
    for a, b in pairs if len(report.networks) > 1 else ():
        for network in report.networks:
            gains = {d: cells.paired_gains(report.cells, a, d, b, network) for d in report.datasets}
            kept = {d: [values[k] for k in sorted(values)] for d, values in gains.items() if values}
            if kept:
                name = cells.pair_name((a, b))
                found.setdefault(name, {})[network] = _contrast(kept)
                points.setdefault(name, {})[network] = kept
    if not found:
        return ""
    rows: list[Row] = []
    for network in report.networks:
        row: Row = [network]
        for name in found:
            c = found[name].get(network)
            row += [number(c.difference, sign=True), interval(c.low, c.high)] if c else [DASH, DASH]
        rows.append(row)
    header = ["network", *(part for name in found for part in (name, f"{name}, 95 % interval"))]
    table = report.table("networks", header, rows, caption="Differences network by network")
    plot = report.plot("networks", outcomes.network_gains(found, points))
    return render("networks", plot=plot, table=table)


def _pairs(report: Builder) -> list[tuple[str, str]]:
    """The primary pairs of arms, after their first arm against real."""
    family = report.primary or [t for t in report.secondary if t.pair[0] in cells.SYNTHETIC]
    pairs = [t.pair for t in family if t.contrast.n]
    if pairs and "real" in report.arms:
        pairs.insert(0, (pairs[0][0], "real"))
    return list(dict.fromkeys(pairs))[:PANELS]


def _contrast(by_dataset: Mapping[str, Sequence[float]]) -> Contrast:
    values = [value for group in by_dataset.values() for value in group]
    clusters = [dataset for dataset, group in by_dataset.items() for _ in group]
    return paired_contrast(values, [0.0] * len(values), clusters, n_boot=4000)


def ratios(report: Builder) -> Markup | str:
    """Gain by the number of added images; empty if the study has no such cells."""
    every = ratio_curves(report.records, report.cells, report.context.ratio)
    found = {dataset: every[dataset] for dataset in report.datasets if dataset in every}
    if not found:
        return ""
    shown = sorted({r for arms in found.values() for curve in arms.values() for r in curve})
    rows: list[Row] = [
        [dataset, arm, *(_gain_cell(curve.get(ratio)) for ratio in shown)]
        for dataset, arms in found.items()
        for arm, curve in arms.items()
    ]
    header = ["dataset", "arm", *(f"{ratio:g}" for ratio in shown)]
    caption = "Gain over real by the ratio of added images to real ones"
    plot = report.plot("ratios", outcomes.ratio_curves(found))
    table = report.table("ratios", header, rows, caption, words=(1,))
    return render("ratios", plot=plot, table=table)


def ratio_curves(
    records: Sequence[Record], scores: Mapping[CellId, float], ratio: float | None
) -> Curves:
    """Paired gains over ``real`` at each ratio; at ``ratio`` those of the cells that the curve has
    elsewhere (same dataset, arm, network, seed)."""
    gains: dict[tuple[str, str, float], list[float]] = {}
    on_curve = set()
    for record in records:
        if record.kind != "fit_at_ratio" or record.status != "done":
            continue
        dataset, network, arm, seed = cells.cell_id(record)
        value = record.metrics.get(METRIC)
        base = scores.get((dataset, network, "real", seed))
        if value is None or base is None or "ratio" not in record.metrics:
            continue
        gains.setdefault((dataset, arm, record.metrics["ratio"]), []).append(value - base)
        on_curve.add((dataset, network, arm, seed))
    for dataset, network, arm, seed in sorted(on_curve):
        value = scores.get((dataset, network, arm, seed))
        if ratio is not None and value is not None:
            base = scores[dataset, network, "real", seed]
            gains.setdefault((dataset, arm, ratio), []).append(value - base)
    found: Curves = {}
    arms = cells.in_order(arm for _, arm, _ in gains)
    for dataset, arm, at in sorted(gains, key=lambda key: (key[0], arms.index(key[1]), key[2])):
        curve = found.setdefault(dataset, {}).setdefault(arm, {})
        curve[at] = summarise(gains[dataset, arm, at])
    return found


def _gain_cell(summary: Summary | None) -> Cell:
    if summary is None:
        return Cell(DASH)
    sd = "" if summary.n < 2 else f"± {summary.sd:.3f}"
    parts = {"sd": summary.sd, "cells": summary.n}
    return Cell(signed(summary.mean), summary.mean, parts, small=sd)
