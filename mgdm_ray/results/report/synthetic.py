"""The report's sections on the added images: what the judge says of them, and near-copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import spearmanr

from mgdm_ray.evaluation.stats import summarise
from mgdm_ray.results.report import figures, page, tables
from mgdm_ray.results.report.assessed import Assessed
from mgdm_ray.results.report.draft import Draft
from mgdm_ray.results.report.page import Html, text
from mgdm_ray.results.report.table import Cell, number
from mgdm_ray.results.report.tables import DASH
from mgdm_ray.results.report.thumbnails import light

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
REAL_OF = {"entropy_mean": "entropy_real"}
"""Where the number of held-out real images is not called NAME_real."""
FEWEST = 3  # points that can have a rank correlation


def synthetic(draft: Draft) -> Html | None:
    """Distances, flips, entropy per arm, and whether distance ranks arms as accuracy does."""
    if not draft.judges and not draft.assessed:
        return None
    if not draft.assessed:
        waiting = page.paragraph("The judge is trained, but has judged no images yet.")
        return page.section("synthetic", "Synthetic images", _judges(draft), waiting)
    return page.section(
        "synthetic",
        "Synthetic images, as an independent network sees them",
        page.paragraph(
            "The judge is a network that was trained on real training images only; it neither "
            "guided the images nor is it evaluated. FD and KID: distance of its features to those "
            "of real training images (0: the same distribution). Precision: share of images that "
            "lie among real ones; recall and coverage: share of the real ones that are reached; "
            "density may pass 1. Flips: share of images in which the judge sees another class than "
            "their label. The row of held-out real images is the yardstick: the judge knows its "
            "training images, so that even new images of patients lie at some distance from them.",
            "note",
        ),
        _judges(draft),
        *(_overall(draft, dataset, rows) for dataset, rows in draft.assessed.items()),
        page.fold("Class by class", *_by_class(draft)),
        _distance(draft),
        _entropies(draft),
    )


def copies(draft: Draft) -> Html | None:
    """Are there patients in the added images?"""
    rows: list[list[str | Cell]] = []
    pictures = []
    for dataset, found in draft.assessed.items():
        rows += [_copy_row(dataset, one) for one in found if "copy_rate" in one.metrics]
        shown = _pictures(draft, found, "closest.png", "closest")
        if shown:
            pictures += [page.tag("h3", text(dataset)), shown]
    if not rows and not pictures:
        return None
    header = ["dataset", "arm", "near-copies", "near-copies, real", "nearest (median)",
              "nearest, real", "threshold"]  # fmt: skip
    return page.section(
        "copies",
        "Copies of training images",
        page.paragraph(
            "A near-copy lies nearer to a training image than the threshold, which is set by how "
            "near held-out real images come: in blurred pixels, mirror images included, relative "
            "to the fifty nearest (0: a copy, 1: no nearer to one than to fifty). The arm "
            "duplicate consists of copies and shows what the measure finds. A share of held-out "
            "images passes the threshold as well (real): patients look alike. What looks like the "
            "same picture below is what a hospital must not publish.",
            "note",
        ),
        draft.table("copies", header, rows, words=(1,)) if rows else None,
        page.paragraph("The closest pairs: added image beside its training image.")
        if pictures
        else None,
        *pictures,
    )


def entropy_grids(draft: Draft, dataset: str) -> Html | None:
    """The arms' images with the judge's entropy under each."""
    return _pictures(draft, draft.assessed.get(dataset, ()), "entropy.png", "entropy")


def _pictures(draft: Draft, found: Sequence[Assessed], file: str, what: str) -> Html | None:
    shown = []
    for one in found:
        data = one.picture(file)
        if data is None or one.dataset in draft.context.without_pictures:
            continue
        stem = one.name.replace(" ", "-")
        draft.save(f"figures/{what}-{one.dataset}-{stem}.png", data)
        label = page.join([page.tag("b", text(one.name)), text(f" · {what}")])
        shown.append(page.image(light(data), f"{one.dataset}, {one.name}: {what}", label))
    return page.tag("div", page.join(shown), class_="grids smooth") if shown else None


def _judges(draft: Draft) -> Html | None:
    rows: list[list[str | Cell]] = []
    lost = []
    for dataset, judge in draft.judges.items():
        classes = draft.info.get(dataset, {}).get("classes") or ()
        if judge.at_chance:
            lost.append(dataset)
        rows.append(
            [
                dataset,
                number(judge.metrics.get("val_balanced_accuracy")),
                number(judge.accuracy),
                number(1 / len(classes) if classes else None),
                number(judge.chance_limit),
                "no better than guessing" if judge.at_chance else "",
            ]
        )
    if not rows:
        return None
    header = ["judge of", "validation", "test", "chance", "guessing stays below", "reservation"]
    warning = None
    if lost:
        warning = page.paragraph(
            f"On {', '.join(lost)} the judge does no better than guessing: there, what it says of "
            "flips and entropy says nothing of the images, and its distances little.",
            "warning",
        )
    caption = "How good the judge is itself: balanced accuracy"
    return page.join(
        [draft.table("judges", header, rows, caption=caption, words=(5,)), warning or Html("")]
    )


def _overall(draft: Draft, dataset: str, found: Sequence[Assessed]) -> Html:
    names = [name for name in COLUMNS if any(name in one.metrics for one in found)]
    rows: list[list[str | Cell]] = [
        [one.name, *(_value(name, one.metrics.get(name)) for name in names)] for one in found
    ]
    yardstick: list[str | Cell] = ["held-out real"]
    for name in names:
        key = REAL_OF.get(name, f"{name}_real")
        known = [one.metrics[key] for one in found if key in one.metrics]
        yardstick.append(_value(name, summarise(known).mean if known else None))
    return draft.table(
        f"synthetic-{dataset}",
        ["arm", *(COLUMNS[name] for name in names)],
        [*rows, yardstick],
        caption=f"{dataset}: images that each arm adds, against real training images",
        class_="totalled",
    )


def _by_class(draft: Draft) -> list[Html]:
    parts = []
    for dataset, found in draft.assessed.items():
        classes = draft.info.get(dataset, {}).get("classes") or ()
        given = [(one, row) for one in found for row in one.classes]
        names = [name for name in COLUMNS if any(row.get(name) is not None for _, row in given)]
        rows: list[list[str | Cell]] = []
        for one, row in given:
            label = int(row["label"])
            title = str(classes[label]) if label < len(classes) else str(label)
            values = (_value(name, row.get(name)) for name in names)
            rows.append([one.name, Cell(title, parts={"label": label}, value=title), *values])
        if rows:
            header = ["arm", "class", *(COLUMNS[name] for name in names)]
            caption = f"{dataset}: by class"
            name = f"synthetic-classes-{dataset}"
            parts.append(draft.table(name, header, rows, caption=caption, words=(1,)))
    return parts


def _value(name: str, value: float | None) -> Cell:
    if value is None or math.isnan(value):
        return Cell(DASH)
    if name == "images":
        return Cell(f"{value:.0f}", value)
    if name in SHARES:
        return Cell(f"{100 * value:.1f} %", value)
    return Cell(f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}", value)


def _copy_row(dataset: str, one: Assessed) -> list[str | Cell]:
    m = one.metrics
    threshold = (one.content.get("copies") or {}).get("threshold")
    return [
        dataset,
        one.name,
        _value("copy_rate", m.get("copy_rate")),
        _value("copy_rate", m.get("copy_rate_real")),
        _value("distance", m.get("near_distance")),
        _value("distance", m.get("near_distance_real")),
        _value("distance", threshold),
    ]


def _gain(draft: Draft, one: Assessed) -> float:
    """Mean gain over real of the cells that were trained with these images; nan without any."""
    paired = tables.paired_gains(draft.cells, one.arm, one.dataset)
    kept = [gain for (network, _), gain in paired.items() if one.network in (None, network)]
    return summarise(kept).mean if kept else math.nan


def _distance(draft: Draft) -> Html | None:
    panels: dict[str, dict[str, tuple[float, float, float]]] = {}
    for dataset, found in draft.assessed.items():
        for one in found:
            gain = _gain(draft, one)
            if "fd" in one.metrics and not math.isnan(gain):
                real = one.metrics.get("fd_real", math.nan)
                panels.setdefault(dataset, {})[one.name] = (one.metrics["fd"], real, gain)
    if not panels:
        return None
    rows: list[list[str | Cell]] = []
    for dataset, points in panels.items():
        fewer = {name: point for name, point in points.items() if name != "duplicate"}
        rows.append(
            [
                dataset,
                str(len(points)),
                number(rank_correlation(points), 2, sign=True),
                number(rank_correlation(fewer), 2, sign=True),
            ]
        )
    plot = draft.plot(
        "fd-against-gain",
        figures.fd_against_gain(panels),
        "Mean gain over real against Frechet distance, a point per arm",
        "One point per arm: Frechet distance of its images to real training images, and the mean "
        "gain of the networks that were trained with them. If the distance told what images are "
        "worth, the points would fall from left to right. Dashed: held-out real images.",
    )
    header = ["dataset", "arms", "Spearman", "without duplicate"]
    table = draft.table("fd-ranks", header, rows, caption="Rank correlation of FD and gain")
    title = page.tag("h3", text("Does the Frechet distance rank arms as accuracy does?"))
    return page.join([title, page.paragraph(distance_words(panels)), plot, table])


def rank_correlation(points: Mapping[str, tuple[float, float, float]]) -> float:
    """Spearman of distance and gain; nan for fewer than three arms, or where one is constant."""
    distances = [fd for fd, _, _ in points.values()]
    gains = [gain for _, _, gain in points.values()]
    if len(points) < FEWEST or len(set(distances)) == 1 or len(set(gains)) == 1:
        return math.nan
    return float(spearmanr(distances, gains).statistic)


def distance_words(panels: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """What the rank correlations come to, and how little so few arms can show."""
    found = {dataset: rank_correlation(points) for dataset, points in panels.items()}
    known = [rho for rho in found.values() if not math.isnan(rho)]
    if not known:
        return f"Not to be told: it takes at least {FEWEST} arms with different numbers."
    nearer = sum(rho < 0 for rho in known)
    most = max(len(points) for points in panels.values())
    best = 2 / math.factorial(most)
    words = (
        f"If it did, the correlation would be negative (nearer to real images, larger gain). That "
        f"is its sign in {nearer} of {len(known)} dataset{'s' if len(known) > 1 else ''}. "
        f"With at most {most} arms this describes and tests nothing: even a perfect ranking of "
        f"{most} has p = {best:.2g}."
    )
    if any("duplicate" in points for points in panels.values()):
        words += (
            " Copies of real images are near whatever they are worth, for they show the networks "
            "nothing new: see the ranks without duplicate as well."
        )
    return words


def _entropies(draft: Draft) -> Html | None:
    panels: dict[str, dict[str, dict[str, Sequence[float]]]] = {}
    for dataset, found in draft.assessed.items():
        for one in found:
            bins = one.content.get("entropy_bins")
            if not bins:
                continue
            rows = panels.setdefault(
                dataset, {"real": {"edges": bins["edges"], "counts": bins["real"]}}
            )
            rows[one.name] = {"edges": bins["edges"], "counts": bins["synthetic"]}
    if not panels:
        return None
    plot = draft.plot(
        "entropy",
        figures.entropies(panels),
        "Distribution of the judge's entropy, per arm and for held-out real images",
        "Entropy of the judge's prediction, share of images per bin: added images by arm (lines) "
        "and held-out real images (area). Guidance to uncertain images should move mass to the "
        "right; far beyond the area lie images such as no patient gives.",
    )
    return page.join([page.tag("h3", text("How uncertain is the judge?")), plot])
