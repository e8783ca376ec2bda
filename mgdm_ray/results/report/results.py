"""What was asked, the results cell by cell, and the contrasts between arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import Contrast, sentence, summarise
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.answer import badge, tint
from mgdm_ray.results.report.breakdowns import curves, networks
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, interval, number, p_value
from mgdm_ray.results.report.tables import DASH, MINUS, CellId, Tested

METRIC_NAMES = {METRIC: "Balanced accuracy", "auroc": "AUROC"}


def asked(draft: Draft) -> Html:
    arms = draft.table(
        "arms",
        ["arm", "what is added to the real training set"],
        [[arm, tables.ARM_MEANING.get(arm, "")] for arm in draft.arms],
        words=(1,),
    )
    counts = ", ".join(f"{n} {kind}" for kind, n in draft.context.plan_counts.items())
    return page.section(
        "question",
        "What was asked",
        page.paragraph(
            "A cell is one network, trained on one dataset under one arm with one seed, and "
            "scored once on the test split. All arms of a cell start from the same weights, take "
            "the same number of optimiser steps and draw their batches from the same seed. "
            "Guidance settings were chosen on validation data only, and for disturb: the other "
            "synthetic arms use the stage-1 samples that were chosen with it. Diffusion models and "
            "synthetic images were made once per dataset: seeds and networks repeat what comes "
            "after them."
        ),
        arms,
        page.paragraph(f"Planned jobs: {counts}.", "note") if counts else None,
    )


def results(draft: Draft) -> Html:
    _cell_files(draft)
    parts: list[Html] = []
    for metric, name in METRIC_NAMES.items():
        cells = tables.scores(draft.records, metric)
        if not cells:
            continue
        shown = [_score_table(draft, metric, cells, dataset) for dataset in draft.datasets]
        if metric == METRIC:
            parts += [page.tag("h3", text(f"{name} on the test split")), *shown]
        else:
            parts.append(page.fold(f"{name} on the test split", *shown))
    if not parts:
        return page.section("results", "Results", page.paragraph("No cell is done yet."))
    intro = page.paragraph(
        "Mean ± standard deviation over seeds; the last row over networks and seeds. The second "
        "line is the mean paired difference to real, which also sets the tint; the best of the "
        "complete arms is bold. Bold and tint describe, they do not test: see the contrasts.",
        "note",
    )
    return page.section(
        "results", "Results", intro, _gain_plot(draft), *parts, networks(draft), curves(draft)
    )


def _score_table(draft: Draft, metric: str, cells: Mapping[CellId, float], dataset: str) -> Html:
    rows = [_score_row(draft, cells, dataset, network) for network in draft.networks]
    rows.append(["all networks", *_score_row(draft, cells, dataset, None)[1:]])
    return draft.table(
        f"{metric}-{dataset}",
        ["network", *draft.arms],
        rows,
        caption=f"{METRIC_NAMES[metric]}: {_describe(draft, dataset)}",
        class_="totalled",
    )


def _score_row(
    draft: Draft, cells: Mapping[CellId, float], dataset: str, network: str | None
) -> list[str | Cell]:
    found = {a: tables.summary(tables.select(cells, dataset, network, a)) for a in draft.arms}
    # An arm that lost cells has a mean over other cells: its gain is paired, its mean compares ill.
    full = max((s.n for s in found.values() if s), default=0)
    means = [s.mean for s in found.values() if s and s.n == full]
    top = max(means) if means and max(means) > min(means) else math.nan
    row: list[str | Cell] = [network or "all"]
    for arm, summary in found.items():
        planned = [c for c in draft.expected if (c[0], c[2]) == (dataset, arm)]
        planned = [c for c in planned if network in (None, c[1])]
        if summary is None:
            row.append(Cell(DASH, small="no cell done" if planned else ""))
            continue
        paired = tables.paired_gains(cells, arm, dataset)
        kept = {k: v for k, v in paired.items() if network in (None, k[0])}
        gain = summarise(kept.values()).mean if kept and arm != "real" else None
        small = [] if gain is None else [f"{gain:+.3f}"]
        if summary.n < len(planned):
            small.append(f"{summary.n} of {len(planned)} cells")
        best = "best" if summary.mean == top and summary.n == full else ""
        parts = {"sd": summary.sd, "cells": summary.n, "gain": gain}
        shown = " · ".join(small)
        row.append(Cell(summary.text(), summary.mean, parts, shown, best, tint(gain)))
    return row


def _describe(draft: Draft, dataset: str) -> str:
    info = draft.info.get(dataset, {})
    classes = info.get("classes") or ()
    facts = [str(info["task"])] if info.get("task") else []
    facts += [f"{len(classes)} classes"] if classes else []
    return dataset + (f" ({', '.join(facts)})" if facts else "")


def _gain_plot(draft: Draft) -> Html | None:
    arms = [arm for arm in draft.arms if arm != "real"]
    per_dataset = {
        d: {arm: tables.paired_gains(draft.cells, arm, d) for arm in arms} for d in draft.datasets
    }
    if not any(cells for row in per_dataset.values() for cells in row.values()):
        return None
    return draft.plot(
        "gains",
        figures.gains(per_dataset),
        "Gain over real per arm and dataset",
        "Gain in balanced accuracy over the arm real, paired by network and seed. Dots: cells, "
        "networks side by side in alphabetical order. Bars: means.",
    )


def _cell_files(draft: Draft) -> None:
    done = [r for r in draft.records if r.is_cell and r.status == "done"]
    metrics = sorted({name for record in done for name in record.metrics})
    rows = [[*tables.cell_id(r), *(r.metrics.get(m, "") for m in metrics), r.key] for r in done]
    draft.table_file("cells", ["dataset", "network", "arm", "seed", *metrics, "key"], rows)


def contrasts(draft: Draft) -> Html:
    if not draft.primary and not draft.secondary:
        return page.section(
            "contrasts", "Contrasts", page.paragraph("No two comparable arms in this study.")
        )
    return page.section(
        "contrasts",
        "Contrasts between arms",
        page.paragraph(
            "Differences in balanced accuracy over paired cells. Interval: 95 % bootstrap that "
            "draws datasets, then cells within them (cells only, where there is one dataset); the "
            "second line takes the datasets as they are and varies cells and test images. p: "
            "sign-flip permutation of cells; below it that of test images and cells. p (Holm): "
            "the larger of the two, adjusted within its table. dz: mean difference over its "
            "standard deviation; r: rank-biserial correlation. An arm is called better or worse "
            "only if no planned cell is missing, both intervals exclude 0 and p (Holm) ≤ 0.05. "
            "'Here' says of what: of these datasets and these synthetic images. Whether it holds "
            "for other datasets is told by p (datasets), which flips whole datasets, is adjusted "
            "as well, and needs six of them for one contrast and seven for three.",
            "note",
        ),
        _contrast_table(draft, "contrasts", "The question of the study", draft.primary),
        _in_words(draft.primary),
        _contrast_table(
            draft, "contrasts-secondary", "Also worth knowing (exploratory)", draft.secondary
        ),
        _notes([*draft.primary, *draft.secondary]),
    )


def _contrast_table(draft: Draft, name: str, caption: str, family: Sequence[Tested]) -> Html | None:
    header = ["contrast", "difference", "95 % interval", "p", "p (Holm)", "p (datasets)", "dz",
              "wins", "ties", "losses", "verdict"]  # fmt: skip
    rows: list[list[str | Cell]] = []
    for t in family:
        c = t.contrast
        pair = {"a": c.arm_a, "b": c.arm_b}
        facts = {"pairs": c.n, "missing": len(c.missing), "note": c.note}
        rows.append(
            [
                Cell(f"{c.arm_a} {MINUS} {c.arm_b}", parts=pair),
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
    return draft.table(name, header, rows, caption=caption) if rows else None


def _in_words(family: Sequence[Tested]) -> Html | None:
    said = [sentence(t.contrast, t.p_adjusted) for t in family]
    items = [page.tag("li", text(words[:1].upper() + words[1:])) for words in said]
    return page.tag("ul", page.join(items)) if items else None


def _interval_cell(c: Contrast) -> Cell:
    """Below the interval clustered by dataset that over cells and test images."""
    cell = interval(c.low, c.high)
    if c.here is None or math.isnan(c.here.low):
        return cell
    here = {"low, test images": c.here.low, "high, test images": c.here.high}
    return replace(
        cell, parts={**cell.parts, **here}, small=interval(c.here.low, c.here.high).shown
    )


def _p_cell(c: Contrast) -> Cell:
    cell = p_value(c.p)
    if c.here is None or math.isnan(c.here.p):
        return cell
    return replace(cell, parts={"test images": c.here.p}, small=p_value(c.here.p).shown)


def _size_cell(c: Contrast) -> Cell:
    cell = number(c.dz, 2, sign=True)
    if math.isnan(c.rank_biserial):
        return cell
    small = f"r {c.rank_biserial:+.2f}"
    return replace(cell, parts={"rank_biserial": c.rank_biserial}, small=small)


def _notes(family: Iterable[Tested]) -> Html | None:
    """Every reservation once, with the contrasts it belongs to."""
    notes: dict[str, list[str]] = {}
    for t in family:
        if t.contrast.note:
            pair = f"{t.contrast.arm_a} {MINUS} {t.contrast.arm_b}"
            notes.setdefault(t.contrast.note, []).append(pair)
    total = sum(map(len, notes.values()))
    items = [
        page.tag("li", text(f"{'All' if len(pairs) == total > 1 else ', '.join(pairs)}: {note}."))
        for note, pairs in notes.items()
    ]
    return page.tag("ul", page.join(items), class_="note") if items else None
