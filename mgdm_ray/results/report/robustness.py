"""Section on robustness: single datasets, networks at chance, leaked test images, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mgdm_ray.evaluation.chance import NEAR_CHANCE
from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast
from mgdm_ray.evaluation.stats.intervals import Interval, holm
from mgdm_ray.evaluation.stats.paired import Contrast, summarise
from mgdm_ray.evaluation.stats.ranks import Ranking, critical_difference, rank
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import outcomes
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, interval, number, p_value
from mgdm_ray.results.report.words import DASH, percent

ALL = "all, datasets fixed"


def robustness(report: Builder) -> Markup | None:
    if not report.cells:
        return None
    by_network: dict[str, list[str]] = {}
    for dataset, network in report.at_chance:
        by_network.setdefault(network, []).append(dataset)
    leaked = {name: images for name, images in report.context.leaked.items() if images}
    return render(
        "robustness",
        by_dataset=_by_dataset(report),
        units=[_unit(report, dataset) for dataset in report.datasets],
        has_draws=report.has_draws,
        at_chance="; ".join(f"{name} ({', '.join(where)})" for name, where in by_network.items()),
        near=f"{NEAR_CHANCE:g}",
        above_chance=_above_chance(report) if by_network else "",
        leaked=", ".join(f"{len(images)} of {name}" for name, images in leaked.items()),
        without_leaked=_without_leaks(report, leaked) if leaked else "",
        ranks=_ranks(report),
    )


def _unit(report: Builder, dataset: str) -> str:
    """What counts as a patient."""
    found = report.context.groups.get(dataset)
    stored = any(len(p.groups) for cell, p in report.predictions.items() if cell[0] == dataset)
    if found is None:
        return f"{dataset}: " + ("as stored" if stored else "no groups stored, each image counts")
    known = "unknown" if found.patients is None else str(found.patients)
    images = len(found.numbers)
    return f"{dataset}: {images} images, patients {known}, {len(found)} groups"


def _tested(report: Builder) -> list[Contrast]:
    return [c for c in report.primary or report.secondary if c.n]


def _paired(
    report: Builder, contrast: Contrast, together: bool = False
) -> dict[str, PairedPredictions] | None:
    """Predictions of both arms by dataset; ``together``: variants of a dataset in one group."""
    origins = report.origins if together else None
    return report.paired(contrast.pair, report.cells, origins)


def _by_dataset(report: Builder) -> Markup:
    rows: list[Row] = []
    for contrast in _tested(report):
        by_dataset = _paired(report, contrast) or {}
        found: dict[str, Interval | None] = {}
        smallest: dict[str, str] = {}
        for dataset in filter(by_dataset.get, report.datasets):
            paired = by_dataset[dataset]
            found[dataset] = image_contrast([paired])
            smallest[dataset] = str(min(paired.groups_by_class()))
        adjusted = holm([one.p if one else math.nan for one in found.values()])
        for (dataset, one), p in zip(found.items(), adjusted, strict=True):
            rows += _row(contrast.name, dataset, one, p, smallest[dataset])
        if contrast.here and contrast.here.estimate.images:
            rows += _row(contrast.name, ALL, contrast.here.estimate, contrast.here.p, DASH)
    header = ["contrast", "dataset", "difference", "95 % interval", "p (Holm)",
              "variance from test images", "pairs of cells", "test images",
              "patients", "patients of the rarest class"]  # fmt: skip
    return report.table("contrasts_by_dataset", header, rows, words=(1,))


def _row(name: str, dataset: str, found: Interval | None, p: float, smallest: str) -> list[Row]:
    """None without ``found``."""
    if found is None:
        return []
    share = found.image_share
    shown = Cell(DASH) if math.isnan(share) else Cell(percent(share), share)
    counts = str(found.cells), str(found.images), str(found.groups), smallest
    return [[name, dataset, *_numbers(found), p_value(p), shown, *counts]]


def _numbers(found: Interval | None) -> list[Cell]:
    if found is None:
        return [Cell(DASH), Cell(DASH)]
    return [number(found.difference, sign=True), interval(found.low, found.high)]


def _here(c: Contrast) -> list[Cell]:
    """Difference and interval on these datasets."""
    difference = Cell(DASH) if not c.n else number(c.difference, sign=True)
    return [difference, _numbers(c.here.estimate if c.here else None)[1]]


def _above_chance(report: Builder) -> Markup:
    """The contrasts again without networks at chance."""
    tested = _tested(report)
    others = report.contrasts(
        [c.pair for c in tested], lambda cell: cell[:2] not in report.at_chance
    )
    rows: list[Row] = [
        [c.name, *_here(c), str(c.n), *_here(other), str(other.n)]
        for c, other in zip(tested, others, strict=True)
    ]
    header = ["contrast", "all networks", "95 % interval", "pairs of cells",
              "without those at chance", "95 % interval without", "pairs without"]  # fmt: skip
    return report.table("without_guessing", header, rows)


def _without_leaks(report: Builder, leaked: Mapping[str, Sequence[int]]) -> Markup:
    """The contrasts again without test images that are (nearly) in another split."""
    # An image that leaks into the training set of one variant is left out of all of them.
    out: dict[str, list[int]] = {}
    for name, images in leaked.items():
        out.setdefault(report.origins.get(name, name), []).extend(images)
    rows: list[Row] = []
    for contrast in _tested(report):
        paired = _paired(report, contrast, together=True)
        if paired and contrast.here and contrast.here.estimate.images:
            left = all(len(set(out.get(n, ()))) < len(g.labels) for n, g in paired.items())
            kept = [g.without(out.get(n, ())) for n, g in paired.items()] if left else []
            found = image_contrast(kept) if kept else None
            rows.append([contrast.name, *_numbers(contrast.here.estimate), *_numbers(found)])
    header = ["contrast", "all test images", "95 % interval", "without leaked",
              "95 % interval without"]  # fmt: skip
    return report.table("without_leaked", header, rows)


def _ranks(report: Builder) -> list[tuple[str, str, str]]:
    """(what is ranked, words, diagram)."""
    blocks = list(dict.fromkeys(report.origins[d] for d in report.datasets))
    found = {
        what: rank({name: _block_means(report, place, name) for name in names}, blocks)
        for what, place, names in (("arms", 2, report.arms), ("networks", 1, report.networks))
        if len(names) > 1
    }
    refusals = {ranking.refused for ranking in found.values()}
    if len(found) == 2 and len(refusals) == 1 and "" not in refusals:
        return [("arms and networks", f"Not tested: {refusals.pop()}.", "")]
    return [(what, *_ranked(report, what, ranking)) for what, ranking in found.items()]


def _block_means(report: Builder, place: int, name: str) -> dict[str, float]:
    """Mean per dataset (variants together) of the cells whose id has ``name`` at ``place``; only
    of datasets in which none of them is missing."""
    means = {}
    for origin in dict.fromkeys(report.origins.values()):
        expected = [c for c in report.expected if report.origins[c[0]] == origin]
        mine = [cell for cell in expected if cell[place] == name]
        if mine and all(cell in report.cells for cell in mine):
            means[origin] = summarise(report.cells[cell] for cell in mine).mean
    return means


def _ranked(report: Builder, what: str, found: Ranking) -> tuple[str, str]:
    if not found.differs:
        return say("ranks", what, found, 0), ""
    difference = critical_difference(len(found.mean_ranks), found.blocks)
    diagram = report.plot(f"ranks-{what}", outcomes.rank_diagram(found))
    return say("ranks", what, found, difference), diagram
