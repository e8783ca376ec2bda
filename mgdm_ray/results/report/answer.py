"""The report's first screen: the answer in one sentence, its evidence, and the table behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace

from markupsafe import Markup

from mgdm_ray.evaluation.stats.intervals import Claim
from mgdm_ray.evaluation.stats.paired import CellId, Summary, summarise
from mgdm_ray.evaluation.stats.power import detectable_after
from mgdm_ray.results import ANSWER_FILE, HEADLINE_FILE
from mgdm_ray.results.report import cells, words
from mgdm_ray.results.report.artefacts import guide_at_chance
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, number

NAMES_SHOWN = 3
TINT_FULL = 0.10  # difference to real at which a table cell has its full colour


def head(report: Builder) -> Markup:
    missing = [words.cell_title(cell) for cell in report.expected if cell not in report.cells]
    return render(
        "head",
        report=report,
        missing=len(missing),
        names=words.first_of(missing, NAMES_SHOWN),
        seconds=sum(r.seconds for r in report.records if r.kind != "trial"),
        summary=_summary(report) if report.cells else "",
        forest=_forest(report),
        **_answer(report),
    )


def save_headline(report: Builder) -> None:
    """``contrast/disturb-duplicate/difference``, ``/cells``, and per interval ``/here/low`` etc.

    ``here``: on these datasets; ``general``: on datasets in general; each with ``/low``, ``/high``,
    ``/p_holm`` and ``/excluded`` (a difference larger than that), ``here`` also with
    ``/image_share``, the part of the variance that only more test images would reduce, and
    ``/draws`` per dataset that it covers (0, or missing in older files: one draw, taken as it is).
    Unknown numbers (the interval of a single pair) and contrasts that lack planned cells are left
    out. The lead sentence goes to a file of its own.
    """
    numbers = {
        f"contrast/{'-'.join(c.pair)}/{name}": float(value)
        for c in report.primary or report.secondary
        if not c.missing
        for name, value in (
            ("difference", c.difference),
            ("cells", c.n),
            *_interval_numbers("here", c.here),
            *([("here/draws", c.here.estimate.draws)] if c.here else []),
            *_interval_numbers("general", c.general),
        )
        if math.isfinite(value)
    }
    if report.context.margin is not None:
        numbers["margin"] = report.context.margin
    report.save(HEADLINE_FILE, json.dumps(numbers, indent=1).encode())
    lead = str(_answer(report)["lead"]).replace(words.MINUS, "-").replace("\N{NO-BREAK SPACE}", " ")
    report.save(ANSWER_FILE, lead.encode())


def _interval_numbers(name: str, found: Claim | None) -> list[tuple[str, float]]:
    if found is None:
        return []
    one = found.estimate
    return [
        (f"{name}/low", one.low),
        (f"{name}/high", one.high),
        (f"{name}/p_holm", found.p),
        (f"{name}/excluded", found.bound),
        (f"{name}/image_share", one.image_share),
    ]


def _answer(report: Builder) -> dict[str, object]:
    """Verdict, lead sentence and facts, from the primary contrasts if the study has them."""
    exploratory = [c for c in report.secondary if c.arm_a in cells.SYNTHETIC]
    family = report.primary or exploratory
    if not report.cells or not family:
        lead = "No answer: no cell has been evaluated yet."
        if report.cells:
            lead = "No answer: the study has no arm of synthetic images with another to compare."
        return {"lead": lead, "verdict": "", "which": "", "facts": []}
    first, *others = family
    absent = report.absent(first)
    smallest = [
        detectable_after(found.estimate if found else None, len(family))
        for found in (first.here, first.general)
    ]
    guides = [record for record in report.records if guide_at_chance(record)]
    # The other half of the question: is the arm better than nothing added?
    real = [c for c in report.secondary if c.pair == (first.arm_a, "real") and c.n]
    return {
        "lead": say("answer", first, absent),
        "verdict": "incomplete" if absent else first.verdict,
        "which": " against ".join(first.pair) + ("" if report.primary else ", exploratory"),
        "facts": [
            ("Evidence", "" if absent else say("evidence", first, *smallest)),
            (
                "Against real alone",
                " ".join(say("against_real", c, report.absent(c)) for c in real),
            ),
            ("Other controls", " ".join(say("other", c, report.absent(c)) for c in others)),
            ("Scope", say("scope", first, report.context.draws)),
            ("Caveats", say("caveats", first.note, report, guides)),
        ],
    }


def _summary(report: Builder) -> Markup:
    """Arm by dataset: the table that a paper would print."""
    scores, rows, star = report.cells, list[Row](), False
    for arm in report.arms:
        row: Row = [arm]
        for dataset in report.datasets:
            cell, mean = mean_cell(scores, arm, dataset)
            most = max(len(cells.select(scores, dataset, other)) for other in report.arms)
            fewer = mean is not None and mean.n < most
            star = star or fewer
            row.append(replace(cell, shown=f"{cell.shown}*") if fewer else cell)
        every = [g for d in report.datasets for g in cells.paired_gains(scores, arm, d).values()]
        gain = summarise(every).mean if every and arm != "real" else None
        rows.append([*row, number(gain, sign=True)])
    caption = (
        "Balanced accuracy on the test split: mean ± standard deviation over networks and seeds, "
        "and the mean paired gain over real"
    )
    caption += ". * Fewer cells than another arm: compare by the gain" if star else ""
    header = ["arm", *report.datasets, "gain over real"]
    return report.table("summary", header, rows, caption, class_="compact")


def mean_cell(
    scores: Mapping[CellId, float], arm: str, dataset: str, network: str | None = None
) -> tuple[Cell, Summary | None]:
    """Mean ± sd, tinted by the gain over real; and as numbers."""
    found = cells.mean(scores, dataset, arm, network)
    if found is None:
        return Cell(words.DASH), None
    gain = None if arm == "real" else cells.mean_gain(scores, arm, dataset, network)
    parts = {"sd": found.sd, "cells": found.n, "gain": gain}
    small = "" if gain is None else words.signed(gain)
    return Cell(found.text(), found.mean, parts, small, style=_tint(gain)), found


def _tint(gain: float | None) -> str:
    """The background of a table cell: green for a gain, orange for a loss."""
    if gain is None or abs(gain) < 0.0005:
        return ""
    strength = 0.30 * min(1.0, abs(gain) / TINT_FULL)
    return f"background: rgb(var(--{'up' if gain > 0 else 'down'}) / {strength:.2f})"


def _forest(report: Builder) -> str:
    family = [*report.primary, *report.secondary]
    if not any(c.n for c in family):
        return ""
    differences = [
        {
            d: list(cells.paired_gains(report.cells, c.arm_a, d, c.arm_b).values())
            for d in report.datasets
        }
        for c in family
    ]
    return report.plot("contrasts", outcomes.forest(family, differences, len(report.primary)))
