"""The report's first half: the answer, what was asked, results and contrasts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from mgdm_ray.report import figures, page, tables
from mgdm_ray.report.draft import Draft
from mgdm_ray.report.page import Html, text
from mgdm_ray.report.tables import DASH, MINUS, CellId, Tested, duration, result_rows
from mgdm_ray.stats import sentence, summarise

TINT_FULL = 0.10  # difference to real at which a table cell has its full colour
SCORES = ((tables.METRIC, "Balanced accuracy"), ("auroc", "AUROC"))


def head(draft: Draft) -> Html:
    context = draft.context
    question = context.question or (
        "Do synthetic images from a guided diffusion model make a classifier better?"
    )
    return page.join(
        [
            page.paragraph("mgdm-ray study report", "kicker"),
            page.tag("h1", text(context.study_name)),
            page.paragraph(question, "question"),
            _answer(draft),
            _tiles(draft),
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
        return page.tag("div", lead, class_="answer")
    first, *others = family
    lead = page.tag("p", text(_says(first)), class_="lead")
    more = page.tag("ul", page.join(page.tag("li", text(_says(t))) for t in others))
    note = first.contrast.note
    which = None if draft.primary else page.tag("span", text(" exploratory"), class_="note")
    return page.tag(
        "div",
        _badge(first.verdict),
        which,
        lead,
        more if others else None,
        page.paragraph(f"Reservation: {note}.", "note") if note else None,
        class_=f"answer {first.verdict.split()[0]}",
    )


def _tiles(draft: Draft) -> Html:
    lost = len(draft.expected) - len(draft.cells)
    rows = [
        (f"{len(draft.cells)} / {len(draft.expected)}", "cells evaluated"),
        (str(len(draft.datasets)), _count("dataset", draft.datasets)),
        (str(len(draft.networks)), _count("network", draft.networks)),
        (str(len(draft.arms)), _count("arm", draft.arms)),
        (str(len(draft.seeds)), _count("seed", draft.seeds)),
        (duration(draft.context.seconds), "wall time of the last run"),
    ]
    boxes = page.join(
        page.tag("div", page.tag("b", text(value)), page.tag("span", text(name)))
        for value, name in rows
    )
    warning = None
    if lost > 0:
        warning = page.tag(
            "p",
            text(f"{lost} planned cells are missing; contrasts that need them are not answered. "),
            page.tag("a", text("What failed and why"), href="#failures"),
            class_="note",
        )
    return page.join([page.tag("div", boxes, class_="tiles"), warning or Html("")])


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


def asked(draft: Draft) -> Html:
    arms = page.table(
        ["arm", "what is added to the real training set"],
        [[arm, page.cell(tables.ARM_MEANING.get(arm, ""), "words")] for arm in draft.arms],
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
    for metric, name in SCORES:
        cells = tables.scores(draft.records, metric)
        if not cells:
            continue
        parts.append(page.tag("h3", text(f"{name} on the test split")))
        parts += [_score_table(draft, cells, dataset) for dataset in draft.datasets]
    if not parts:
        return page.section("results", "Results", page.paragraph("No cell is done yet."))
    intro = page.paragraph(
        "Mean ± standard deviation over seeds; the last row over networks and seeds. The second "
        "line is the mean paired difference to real, which also sets the tint; the best of the "
        "complete arms is bold. Bold and tint describe, they do not test: see the contrasts.",
        "note",
    )
    return page.section("results", "Results", intro, _gain_plot(draft), *parts)


def _score_table(draft: Draft, cells: Mapping[CellId, float], dataset: str) -> Html:
    rows = [_score_row(draft, cells, dataset, network) for network in draft.networks]
    head = Html('<th scope="row"><b>all networks</b></th>')
    rows.append([head, *_score_row(draft, cells, dataset, None)[1:]])
    return page.table(["network", *draft.arms], rows, caption=_describe(draft, dataset))


def _score_row(
    draft: Draft, cells: Mapping[CellId, float], dataset: str, network: str | None
) -> list[str | Html]:
    found = {a: tables.summary(tables.select(cells, dataset, network, a)) for a in draft.arms}
    # An arm that lost cells has a mean over other cells: its gain is paired, its mean compares ill.
    full = max((s.n for s in found.values() if s), default=0)
    means = [s.mean for s in found.values() if s and s.n == full]
    top = max(means) if means and max(means) > min(means) else math.nan
    row: list[str | Html] = [network or "all"]
    for arm, summary in found.items():
        planned = [c for c in draft.expected if (c[0], c[2]) == (dataset, arm)]
        planned = [c for c in planned if network in (None, c[1])]
        if summary is None:
            row.append(page.cell(DASH, small="no cell done" if planned else ""))
            continue
        paired = tables.paired_gains(cells, arm, dataset)
        kept = {k: v for k, v in paired.items() if network in (None, k[0])}
        gain = summarise(kept.values()).mean if kept and arm != "real" else None
        small = [] if gain is None else [f"{gain:+.3f}"]
        if summary.n < len(planned):
            small.append(f"{summary.n} of {len(planned)} cells")
        best = "best" if summary.mean == top and summary.n == full else ""
        row.append(page.cell(summary.text(), best, _tint(gain), " · ".join(small)))
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
    header, *body = result_rows(draft.records)
    draft.table_file("summary", header, body)


def contrasts(draft: Draft) -> Html:
    family = [("primary", t) for t in draft.primary] + [("secondary", t) for t in draft.secondary]
    draft.table_file(
        "contrasts",
        ["family", "arm_a", "arm_b", "difference", "low", "high", "p", "p_holm", "p_datasets",
         "wins", "ties", "losses", "dz", "rank_biserial", "n", "missing", "low_here", "high_here",
         "p_here", "note"],
        [
            [name, t.contrast.arm_a, t.contrast.arm_b, t.contrast.difference, t.contrast.low,
             t.contrast.high, t.contrast.p, t.p_adjusted, t.contrast.p_datasets, t.contrast.wins,
             t.contrast.ties, t.contrast.losses, t.contrast.dz, t.contrast.rank_biserial,
             t.contrast.n, len(t.contrast.missing), *_over_images(t), t.contrast.note]
            for name, t in family
        ],
    )  # fmt: skip
    if not family:
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
        _contrast_table("The question of the study", draft.primary),
        _contrast_table("Also worth knowing (exploratory)", draft.secondary),
        _notes([*draft.primary, *draft.secondary]),
    )


def _contrast_table(caption: str, family: Sequence[Tested]) -> Html | None:
    numbers = ["difference", "95 % interval", "p", "p (Holm)", "p (datasets)", "dz"]
    numbers.append("wins, ties, losses")
    header = ["contrast", *numbers, "verdict"]
    rows: list[list[str | Html]] = []
    for t in family:
        c = t.contrast
        badge = page.tag("td", _badge(t.verdict))
        name = f"{c.arm_a} {MINUS} {c.arm_b}"
        if c.n == 0:
            rows.append([name, *[DASH] * 7, badge])
            continue
        here = c.here if c.here and not math.isnan(c.here.low) else None
        interval = page.cell(
            DASH if math.isnan(c.low) else f"{c.low:+.3f} to {c.high:+.3f}",
            small=f"{here.low:+.3f} to {here.high:+.3f}" if here else "",
        )
        size = page.cell(
            DASH if math.isnan(c.dz) else f"{c.dz:+.2f}",
            small="" if math.isnan(c.rank_biserial) else f"r {c.rank_biserial:+.2f}",
        )
        record = f"{c.wins}, {c.ties}, {c.losses}"
        p = page.cell(_p(c.p), small=_p(here.p) if here else "")
        ps = [p, _p(t.p_adjusted), _p(c.p_datasets)]
        rows.append([name, f"{c.difference:+.3f}", interval, *ps, size, record, badge])
    return page.table(header, rows, caption=caption) if rows else None


def _over_images(tested: Tested) -> list[float | str]:
    here = tested.contrast.here
    return ["", "", ""] if here is None else [here.low, here.high, here.p]


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


def _says(tested: Tested) -> str:
    words = sentence(tested.contrast, tested.p_adjusted)
    return words[:1].upper() + words[1:]


def _badge(verdict: str) -> Html:
    return page.tag("span", text(verdict), class_=f"badge {verdict.split()[0]}")


def _p(value: float) -> str:
    if math.isnan(value):
        return DASH
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _tint(gain: float | None) -> str:
    if gain is None or abs(gain) < 0.0005:
        return ""
    strength = 0.30 * min(1.0, abs(gain) / TINT_FULL)
    return f"background: rgb(var(--{'up' if gain > 0 else 'down'}) / {strength:.2f})"


def _count(noun: str, things: Sequence[object]) -> str:
    return noun if len(things) == 1 else noun + "s"
