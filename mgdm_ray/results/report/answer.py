"""The report's first screen: one sentence, how sure it is, and the table it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mgdm_ray.evaluation.stats import Contrast, detectable_after, summarise
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, number
from mgdm_ray.results.report.tables import DASH, MINUS, Tested, duration

NAMES_SHOWN = 3
NOUN = {
    "duplicate": "copies of real images",
    "generate": "generated images",
    "roundtrip": "images after the unguided round trip",
    "perturb": "randomly perturbed images",
    "disturb": "disturbed images",
}
TINT_FULL = 0.10  # difference to real at which a table cell has its full colour


def head(draft: Draft) -> Html:
    context = draft.context
    question = context.question or (
        "Do synthetic images from a guided diffusion model make a classifier better?"
    )
    title = page.tag(
        "h1", text(context.study_name), page.tag("span", text("mgdm-ray study report"))
    )
    return page.join(
        [
            title,
            page.paragraph(question, "question"),
            _answer(draft),
            _size(draft),
            _summary(draft),
            _forest(draft),
        ]
    )


def _answer(draft: Draft) -> Html:
    """The first thing to read: what the primary contrasts say."""
    exploratory = [t for t in draft.secondary if t.contrast.arm_a in tables.SYNTHETIC]
    family = draft.primary or exploratory
    if not draft.cells or not family:
        reason = (
            "no cell has been evaluated yet."
            if not draft.cells
            else "the study has no arm of synthetic images with another to compare it to."
        )
        lead = page.tag("p", text(f"No answer: {reason}"), class_="lead")
        return page.tag("div", lead, _missing(draft), class_="answer")
    first, *others = family
    absent = _absent(draft, first.contrast)
    verdict = "incomplete" if absent else first.verdict
    pair = f" {first.contrast.arm_a} against {first.contrast.arm_b}"
    which = pair if draft.primary else f"{pair}, exploratory"
    rows = [
        ("How sure", "" if absent else how_sure(first, len(family))),
        ("Against real alone", _against_real(draft, first.contrast.arm_a)),
        ("Other controls", " ".join(_in_short(t, _absent(draft, t.contrast)) for t in others)),
        ("Says nothing of", unsaid(first.contrast)),
        ("Reservation", f"{_sentence_of(first.contrast.note)} {_at_chance(draft)}".strip()),
    ]
    return page.tag(
        "div",
        badge(verdict),
        page.tag("span", text(which), class_="note"),
        page.tag("p", text(answer(first, absent)), class_="lead"),
        _missing(draft),
        page.facts(rows),
        class_=f"answer {verdict.split()[0]}",
    )


def _at_chance(draft: Draft) -> str:
    """How much of the grid cannot show a difference."""
    if not draft.at_chance:
        return ""
    pairs = len({cell[:2] for cell in draft.cells})
    return (
        f"In {len(draft.at_chance)} of {pairs} pairs of dataset and network the network guesses in "
        "every arm: no difference can show there, and the mean is pulled towards zero."
    )


def _against_real(draft: Draft, arm: str) -> str:
    """The other half of the question: is the arm better than nothing added?"""
    for tested in draft.secondary:
        c = tested.contrast
        if (c.arm_a, c.arm_b) == (arm, "real") and c.n:
            absent = _absent(draft, c)
            found = "incomplete" if absent else f"{tested.verdict} (exploratory)"
            return f"{signed(c.difference)} ({_interval(c)}), {found}."
    return ""


def _absent(draft: Draft, c: Contrast) -> int:
    """Planned cells of the contrast's arms that are not there."""
    return sum(cell not in draft.cells for cell in draft.expected if cell[2] in (c.arm_a, c.arm_b))


def answer(tested: Tested, absent: int = 0) -> str:
    """The answer in one sentence with its interval; none where planned cells are ``absent``."""
    c, verdict = tested.contrast, tested.verdict
    if c.n == 0:
        return f"No answer: {c.arm_a} against {c.arm_b} has no cells to compare."
    where = "on this dataset" if c.datasets == 1 else f"on these {c.datasets} datasets"
    if absent:
        cells = f"{absent} of the cells that it needs {'is' if absent == 1 else 'are'} missing"
        return (
            f"No answer yet, {cells}; in those that are there, {where}, {_act(c)} changed balanced "
            f"accuracy by {signed(c.difference)} ({_interval(c)})."
        )
    start = f"{where[:1].upper()}{where[1:]}, {_act(c)}"
    if not verdict.startswith(("better", "worse")):
        change = f"changed balanced accuracy by {signed(c.difference)}"
        return f"{start} {change} ({_interval(c)}): {_unresolved(tested)}."
    verb = "raised" if c.difference > 0 else "lowered"
    found = f"{verdict}, {c.scope}" if c.scope else verdict
    return f"{start} {verb} balanced accuracy by {abs(c.difference):.3f} ({_interval(c)}): {found}."


def _act(c: Contrast) -> str:
    added = f"adding {NOUN.get(c.arm_a, c.arm_a)}"
    if c.arm_b == "real":
        return f"{added} to the real ones"
    return f"{added} instead of {NOUN.get(c.arm_b, c.arm_b)}"


def _unresolved(tested: Tested) -> str:
    c = tested.contrast
    if math.isnan(c.low):
        return "not resolved, a single pair tells nothing"
    if c.low <= 0 <= c.high:
        return "not resolved, it may be no change at all"
    return "not resolved, for not every test agrees with this interval"


def how_sure(tested: Tested, family: int) -> str:
    """p, wins and losses, and what could have been seen."""
    c = tested.contrast
    if c.n == 0:
        return ""
    cells = f"{c.n} paired cell{'s' if c.n > 1 else ''}"
    p = tested.p_adjusted
    shown = "" if math.isnan(p) else f"adjusted p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} over "
    words = f"{shown}{cells}: {c.wins} better, {c.ties} equal, {c.losses} worse."
    if c.here is not None and not math.isnan(c.here.low):
        ends = f"{signed(c.here.low)} to {signed(c.here.high)}"
        words += f" With test images varied as well: {ends}."
    seen = detectable_after(c, family)
    if not math.isnan(seen):
        words += f" The smallest change this study could have seen is about {seen:.3f}."
    return words[:1].upper() + words[1:]


def unsaid(c: Contrast) -> str:
    """What the contrast does not speak of."""
    if c.n == 0:
        return ""
    parts = ["another draw of synthetic images (there is one set per dataset and arm)"]
    if c.scope:
        few = c.datasets < 6
        why = "fewer than six cannot tell" if few else f"p = {c.p_datasets:.2g} over datasets"
        parts.insert(0, f"other datasets ({why})")
    return f"{', '.join([*parts, 'other networks'])} or longer training."


def _in_short(tested: Tested, absent: int) -> str:
    c, verdict = tested.contrast, "incomplete" if absent else tested.verdict
    if c.n == 0:
        return f"Against {NOUN.get(c.arm_b, c.arm_b)}: {verdict}."
    against = NOUN.get(c.arm_b, f"{c.arm_b} ({c.arm_a})")
    low_high = DASH if math.isnan(c.low) else f"{signed(c.low)} to {signed(c.high)}"
    return f"Against {against} {signed(c.difference)} ({low_high}), {verdict}."


def _missing(draft: Draft) -> Html | None:
    absent = [cell for cell in draft.expected if cell not in draft.cells]
    if not absent:
        return None
    names = "; ".join(
        f"{f' {tables.TIMES} '.join(cell[:3])}, seed {cell[3]}" for cell in absent[:NAMES_SHOWN]
    )
    more = f"; and {len(absent) - NAMES_SHOWN} more" if len(absent) > NAMES_SHOWN else ""
    words = f"{len(absent)} of {len(draft.expected)} planned cells are missing ({names}{more}). "
    link = page.tag("a", text("What failed and why"), href="#failures")
    return page.tag("p", page.tag("b", text("Incomplete. ")), text(words), link, class_="warning")


def _size(draft: Draft) -> Html:
    rows = [
        (f"{len(draft.cells)} / {len(draft.expected)}", "cells evaluated"),
        *(
            (str(len(things)), noun if len(things) == 1 else f"{noun}s")
            for noun, things in (
                ("dataset", draft.datasets),
                ("network", draft.networks),
                ("arm", draft.arms),
                ("seed", draft.seeds),
            )
        ),
        (duration(sum(r.seconds for r in draft.records if r.kind != "trial")), "of computing"),
    ]
    boxes = (page.tag("span", page.tag("b", text(value)), text(f" {name}")) for value, name in rows)
    return page.tag("p", page.join(boxes, " "), class_="size")


def _summary(draft: Draft) -> Html:
    """Arm by dataset: what a paper would print."""
    if not draft.cells:
        return Html("")
    most = {
        d: max((len(tables.select(draft.cells, d, arm=arm)) for arm in draft.arms), default=0)
        for d in draft.datasets
    }
    rows: list[list[str | Cell]] = []
    for arm in draft.arms:
        row: list[str | Cell] = [arm]
        every: list[float] = []
        for dataset in draft.datasets:
            gains = list(tables.paired_gains(draft.cells, arm, dataset).values())
            every += gains
            row.append(_mean_cell(draft, arm, dataset, gains, most[dataset]))
        row.append(number(summarise(every).mean if every and arm != "real" else None, sign=True))
        rows.append(row)
    star = any("*" in cell.shown for row in rows for cell in row if isinstance(cell, Cell))
    return draft.table(
        "summary",
        ["arm", *draft.datasets, "gain over real"],
        rows,
        caption="Balanced accuracy on the test split, mean ± standard deviation over networks and "
        "seeds, and the mean paired gain over real"
        + (". * Over fewer cells than another arm: compare by the gain" if star else ""),
        class_="compact",
    )


def _mean_cell(draft: Draft, arm: str, dataset: str, gains: Sequence[float], most: int) -> Cell:
    found = tables.summary(tables.select(draft.cells, dataset, arm=arm))
    if found is None:
        return Cell(DASH)
    gain = summarise(gains).mean if gains and arm != "real" else None
    return Cell(
        found.text() + ("*" if found.n < most else ""),
        found.mean,
        {"sd": found.sd, "cells": found.n, "gain": gain},
        small="" if gain is None else signed(gain),
        style=tint(gain),
    )


def _forest(draft: Draft) -> Html:
    family = [*draft.primary, *draft.secondary]
    if not any(t.contrast.n for t in family):
        return Html("")
    differences = [
        {
            d: list(
                tables.paired_gains(draft.cells, t.contrast.arm_a, d, t.contrast.arm_b).values()
            )
            for d in draft.datasets
        }
        for t in family
    ]
    return draft.plot(
        "contrasts",
        figures.forest([t.contrast for t in family], differences, len(draft.primary)),
        "Mean paired differences between arms with intervals",
        "Mean paired difference (diamond) and 95 % bootstrap interval "
        + ("over cells (bar). " if len(draft.datasets) == 1 else "clustered by dataset (bar). ")
        + "Dots are the cells: same dataset, network and seed under both arms.",
    )


def badge(verdict: str) -> Html:
    return page.tag("span", text(verdict), class_=f"badge {verdict.split()[0]}")


def tint(gain: float | None) -> str:
    """The background of a table cell: green for a gain, orange for a loss."""
    if gain is None or abs(gain) < 0.0005:
        return ""
    strength = 0.30 * min(1.0, abs(gain) / TINT_FULL)
    return f"background: rgb(var(--{'up' if gain > 0 else 'down'}) / {strength:.2f})"


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)


def _interval(c: Contrast) -> str:
    if math.isnan(c.low):
        return "no interval"
    return f"95 % interval {signed(c.low)} to {signed(c.high)}"


def _sentence_of(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}." if note else ""
