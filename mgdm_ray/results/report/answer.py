"""The report's first screen: the answer in one sentence, its evidence, and the table behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from markupsafe import Markup

from mgdm_ray.evaluation.stats import Contrast, datasets_needed, detectable_after, summarise
from mgdm_ray.results.report import cells, page, words
from mgdm_ray.results.report.assessed import guide_at_chance
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.cells import AdjustedContrast, CellId
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.table import Cell, Row, number

HEADLINE_FILE = "headline.json"
ANSWER_FILE = "answer.txt"
"""Holds the report's first sentence, for the console."""
QUESTION = "Do synthetic images from a guided diffusion model make a classifier better?"
NAMES_SHOWN = 3
NOUN = {
    "duplicate": "copies of real images",
    "generate": "generated images",
    "roundtrip": "images after the unguided round trip",
    "perturb": "randomly perturbed images",
    "disturb": "disturbed images",
}
TINT_FULL = 0.10  # difference to real at which a table cell has its full colour


def head(report: Builder) -> Markup:
    missing = [cell for cell in report.expected if cell not in report.cells]
    names = [f"{f' {words.TIMES} '.join(cell[:3])}, seed {cell[3]}" for cell in missing]
    return page.render(
        "head",
        report=report,
        question=report.context.question or QUESTION,
        missing=len(missing),
        names=words.first_of(names, NAMES_SHOWN),
        sizes={
            "dataset": len(report.datasets),
            "network": len(report.networks),
            "arm": len(report.arms),
            "seed": len(report.seeds),
        },
        seconds=sum(r.seconds for r in report.records if r.kind != "trial"),
        summary=_summary(report) if report.cells else "",
        forest=_forest(report),
        **_answer(report),
    )


def save_headline(report: Builder) -> None:
    """``contrast/disturb-duplicate/difference``, ``/low``, ``/high``, ``/p_holm``, ``/cells``.

    And ``/image_share``, the part of the variance that only more test images would reduce.
    Unknown numbers (the interval of a single pair) and contrasts that lack planned cells are left
    out. The lead sentence goes to a file of its own.
    """
    numbers = {
        f"contrast/{'-'.join(t.pair)}/{name}": float(value)
        for t in report.primary or report.secondary
        if not t.contrast.missing
        for name, value in (
            ("difference", t.contrast.difference),
            ("low", t.contrast.low),
            ("high", t.contrast.high),
            ("p_holm", t.p_adjusted),
            ("cells", t.contrast.n),
            ("image_share", t.contrast.here.image_share if t.contrast.here else math.nan),
        )
        if math.isfinite(value)
    }
    report.save(HEADLINE_FILE, json.dumps(numbers, indent=1).encode())
    lead = str(_answer(report)["lead"]).replace(words.MINUS, "-").replace("\N{NO-BREAK SPACE}", " ")
    report.save(ANSWER_FILE, lead.encode())


def _answer(report: Builder) -> dict[str, object]:
    """Verdict, lead sentence and facts, from the primary contrasts if the study has them."""
    exploratory = [t for t in report.secondary if t.contrast.arm_a in cells.SYNTHETIC]
    family = report.primary or exploratory
    if not report.cells or not family:
        lead = "No answer: no cell has been evaluated yet."
        if report.cells:
            lead = "No answer: the study has no arm of synthetic images with another to compare."
        return {"lead": lead, "verdict": "", "which": "", "facts": []}
    first, *others = family
    absent = _absent(report, first.contrast)
    caveats = [_sentence_of(first.contrast.note), _at_chance(report), *_weak_models(report)]
    return {
        "lead": answer(first, absent),
        "verdict": "incomplete" if absent else first.verdict,
        "which": " against ".join(first.pair) + ("" if report.primary else ", exploratory"),
        "facts": [
            ("Evidence", "" if absent else evidence_text(first, len(family))),
            ("Against real alone", _against_real(report, first.contrast.arm_a)),
            ("Other controls", " ".join(_in_short(t, _absent(report, t.contrast)) for t in others)),
            ("Scope", scope_text(first.contrast, len(family))),
            ("Caveats", " ".join(filter(None, caveats))),
        ],
    }


def _at_chance(report: Builder) -> str:
    if not report.at_chance:
        return ""
    pairs = len({cell[:2] for cell in report.cells})
    return (
        f"In {len(report.at_chance)} of {pairs} dataset-network pairs the network is at chance in "
        "every arm: these pairs cannot show a difference, and pull the mean towards zero."
    )


def _weak_models(report: Builder) -> Iterator[str]:
    """Guides and judges at chance, and leaked test images, a sentence each."""
    guides = [
        f"{record.dataset} ({words.percent(record.metrics['share_of_t_at_chance'])})"
        for record in report.records
        if guide_at_chance(record)
    ]
    judges = [
        f"{name} ({' and '.join(judge.at_chance)} images)"
        for name, judge in report.judges.items()
        if judge.at_chance
    ]
    leaks = [
        f"{words.counted(len(images), 'test image')} of {name}"
        for name, images in report.context.leaked.items()
        if images
    ]
    for start, found in (
        ("The guide is at chance at most noise levels: ", guides),
        ("The judge is at chance: ", judges),
        ("Leaked between splits: ", leaks),
    ):
        if found:
            yield f"{start}{', '.join(found)}."


def _against_real(report: Builder, arm: str) -> str:
    """The other half of the question: is the arm better than nothing added?"""
    for tested in report.secondary:
        c = tested.contrast
        if tested.pair == (arm, "real") and c.n:
            incomplete = _absent(report, c) > 0
            found = "incomplete" if incomplete else f"{tested.verdict} (exploratory)"
            return f"{words.signed(c.difference)} ({words.interval_text(c.low, c.high)}), {found}."
    return ""


def _absent(report: Builder, c: Contrast) -> int:
    """Planned cells of the contrast's arms that are missing."""
    arms = c.arm_a, c.arm_b
    return sum(cell not in report.cells for cell in report.expected if cell[2] in arms)


def answer(tested: AdjustedContrast, absent: int = 0) -> str:
    """The answer in one sentence with its interval; none where planned cells are ``absent``."""
    c, verdict = tested.contrast, tested.verdict
    if c.n == 0:
        return f"No answer: {c.arm_a} and {c.arm_b} have no cells in common."
    where = "on this dataset" if c.datasets == 1 else f"on these {c.datasets} datasets"
    interval = words.interval_text(c.low, c.high)
    changed = f"changed balanced accuracy by {words.signed(c.difference)} ({interval})"
    if absent:
        lack = f"{words.counted(absent, 'required cell')} {'is' if absent == 1 else 'are'} missing"
        return f"No answer yet: {lack}; in the others, {where}, {_act(c)} {changed}."
    start = f"{where[:1].upper()}{where[1:]}, {_act(c)}"
    if not verdict.startswith(("better", "worse")):
        return f"{start} {changed}: {_unresolved(c)}."
    verb = "raised" if c.difference > 0 else "lowered"
    found = f"{verdict}, {c.scope}" if c.scope else verdict
    return f"{start} {verb} balanced accuracy by {abs(c.difference):.3f} ({interval}): {found}."


def _act(c: Contrast) -> str:
    added = f"adding {NOUN.get(c.arm_a, c.arm_a)}"
    if c.arm_b == "real":
        return f"{added} to the real ones"
    return f"{added} instead of {NOUN.get(c.arm_b, c.arm_b)}"


def _unresolved(c: Contrast) -> str:
    if math.isnan(c.low):
        return "not resolvable from a single pair"
    if c.low <= 0 <= c.high:
        return "not resolvable, the interval includes 0"
    return "not resolvable, the tests do not all agree with this interval"


def evidence_text(tested: AdjustedContrast, family: int) -> str:
    """p, wins and losses, and the minimum detectable difference."""
    c = tested.contrast
    if c.n == 0:
        return ""
    p = "" if math.isnan(tested.p_adjusted) else f"Adjusted {words.p_text(tested.p_adjusted)} over "
    pairs = words.counted(c.n, "paired cell")
    text = f"{p}{pairs}: {c.wins} better, {c.ties} equal, {c.losses} worse."
    if c.here is not None and not math.isnan(c.here.low):
        text += f" With test images varied as well: {words.span(c.here.low, c.here.high)}."
    smallest = detectable_after(c, family)
    if not math.isnan(smallest):
        text += (
            f" Minimum detectable difference at 80 % power: {smallest:.3f} (from this study's own "
            "spread; --plan assumes or measures it beforehand)."
        )
    return text


def scope_text(c: Contrast, family: int) -> str:
    """What the contrast, one of ``family``, cannot be generalised to."""
    if c.n == 0:
        return ""
    other = ["another draw of synthetic images (one set per dataset and arm)", "other networks"]
    if c.scope:
        needed = datasets_needed(family)
        p = f"p = {c.p_datasets:.2g} over datasets"
        why = f"needs at least {needed} independent ones" if c.datasets < needed else p
        other.insert(0, f"other datasets ({why})")
    return f"Not covered: {', '.join(other)}, longer training."


def _in_short(tested: AdjustedContrast, absent: int) -> str:
    c, verdict = tested.contrast, "incomplete" if absent else tested.verdict
    against = NOUN.get(c.arm_b, f"{c.arm_b} ({c.arm_a})")
    if c.n == 0:
        return f"Against {against}: {verdict}."
    return (
        f"Against {against} {words.signed(c.difference)} ({words.span(c.low, c.high)}), {verdict}."
    )


def _summary(report: Builder) -> Markup:
    """Arm by dataset: the table that a paper would print."""
    scores, rows, star = report.cells, list[Row](), False
    for arm in report.arms:
        row: Row = [arm]
        for dataset in report.datasets:
            cell, found = mean_cell(scores, arm, dataset)
            most = max(len(cells.select(scores, dataset, arm=other)) for other in report.arms)
            fewer = 0 < found < most
            star = star or fewer
            row.append(replace(cell, shown=f"{cell.shown}*") if fewer else cell)
        every = [g for d in report.datasets for g in cells.paired_gains(scores, arm, d).values()]
        mean = summarise(every).mean if every and arm != "real" else None
        rows.append([*row, number(mean, sign=True)])
    caption = (
        "Balanced accuracy on the test split: mean ± standard deviation over networks and seeds, "
        "and the mean paired gain over real"
    )
    caption += ". * Fewer cells than another arm: compare by the gain" if star else ""
    header = ["arm", *report.datasets, "gain over real"]
    return report.table("summary", header, rows, caption, class_="compact")


def mean_cell(
    scores: Mapping[CellId, float], arm: str, dataset: str, network: str | None = None
) -> tuple[Cell, int]:
    """Mean ± sd, tinted by the gain over real; and the number of cells."""
    found = cells.summary(cells.select(scores, dataset, network, arm))
    if found is None:
        return Cell(words.DASH), 0
    gain = cells.mean_gain(cells.paired_gains(scores, arm, dataset, network=network))
    gain = None if arm == "real" else gain
    parts = {"sd": found.sd, "cells": found.n, "gain": gain}
    small = "" if gain is None else words.signed(gain)
    return Cell(found.text(), found.mean, parts, small, style=_tint(gain)), found.n


def _forest(report: Builder) -> str:
    family = [*report.primary, *report.secondary]
    if not any(t.contrast.n for t in family):
        return ""
    differences = [
        {
            d: list(cells.paired_gains(report.cells, t.pair[0], d, t.pair[1]).values())
            for d in report.datasets
        }
        for t in family
    ]
    figure = outcomes.forest([t.contrast for t in family], differences, len(report.primary))
    return report.plot("contrasts", figure)


def badge(verdict: str) -> Markup:
    return Markup('<span class="badge {}">{}</span>').format(verdict.split()[0], verdict)


def _tint(gain: float | None) -> str:
    """The background of a table cell: green for a gain, orange for a loss."""
    if gain is None or abs(gain) < 0.0005:
        return ""
    strength = 0.30 * min(1.0, abs(gain) / TINT_FULL)
    return f"background: rgb(var(--{'up' if gain > 0 else 'down'}) / {strength:.2f})"


def _sentence_of(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}." if note else ""
