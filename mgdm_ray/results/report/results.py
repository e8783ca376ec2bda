"""Sections: the question, the results cell by cell, and the contrasts between arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import Contrast, sentence
from mgdm_ray.results.report import cells
from mgdm_ray.results.report.answer import badge, mean_cell
from mgdm_ray.results.report.breakdowns import networks, ratios
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.cells import AdjustedContrast, CellId
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.page import render
from mgdm_ray.results.report.table import Cell, Row, interval, number, p_value
from mgdm_ray.results.report.words import DASH, counted, signed, span

ROUNDING = 1e-9
"""Means that differ by less are equal."""
METRIC_NAMES = {METRIC: "Balanced accuracy", "auroc": "AUROC"}


def question(report: Builder) -> Markup:
    rows = [[arm, cells.ARM_MEANING.get(arm, "")] for arm in report.arms]
    header = ["arm", "what is added to the real training set"]
    arms = report.table("arms", header, rows, words=(1,))
    counts = [f"{n} {kind}" for kind, n in report.context.plan_counts.items()]
    return render("question", arms=arms, counts=", ".join(counts))


def results(report: Builder) -> Markup:
    _save_cells(report)
    found = {metric: cells.scores(report.records, metric) for metric in METRIC_NAMES}
    tables = {
        METRIC_NAMES[metric]: [_score_table(report, metric, scores, d) for d in report.datasets]
        for metric, scores in found.items()
        if scores
    }
    return render(
        "results",
        tables=tables,
        main=METRIC_NAMES[METRIC],
        gains=_gain_plot(report) if tables else "",
        networks=networks(report),
        ratios=ratios(report),
    )


def _score_table(
    report: Builder, metric: str, scores: Mapping[CellId, float], dataset: str
) -> Markup:
    rows = [_score_row(report, scores, dataset, network) for network in report.networks]
    rows.append(["all networks", *_score_row(report, scores, dataset, None)[1:]])
    task, classes = report.info.get(dataset, {}).get("task"), report.classes(dataset)
    facts = [str(task)] if task else []
    facts += [f"{len(classes)} classes"] if classes else []
    described = f"{dataset} ({', '.join(facts)})" if facts else dataset
    return report.table(
        f"{metric}-{dataset}",
        ["network", *report.arms],
        rows,
        caption=f"{METRIC_NAMES[metric]}: {described}",
        class_="totalled",
    )


def _score_row(
    report: Builder, scores: Mapping[CellId, float], dataset: str, network: str | None
) -> Row:
    found = {arm: mean_cell(scores, arm, dataset, network) for arm in report.arms}
    # An arm that lost cells has a mean over other cells: only its paired gain can be compared.
    full = max(n for _, n in found.values())
    means = [_number(cell.value) for cell, n in found.values() if n == full and n]
    tied = not means or max(means) - min(means) < ROUNDING
    row: Row = [network or "all"]
    for arm, (cell, n) in found.items():
        planned = len(cells.select(dict.fromkeys(report.expected, 0.0), dataset, network, arm))
        small = cell.small
        if n < planned:
            missing = f"{n} of {counted(planned, 'cell')}" if n else "no cell done"
            small = f"{small} · {missing}" if small else missing
        best = n == full and not tied and _number(cell.value) > max(means) - ROUNDING
        row.append(replace(cell, small=small, class_="best" if best else ""))
    return row


def _number(value: object) -> float:
    return value if isinstance(value, float) else math.nan


def _gain_plot(report: Builder) -> str:
    arms = [arm for arm in report.arms if arm != "real"]
    per_dataset = {
        d: {arm: cells.paired_gains(report.cells, arm, d) for arm in arms} for d in report.datasets
    }
    if not any(gains for row in per_dataset.values() for gains in row.values()):
        return ""
    return report.plot("gains", outcomes.gains(per_dataset))


def _save_cells(report: Builder) -> None:
    done = [r for r in report.records if r.is_cell and r.status == "done"]
    metrics = sorted({name for record in done for name in record.metrics})
    rows = [[*cells.cell_id(r), *(r.metrics.get(m) for m in metrics), r.key] for r in done]
    report.table_file("cells", ["dataset", "network", "arm", "seed", *metrics, "key"], rows)


def contrasts(report: Builder) -> Markup:
    family = [*report.primary, *report.secondary]
    said = [sentence(t.contrast, t.p_adjusted) for t in report.primary]
    return render(
        "contrasts",
        primary=_contrast_table(report, "contrasts", "Primary contrasts", report.primary),
        sentences=[words[:1].upper() + words[1:] for words in said],
        secondary=_contrast_table(
            report, "contrasts-secondary", "Secondary contrasts (exploratory)", report.secondary
        ),
        notes=_notes(family),
    )


def _contrast_table(
    report: Builder, name: str, caption: str, family: Sequence[AdjustedContrast]
) -> Markup | str:
    header = ["contrast", "difference", "95 % interval", "p", "p (Holm)", "p (datasets)", "dz",
              "wins", "ties", "losses", "verdict"]  # fmt: skip
    rows: list[Row] = []
    for t in family:
        c = t.contrast
        facts = {"pairs": c.n, "missing": len(c.missing), "note": c.note}
        rows.append(
            [
                Cell(t.name, parts={"a": c.arm_a, "b": c.arm_b}),
                number(c.difference, sign=True),
                _interval_cell(c),
                _p_cell(c),
                p_value(t.p_adjusted),
                p_value(c.p_datasets if c.n else math.nan),
                _size_cell(c),
                *(str(count) if c.n else DASH for count in (c.wins, c.ties, c.losses)),
                Cell(t.verdict, t.verdict, facts, html=badge(t.verdict)),
            ]
        )
    return report.table(name, header, rows, caption=caption) if rows else ""


def _interval_cell(c: Contrast) -> Cell:
    """The interval clustered by dataset; below it the one over cells and test images."""
    cell = interval(c.low, c.high)
    if c.here is None or math.isnan(c.here.low):
        return cell
    here = {"low, test images": c.here.low, "high, test images": c.here.high}
    return replace(cell, parts={**cell.parts, **here}, small=span(c.here.low, c.here.high))


def _p_cell(c: Contrast) -> Cell:
    cell = p_value(c.p)
    if c.here is None or math.isnan(c.here.p):
        return cell
    return replace(cell, parts={"test images": c.here.p}, small=p_value(c.here.p).shown)


def _size_cell(c: Contrast) -> Cell:
    cell = number(c.dz, 2, sign=True)
    if math.isnan(c.rank_biserial):
        return cell
    small = f"r {signed(c.rank_biserial, 2)}"
    return replace(cell, parts={"rank_biserial": c.rank_biserial}, small=small)


def _notes(family: Iterable[AdjustedContrast]) -> list[str]:
    """Every caveat once, with the contrasts that it belongs to."""
    notes: dict[str, list[str]] = {}
    for t in family:
        if t.contrast.note:
            notes.setdefault(t.contrast.note, []).append(t.name)
    total = sum(map(len, notes.values()))
    return [
        f"{'All' if len(pairs) == total > 1 else ', '.join(pairs)}: {note}."
        for note, pairs in notes.items()
    ]
