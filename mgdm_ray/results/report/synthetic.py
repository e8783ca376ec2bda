"""Sections on the added images: the judge's measures, and near-copies of training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from scipy.stats import spearmanr

from mgdm_ray.evaluation.stats.paired import summarise
from mgdm_ray.results.report import cells
from mgdm_ray.results.report.artefacts import Assessed
from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.figures import models
from mgdm_ray.results.report.page import render, say
from mgdm_ray.results.report.table import Cell, Row, number
from mgdm_ray.results.report.words import DASH, decimal, percent

COLUMNS = {
    "images": "images",
    "fd": "FD",
    "fd_inception": "FD (Inception)",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "flip_rate": "flips",
    "entropy_mean": "entropy",
    "copy_rate": "near-copies",
}
SHARES = ("precision", "recall", "coverage", "flip_rate", "copy_rate")
DIGITS = {"kid": 4, "entropy_mean": 3}
"""Decimals; 2 elsewhere."""
REAL_OF = {"entropy_mean": "entropy_real"}
"""Measures of held-out real images that are not called NAME_real."""
FEWEST = 3  # points that can have a rank correlation
Panels = Mapping[str, Mapping[str, tuple[float, float, float]]]
"""Per dataset and arm (fd, fd of held-out real images, gain)."""


def synthetic(report: Builder) -> Markup | None:
    if not report.judges and not report.assessed:
        return None
    panels, entropies = _distances(report), _entropies(report)
    return render(
        "synthetic",
        assessed=bool(report.assessed),
        several=report.has_draws,
        judges=_judges(report),
        at_chance=", ".join(name for name, judge in report.judges.items() if judge.at_chance),
        overall=[_overall(report, dataset, rows) for dataset, rows in report.assessed.items()],
        by_class=[_by_class(report, dataset, rows) for dataset, rows in report.assessed.items()],
        distance_text=distance_text(panels),
        distance=report.plot("fd-against-gain", models.fd_against_gain(panels)) if panels else "",
        ranks=_ranks(report, panels),
        entropies=report.plot("entropy", models.entropies(entropies)) if entropies else "",
    )


def copies(report: Builder) -> Markup | None:
    """Whether the added images hold near-copies of patients' images."""
    rows: list[Row] = []
    for one in [one for found in report.assessed.values() for one in found]:
        m, copied = one.metrics, one.content.get("copies") or {}
        if "copy_rate" in m:
            shares = [_value("copy_rate", m.get(name)) for name in ("copy_rate", "copy_rate_real")]
            near = [m.get("near_distance"), m.get("near_distance_real"), copied.get("threshold")]
            distances = [_value("distance", value) for value in near]
            rows.append([one.dataset, one.name, *shares, *distances])
    shown = {dataset: pictures_of(report, dataset, "closest") for dataset in report.assessed}
    pictures = {dataset: found for dataset, found in shown.items() if found}
    if not rows and not pictures:
        return None
    header = ["dataset", "arm", "near-copies", "near-copies, real", "nearest (median)",
              "nearest, real", "threshold"]  # fmt: skip
    table = report.table("copies", header, rows, words=(1,))
    return render("copies", table=table, pictures=pictures, several=report.has_draws)


def pictures_of(report: Builder, dataset: str, what: str) -> list[dict[str, str]]:
    """``closest`` pairs, or images with their ``entropy``, of all arms; none if withheld."""
    shown = []
    for one in report.assessed.get(dataset, ()):
        path = one.folder / f"{what}.png" if one.folder else None
        if path and path.is_file() and dataset not in report.context.without_pictures:
            file = f"{what}-{dataset}-{one.name.replace(' ', '-')}"
            words = {"alt": f"{dataset}, {one.name}: {what}", "name": one.name, "caption": what}
            shown.append(report.picture(file, path.read_bytes(), **words))
    return shown


def _judges(report: Builder) -> Markup:
    rows: list[Row] = [
        [
            dataset,
            number(report.chance.get(dataset)),
            number(judge.metrics.get("val_balanced_accuracy")),
            number(judge.chance_limit("val")),
            number(judge.accuracy),
            number(judge.chance_limit("test")),
            f"at chance on {' and '.join(judge.at_chance)} images" if judge.at_chance else "",
        ]
        for dataset, judge in report.judges.items()
    ]
    header = ["judge of", "chance", "validation", "chance limit, validation", "test",
              "chance limit, test", "caveat"]  # fmt: skip
    caption = "Balanced accuracy of the judge, and the upper 95 % limit of chance in each split"
    return report.table("judges", header, rows, caption, words=(6,))


def _overall(report: Builder, dataset: str, found: Sequence[Assessed]) -> Markup:
    names = [name for name in COLUMNS if any(name in one.metrics for one in found)]
    rows: list[Row] = [
        [one.name, *(_value(name, one.metrics.get(name)) for name in names)] for one in found
    ]
    baseline: Row = ["held-out real"]
    for name in names:
        key = REAL_OF.get(name, f"{name}_real")
        known = [one.metrics[key] for one in found if key in one.metrics]
        baseline.append(_value(name, summarise(known).mean if known else None))
    header = ["arm", *(COLUMNS[name] for name in names)]
    caption = f"{dataset}: images that each arm adds, compared with real training images"
    rows.append(baseline)
    return report.table(f"synthetic-{dataset}", header, rows, caption, class_="totalled")


def _by_class(report: Builder, dataset: str, found: Sequence[Assessed]) -> Markup:
    classes = report.classes(dataset)
    given = [(one, row) for one in found for row in one.classes]
    names = [name for name in COLUMNS if any(row.get(name) is not None for _, row in given)]
    rows: list[Row] = []
    for one, row in given:
        label = int(row["label"])
        title = classes[label] if label < len(classes) else str(label)
        values = (_value(name, row.get(name)) for name in names)
        rows.append([one.name, Cell(title, title, {"label": label}), *values])
    header = ["arm", "class", *(COLUMNS[name] for name in names)]
    caption = f"{dataset}: by class"
    return report.table(f"synthetic-classes-{dataset}", header, rows, caption, words=(1,))


def _value(name: str, value: float | None) -> Cell:
    if value is None or math.isnan(value):
        return Cell(DASH)
    if name == "images" or abs(value) >= 1000:
        return Cell(decimal(value, 0), value)
    return Cell(percent(value, 1) if name in SHARES else decimal(value, DIGITS.get(name, 2)), value)


def _distances(report: Builder) -> Panels:
    """Arms with a distance and a mean gain of the cells that were trained with their images."""
    panels: dict[str, dict[str, tuple[float, float, float]]] = {}
    for dataset, found in report.assessed.items():
        for one in found:
            gain = cells.mean_gain(report.cells, one.arm, dataset, one.network)
            if "fd" in one.metrics and gain is not None:
                real = one.metrics.get("fd_real", math.nan)
                panels.setdefault(dataset, {})[one.name] = (one.metrics["fd"], real, gain)
    return panels


def _ranks(report: Builder, panels: Panels) -> Markup:
    rows: list[Row] = []
    for dataset, points in panels.items():
        fewer = {name: point for name, point in points.items() if name != "duplicate"}
        ranks = [number(rank_correlation(some), 2, sign=True) for some in (points, fewer)]
        rows.append([dataset, str(len(points)), *ranks])
    header = ["dataset", "arms", "Spearman", "without duplicate"]
    return report.table("fd-ranks", header, rows, "Rank correlation of FD and gain")


def rank_correlation(points: Mapping[str, tuple[float, float, float]]) -> float:
    """Spearman of distance and gain; nan for fewer than three arms, or where one is constant."""
    distances = [fd for fd, _, _ in points.values()]
    gains = [gain for _, _, gain in points.values()]
    if len(points) < FEWEST or len(set(distances)) == 1 or len(set(gains)) == 1:
        return math.nan
    return float(spearmanr(distances, gains).statistic)


def distance_text(panels: Panels) -> str:
    """Signs of the rank correlations, and the limits of so few arms."""
    known = [rho for rho in map(rank_correlation, panels.values()) if not math.isnan(rho)]
    most = max(map(len, panels.values()), default=0)
    copies = any("duplicate" in points for points in panels.values())
    return say("distances", known, FEWEST, most, 2 / math.factorial(most), copies)


def _entropies(report: Builder) -> dict[str, dict[str, dict[str, Sequence[float]]]]:
    """Bins by dataset and arm, or ``real`` for held-out real images."""
    panels: dict[str, dict[str, dict[str, Sequence[float]]]] = {}
    for dataset, found in report.assessed.items():
        for one in found:
            bins = one.content.get("entropy_bins")
            if not bins:
                continue
            real = {"edges": bins["edges"], "counts": bins["real"]}
            rows = panels.setdefault(dataset, {"real": real})
            rows[one.name] = {"edges": bins["edges"], "counts": bins["synthetic"]}
    return panels
