"""Dataset by dataset, with the test images' own luck; without leaked images; and by ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure

from mgdm_ray.evaluation.chance import NEAR_CHANCE
from mgdm_ray.evaluation.stats import (
    Answers,
    Contrast,
    ImageContrast,
    Ranking,
    image_contrast,
    rank,
    summarise,
)
from mgdm_ray.evaluation.stats.ranks import critical_difference
from mgdm_ray.results.report import figures, page
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.paired_predictions import common_cells, pair_predictions, without
from mgdm_ray.results.report.table import Cell, interval, number, p_value
from mgdm_ray.results.report.tables import DASH, MINUS, Tested

ALL = "all, as they are"


def statistics(draft: Draft) -> Html | None:
    """Per-dataset contrasts, sensitivity to leaked images, ranks of arms and of networks."""
    if not draft.cells:
        return None
    parts = [_by_dataset(draft), _without_chance(draft), _without_leaks(draft), *_ranks(draft)]
    return page.section("statistics", "How far it can be believed", *parts)


def _tested(draft: Draft) -> list[Tested]:
    return [t for t in draft.primary or draft.secondary if t.contrast.n]


def _answers(draft: Draft, tested: Tested, together: bool = False) -> dict[str, Answers] | None:
    pair = tested.contrast.arm_a, tested.contrast.arm_b
    origins = draft.origins if together else None
    return pair_predictions(draft.predictions, pair, common_cells(draft.cells, pair), origins)


def _by_dataset(draft: Draft) -> Html | None:
    rows: list[list[str | Cell]] = []
    for tested in _tested(draft):
        name = f"{tested.contrast.arm_a} {MINUS} {tested.contrast.arm_b}"
        for dataset, answers in (_answers(draft, tested) or {}).items():
            found = image_contrast([answers])
            if found is not None:
                smallest = min(len(k) for k in answers.classes())
                rows.append(_row(name, dataset, found, smallest))
        if tested.contrast.here is not None:
            rows.append(_row(name, ALL, tested.contrast.here, None))
    if not rows:
        return None
    header = ["contrast", "dataset", "difference", "95 % interval", "p",
              "variance from test images", "pairs of cells", "test images",
              "of the rarest class"]  # fmt: skip
    note = page.paragraph(
        "Differences in balanced accuracy with an interval over both the trained networks (seeds "
        "and networks) and the test images, which all cells of a dataset share. The test images' "
        "part of the variance is what more seeds or networks cannot reduce. Not covered: other "
        "diffusion models and synthetic images, of which there is one draw per dataset. Single "
        "datasets are not adjusted for how many of them are looked at.",
        "note",
    )
    return page.join([page.tag("h3", text("Dataset by dataset")), note,
                      draft.table("contrasts_by_dataset", header, rows, words=(1,))])  # fmt: skip


def _row(name: str, dataset: str, found: ImageContrast, smallest: int | None) -> list[str | Cell]:
    share = found.image_share
    return [
        name,
        dataset,
        number(found.difference, sign=True),
        interval(found.low, found.high),
        p_value(found.p),
        Cell(DASH) if math.isnan(share) else Cell(f"{share:.0%}", share),
        str(found.cells),
        str(found.images),
        DASH if smallest is None else str(smallest),
    ]


def _both(found: ImageContrast | None) -> list[Cell]:
    if found is None:
        return [Cell(DASH), Cell(DASH)]
    return [number(found.difference, sign=True), interval(found.low, found.high)]


def _without_chance(draft: Draft) -> Html | None:
    """The contrasts again where networks have learnt something."""
    if not draft.at_chance:
        return None
    by_network: dict[str, list[str]] = {}
    for dataset, network in draft.at_chance:
        by_network.setdefault(network, []).append(dataset)
    names = "; ".join(f"{network} ({', '.join(where)})" for network, where in by_network.items())
    intro = page.paragraph(
        f"Guess in every arm, within {NEAR_CHANCE:g} of chance: {names}. They need more steps "
        "(downstream.steps), or should be left out: an arm can make no difference to them, and "
        "they pull mean differences towards zero. They stay in all other numbers; here are the "
        "contrasts without them, for orientation: over cells only, and not adjusted.",
        "note",
    )
    tested = _tested(draft)
    pairs = [(t.contrast.arm_a, t.contrast.arm_b) for t in tested]
    rows: list[list[str | Cell]] = [
        [f"{a} {MINUS} {b}", *_numbers(t.contrast), *_numbers(learners.contrast)]
        for (a, b), t, learners in zip(
            pairs, tested, draft.contrasts_of_learners(pairs), strict=True
        )
    ]
    header = ["contrast", "all networks", "95 % interval", "pairs of cells", "without guessing",
              "95 % interval without", "pairs without"]  # fmt: skip
    table = draft.table("without_guessing", header, rows) if rows else None
    title = page.tag("h3", text("Without networks that guess"))
    return page.join([title, intro, table or Html("")])


def _numbers(c: Contrast) -> list[str | Cell]:
    if not c.n:
        return [DASH, DASH, "0"]
    return [number(c.difference, sign=True), interval(c.low, c.high), str(c.n)]


def _without_leaks(draft: Draft) -> Html | None:
    """The contrasts again without test images that are, nearly or exactly, in another split."""
    leaked = {name: list(images) for name, images in draft.context.leaked.items() if images}
    if not leaked:
        return None
    # What leaks into the training set of any variant is left out of all of them.
    by_origin: dict[str, list[int]] = {}
    for name, images in leaked.items():
        by_origin.setdefault(draft.origins.get(name, name), []).extend(images)
    rows: list[list[str | Cell]] = []
    for tested in _tested(draft):
        answers, here = _answers(draft, tested, together=True), tested.contrast.here
        if answers is None or here is None:
            continue
        left = [group for group in _clean(answers, by_origin) if group is not None]
        found = image_contrast(left) if len(left) == len(answers) else None
        name = f"{tested.contrast.arm_a} {MINUS} {tested.contrast.arm_b}"
        rows.append([name, *_both(here), *_both(found)])
    counts = ", ".join(f"{len(images)} of {name}" for name, images in leaked.items())
    intro = page.paragraph(
        f"Test images that are, pixel by pixel or nearly (correlation above 0.99), also in a split "
        f"that was trained or selected on: {counts}. What is wrong with the data names them; at "
        "few pixels, different pictures of a smooth organ can correlate as much. They stay in all "
        "other numbers; here are the contrasts without them.",
        "note",
    )
    header = ["contrast", "all test images", "95 % interval", "without leaked",
              "95 % interval without"]  # fmt: skip
    table = draft.table("without_leaked", header, rows) if rows else None
    title = page.tag("h3", text("Without leaked test images"))
    return page.join([title, intro, table or Html("")])


def _clean(answers: Mapping[str, Answers], leaked: Mapping[str, list[int]]) -> list[Answers | None]:
    """None where nothing is left of a dataset."""
    return [
        without({name: group}, leaked)[0]
        if len(set(leaked.get(name, ()))) < len(group.labels)
        else None
        for name, group in answers.items()
    ]


def _ranks(draft: Draft) -> list[Html]:
    blocks = list(dict.fromkeys(draft.origins[d] for d in draft.datasets))
    found = {
        what: rank({name: _block_means(draft, place, name) for name in names}, blocks)
        for what, place, names in (("arms", 2, draft.arms), ("networks", 1, draft.networks))
        if len(names) > 1
    }
    refusals = {ranking.refused for ranking in found.values()}
    if len(found) == 2 and len(refusals) == 1 and "" not in refusals:
        return [_not_ranked("arms and networks", found["arms"])]
    averaged = {"arms": "networks and seeds", "networks": "arms and seeds"}
    return [
        _not_ranked(what, one) if one.refused else _ranked(draft, what, one, averaged[what])
        for what, one in found.items()
    ]


def _not_ranked(what: str, found: Ranking) -> Html:
    title = page.tag("h3", text(f"Ranks of {what}"))
    return page.join([title, page.paragraph(f"Not tested: {found.refused}.", "note")])


def _block_means(draft: Draft, place: int, name: str) -> dict[str, float]:
    """Mean per dataset (variants together) of the cells whose id has ``name`` at ``place``; only
    of datasets in which none of them is missing."""
    means = {}
    for origin in dict.fromkeys(draft.origins[d] for d in draft.datasets):
        cells = [c for c in draft.expected if draft.origins[c[0]] == origin and c[place] == name]
        if cells and all(cell in draft.cells for cell in cells):
            means[origin] = summarise(draft.cells[cell] for cell in cells).mean
    return means


def _ranked(draft: Draft, what: str, found: Ranking, averaged: str) -> Html:
    title = page.tag("h3", text(f"Ranks of {what}"))
    p = f"p = {found.p:.3f}" if found.p >= 0.001 else "p < 0.001"
    words = (
        f"Friedman's test over {found.blocks} datasets, each averaged over {averaged}: {p} (Iman "
        "and Davenport). "
    )
    if not found.differs:
        words += f"No ranking of {what} can be told from chance, so none is shown."
        return page.join([title, page.paragraph(words)])
    cd = critical_difference(len(found.mean_ranks), found.blocks)
    words += f"Mean ranks, 1 is best; {what} that a bar joins are not told apart by Nemenyi's test "
    words += f"(critical difference {cd:.2f})."
    picture = draft.plot(f"ranks-{what}", diagram(found), f"Mean ranks of {what}", words)
    return page.join([title, picture])


@figures.styled
def diagram(found: Ranking) -> Figure:
    """Critical-difference diagram of Demsar (2006)."""
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    names = list(found.mean_ranks)
    table = pd.DataFrame(1.0, index=names, columns=names)
    for (a, b), p in found.nemenyi.items():
        table.loc[a, b] = table.loc[b, a] = p
    figure = Figure(figsize=(figures.WIDTH, 1.0 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    critical_difference_diagram(
        dict(found.mean_ranks),
        table,
        ax=axes,
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        color_palette={name: figures.ARM_COLOURS.get(name, figures.INK) for name in names},
    )
    return figure
