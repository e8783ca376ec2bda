"""Sections: the question, the results cell by cell, by network and by ratio, and the contrasts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats.intervals import Claim
from mgdm_ray.evaluation.stats.paired import CellId, Contrast, Summary, summarise
from mgdm_ray.results.report import cells
from mgdm_ray.results.report.answer import mean_cell
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, interval, number, p_value
from mgdm_ray.results.report.words import DASH, counted, first_of, signed
from mgdm_ray.storage.records import Record

ROUNDING = 1e-9
"""Means that differ by less are equal."""
METRIC_NAMES = {METRIC: "Balanced accuracy", "auroc": "AUROC"}
PANELS = 4  # pairs of arms whose networks are shown
LOST_SHOWN = 8  # missing cells that a sentence names
Curves = dict[str, dict[str, dict[float, Summary]]]
"""Dataset, arm, ratio."""


def question(report: Builder) -> Markup:
    rows = [[arm, cells.ARM_MEANING.get(arm, "")] for arm in report.arms]
    header = ["arm", "what is added to the real training set"]
    arms = report.table("arms", header, rows, words=(1,))
    counts = [f"{n} {kind}" for kind, n in report.context.plan_counts.items()]
    return render("question", report=report, arms=arms, counts=", ".join(counts))


def results(report: Builder) -> Markup:
    done = [r for r in report.records if r.is_cell and r.status == "done"]
    metrics = sorted({name for record in done for name in record.metrics})
    rows = [[*cells.cell_id(r), *(r.metrics.get(m) for m in metrics), r.key] for r in done]
    report.table_file("cells", rows, ["dataset", "network", "arm", "seed", *metrics, "key"])
    tables = {
        name: [_score_table(report, metric, scores, dataset) for dataset in report.datasets]
        for metric, name in METRIC_NAMES.items()
        if (scores := cells.scores(report.records, metric))
    }
    gains = {
        d: {a: cells.paired_gains(report.cells, a, d) for a in report.arms if a != "real"}
        for d in report.datasets
    }
    drawn = any(any(arms.values()) for arms in gains.values())
    return render(
        "results",
        tables=tables,
        main=METRIC_NAMES[METRIC],
        gains=report.plot("gains", outcomes.gains(gains)) if tables and drawn else "",
        networks=networks(report),
        published=published(report),
        ratios=ratios(report),
    )


def _score_table(
    report: Builder, metric: str, scores: Mapping[CellId, float], dataset: str
) -> Markup:
    rows = [_score_row(report, scores, dataset, network) for network in report.networks]
    rows.append(["all networks", *_score_row(report, scores, dataset, None)[1:]])
    task, classes = report.info.get(dataset, {}).get("task"), report.classes(dataset)
    facts = ", ".join(str(f) for f in (task, classes and f"{len(classes)} classes") if f)
    described = f"{dataset} ({facts})" if facts else dataset
    header, caption = ["network", *report.arms], f"{METRIC_NAMES[metric]}: {described}"
    return report.table(f"{metric}-{dataset}", header, rows, caption, class_="totalled")


def _score_row(
    report: Builder, scores: Mapping[CellId, float], dataset: str, network: str | None
) -> Row:
    found = {arm: mean_cell(scores, arm, dataset, network) for arm in report.arms}
    # An arm that lost cells has a mean over other cells: only its paired gain can be compared.
    full = max(summary.n if summary else 0 for _, summary in found.values())
    means = [summary.mean for _, summary in found.values() if summary and summary.n == full]
    tied = not means or max(means) - min(means) < ROUNDING
    row: Row = [network or "all"]
    for arm, (cell, summary) in found.items():
        planned = len(cells.select(report.expected, dataset, arm, network))
        small, n = cell.small, summary.n if summary else 0
        if n < planned:
            missing = f"{n} of {counted(planned, 'cell')}" if n else "no cell done"
            small = f"{small} · {missing}" if small else missing
        best = summary and n == full and not tied and summary.mean > max(means) - ROUNDING
        row.append(replace(cell, small=small, class_="best" if best else ""))
    return row


def contrasts(report: Builder) -> Markup:
    said = map(contrast_text, report.primary)
    notes: dict[str, list[str]] = {}  # every caveat once, with the contrasts that it belongs to
    for c in (*report.primary, *report.secondary):
        if c.note:
            notes.setdefault(c.note, []).append(c.name)
    total = sum(map(len, notes.values()))
    return render(
        "contrasts",
        report=report,
        has_draws=report.has_draws,
        primary=_contrast_table(report, "contrasts", "Primary contrasts", report.primary),
        sentences=[text[:1].upper() + text[1:] for text in said],
        secondary=_contrast_table(
            report, "contrasts-secondary", "Secondary contrasts (exploratory)", report.secondary
        ),
        notes=[
            f"{'All' if len(pairs) == total > 1 else ', '.join(pairs)}: {note}."
            for note, pairs in notes.items()
        ],
    )


def contrast_text(c: Contrast) -> str:
    lost = [f"{a}: {d} x {n} x seed {s}" for d, n, a, s in c.missing]
    return say("contrast", c, first_of(lost, LOST_SHOWN))


def _contrast_table(report: Builder, name: str, caption: str, family: Sequence[Contrast]) -> Markup:
    header = ["contrast", "difference", "these datasets, 95 % interval", "these datasets, p (Holm)",
              "in general, 95 % interval", "in general, p (Holm)", "excluded: larger than", "dz",
              "wins", "ties", "losses", "verdict"]  # fmt: skip
    rows: list[Row] = []
    for c in family:
        facts = {"pairs": c.n, "missing": len(c.missing), "note": c.note, "margin": c.margin,
                 "draws": c.here.estimate.draws if c.here else 0}  # fmt: skip
        badge = Markup('<span class="badge {}">{}</span>').format(c.verdict.split()[0], c.verdict)
        dz = number(c.dz, 2, sign=True)
        if not math.isnan(c.rank_biserial):
            small = f"r {signed(c.rank_biserial, 2)}"
            dz = replace(dz, parts={"rank_biserial": c.rank_biserial}, small=small)
        rows.append(
            [
                Cell(c.name, parts={"a": c.arm_a, "b": c.arm_b}),
                number(c.difference, sign=True),
                *_claim_cells(c.here),
                *_claim_cells(c.general),
                _excluded_cell(c),
                dz,
                *(str(count) if c.n else DASH for count in (c.wins, c.ties, c.losses)),
                Cell(c.verdict, c.verdict, facts, html=badge),
            ]
        )
    return report.table(name, header, rows, caption=caption)


def _claim_cells(found: Claim | None) -> list[Cell]:
    """Interval and adjusted p; with the unadjusted p in the CSV."""
    if found is None:
        return [interval(math.nan, math.nan), Cell(DASH)]
    one = found.estimate
    return [interval(one.low, one.high), replace(p_value(found.p), parts={"unadjusted": one.p})]


def _excluded_cell(c: Contrast) -> Cell:
    here, general = (found.bound if found else math.nan for found in (c.here, c.general))
    return replace(
        number(here), small="" if math.isnan(general) else f"{general:.3f} in general",
        parts={"in general": general},
    )  # fmt: skip


def networks(report: Builder) -> Markup | str:
    """Contrasts per network; empty with one network or no pair of arms."""
    found: dict[str, dict[str, Contrast]] = {}
    points: dict[str, dict[str, dict[str, list[float]]]] = {}
    for a, b in _pairs(report) if len(report.networks) > 1 else ():
        for network in report.networks:
            (contrast,) = report.contrasts([(a, b)], _of_network(network))
            gains = {d: cells.paired_gains(report.cells, a, d, b, network) for d in report.datasets}
            if contrast.n:
                kept = {d: [values[k] for k in sorted(values)] for d, values in gains.items()}
                found.setdefault(contrast.name, {})[network] = contrast
                points.setdefault(contrast.name, {})[network] = kept
    if not found:
        return ""
    rows: list[Row] = []
    for network in report.networks:
        row: Row = [network]
        for name in found:
            c = found[name].get(network)
            row += [number(c.difference, sign=True) if c else Cell(DASH),
                    _claim_cells(c.here if c else None)[0]]  # fmt: skip
        rows.append(row)
    header = ["network", *(part for name in found for part in (name, f"{name}, 95 % interval"))]
    table = report.table("networks", header, rows, caption="Differences network by network")
    plot = report.plot("networks", outcomes.network_gains(found, points))
    return render("networks", plot=plot, table=table)


def _of_network(name: str) -> Callable[[CellId], bool]:
    return lambda cell: cell[1] == name


def _pairs(report: Builder) -> list[tuple[str, str]]:
    """The primary pairs of arms, after their first arm against real."""
    family = report.primary or [c for c in report.secondary if c.arm_a in cells.SYNTHETIC]
    pairs = [c.pair for c in family if c.n]
    if pairs and "real" in report.arms:
        pairs.insert(0, (pairs[0][0], "real"))
    return list(dict.fromkeys(pairs))[:PANELS]


def published(report: Builder) -> Markup | str:
    """Accuracies of the arm real beside published ones; empty where there are none."""
    scores = cells.scores(report.records, "accuracy")
    rows: list[Row] = []
    for known in report.context.published:
        yours, found = mean_cell(scores, "real", known.dataset, known.network)
        if found:
            theirs = replace(number(known.accuracy), parts={"source": known.source})
            caution = "; ".join(known.cautions) or DASH
            rows.append([known.dataset, known.network, theirs, yours, known.protocol, caution])
    if not rows:
        return ""
    header = ["dataset", "network", "published", "yours", "published protocol", "caution"]
    caption = "Accuracy of the arm real on the test split, beside published ones"
    shown = report.table("published", header, rows, caption, words=(1, 4, 5))
    return render("published", table=shown)


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
    points = [
        (cells.cell_id(record), record.metrics["ratio"], record.metrics[METRIC])
        for record in records
        if record.kind == "fit_at_ratio"
        and record.status == "done"
        and {"ratio", METRIC} <= record.metrics.keys()
    ]
    if ratio is not None:
        on_curve = sorted({cell for cell, _, _ in points})
        points += [(cell, ratio, scores[cell]) for cell in on_curve if cell in scores]
    gains: dict[tuple[str, str, float], list[float]] = {}
    for (dataset, network, arm, seed), at, value in points:
        base = scores.get((dataset, network, "real", seed))
        if base is not None:
            gains.setdefault((dataset, arm, at), []).append(value - base)
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
