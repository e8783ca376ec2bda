"""The results taken apart: network by network, and by the number of added images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import Contrast, Summary, paired_contrast, summarise
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, interval, number
from mgdm_ray.results.report.tables import DASH, MINUS, CellId
from mgdm_ray.storage.records import Record

PANELS = 4  # pairs of arms whose networks are shown
Curves = dict[str, dict[str, dict[float, Summary]]]
"""Dataset, arm, ratio."""


def networks(draft: Draft) -> Html | None:
    """Whether what holds on average holds for each network."""
    pairs = _pairs(draft)
    if len(draft.networks) < 2 or not pairs:
        return None
    found: dict[str, dict[str, Contrast]] = {}
    points: dict[str, dict[str, dict[str, list[float]]]] = {}
    for a, b in pairs:
        for network in draft.networks:
            differences = {d: _differences(draft.cells, a, b, d, network) for d in draft.datasets}
            kept = {d: values for d, values in differences.items() if values}
            if kept:
                name = f"{a} {MINUS} {b}"
                found.setdefault(name, {})[network] = _contrast(kept)
                points.setdefault(name, {})[network] = kept
    if not found:
        return None
    plot = draft.plot(
        "networks",
        figures.network_gains(found, points),
        "Mean paired difference per network with intervals",
        "Network by network: mean paired difference over datasets and seeds (diamond), 95 % "
        "bootstrap interval clustered by dataset (bar; dark where it excludes 0), and each cell "
        "(dots). Not adjusted for how many networks are looked at: about one bar in twenty "
        "excludes 0 by chance alone.",
    )
    rows: list[list[str | Cell]] = []
    for network in draft.networks:
        row: list[str | Cell] = [network]
        for name in found:
            row += _pair_cells(found[name].get(network))
        rows.append(row)
    header = ["network", *(part for name in found for part in (name, f"{name}, 95 % interval"))]
    table = draft.table("networks", header, rows, caption="Differences network by network")
    title = page.tag("h3", text("Network by network"))
    return page.join([title, plot, page.fold("As a table", table)])


def _pairs(draft: Draft) -> list[tuple[str, str]]:
    """Those of the question, and their first arm against real."""
    family = draft.primary or [t for t in draft.secondary if t.contrast.arm_a in tables.SYNTHETIC]
    pairs = [(t.contrast.arm_a, t.contrast.arm_b) for t in family if t.contrast.n]
    if pairs and "real" in draft.arms:
        pairs.insert(0, (pairs[0][0], "real"))
    return list(dict.fromkeys(pairs))[:PANELS]


def _differences(
    cells: Mapping[CellId, float], a: str, b: str, dataset: str, network: str
) -> list[float]:
    gains = tables.paired_gains(cells, a, dataset, b)
    return [value for (name, _), value in sorted(gains.items()) if name == network]


def _contrast(by_dataset: Mapping[str, Sequence[float]]) -> Contrast:
    values = [value for group in by_dataset.values() for value in group]
    clusters = [dataset for dataset, group in by_dataset.items() for _ in group]
    return paired_contrast(values, [0.0] * len(values), clusters, n_boot=4000)


def _pair_cells(contrast: Contrast | None) -> list[str | Cell]:
    if contrast is None:
        return [Cell(DASH), Cell(DASH)]
    return [number(contrast.difference, sign=True), interval(contrast.low, contrast.high)]


def curves(draft: Draft) -> Html | None:
    """How the gain depends on the number of added images."""
    every = ratio_curves(draft.records, draft.cells, draft.context.ratio)
    found = {dataset: every[dataset] for dataset in draft.datasets if dataset in every}
    if not found:
        return None
    plot = draft.plot(
        "ratios",
        figures.ratio_curves(found),
        "Gain over real by the ratio of added images to real ones",
        "Gain in balanced accuracy over real, paired by network and seed, by the number of added "
        "images per real one: mean and standard deviation over the networks and seeds of the "
        "curve. All points have the same number of optimiser steps: more added images mean fewer "
        "passes over the real ones.",
    )
    ratios = sorted({r for arms in found.values() for curve in arms.values() for r in curve})
    rows: list[list[str | Cell]] = [
        [dataset, arm, *(_gain_cell(curve.get(ratio)) for ratio in ratios)]
        for dataset, arms in found.items()
        for arm, curve in arms.items()
    ]
    header = ["dataset", "arm", *(f"{ratio:g}" for ratio in ratios)]
    caption = "Gain over real at each ratio of added images to real ones"
    table = draft.table("ratios", header, rows, caption=caption, words=(1,))
    title = page.tag("h3", text("More or fewer added images"))
    return page.join([title, plot, table])


def ratio_curves(
    records: Sequence[Record], cells: Mapping[CellId, float], ratio: float | None
) -> Curves:
    """Paired gains over ``real`` at each ratio; at ``ratio`` those of the cells that the curve has
    elsewhere (same dataset, arm, network, seed)."""
    gains: dict[tuple[str, str, float], list[float]] = {}
    on_curve = set()
    for record in records:
        if record.kind != "fit_at_ratio" or record.status != "done":
            continue
        dataset, network, arm, seed = tables.cell_id(record)
        value = record.metrics.get(METRIC)
        base = cells.get((dataset, network, "real", seed))
        if value is None or base is None or "ratio" not in record.metrics:
            continue
        gains.setdefault((dataset, arm, record.metrics["ratio"]), []).append(value - base)
        on_curve.add((dataset, network, arm, seed))
    for dataset, network, arm, seed in sorted(on_curve):
        value = cells.get((dataset, network, arm, seed))
        if ratio is not None and value is not None:
            base = cells[dataset, network, "real", seed]
            gains.setdefault((dataset, arm, ratio), []).append(value - base)
    found: Curves = {}
    arms = tables.in_order(arm for _, arm, _ in gains)
    for dataset, arm, at in sorted(gains, key=lambda key: (key[0], arms.index(key[1]), key[2])):
        curve = found.setdefault(dataset, {}).setdefault(arm, {})
        curve[at] = summarise(gains[dataset, arm, at])
    return found


def _gain_cell(summary: Summary | None) -> Cell:
    if summary is None:
        return Cell(DASH)
    sd = "" if summary.n < 2 else f"± {summary.sd:.3f}"
    return Cell(
        f"{summary.mean:+.3f}", summary.mean, {"sd": summary.sd, "cells": summary.n}, small=sd
    )
