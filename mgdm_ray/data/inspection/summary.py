"""The facts of a survey as rows of a table and lines: for the terminal and the page alike."""

from __future__ import annotations

from collections import Counter
from statistics import median

from mgdm_ray.data.inspection.patients import images_per_patient
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.listing import shown

HEADER = ("class", *SPLITS, "all")


def class_rows(found: Survey) -> list[tuple[str, ...]]:
    """Name and number of images per split, in the order of the labels, and their sums."""
    counts = found.counts()
    rows = []
    for label, name in enumerate(found.listing.classes):
        numbers = [counts[split][label] for split in SPLITS]
        rows.append((shown(name)[1:-1], *map(str, numbers), str(sum(numbers))))
    sums = [sum(counts[split]) for split in SPLITS]
    return [*rows, ("all", *map(str, sums), str(sum(sums)))]


def facts(found: Survey) -> list[tuple[str, str]]:
    """(what, value) pairs."""
    number = len(found.listing.items)
    damaged = f", and {len(found.damaged)} that cannot be read" if found.damaged else ""
    rows = [
        ("found", f"{found.source.kind}: {number} images, {len(found.listing.classes)} classes"),
        ("splits", _splits(found)),
        ("patients", _patients(found)),
    ]
    if number:
        kinds = Counter(one.kind for one in found.facts)
        colour = sum(one.colour for one in found.facts)
        rows += [
            ("sizes", _sizes(found)),
            ("kinds", ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())),
            ("colour", f"{colour} in colour, {number - colour} grey"),
        ]
    rows[0] = (rows[0][0], rows[0][1] + damaged)
    return rows


def median_sides(found: Survey) -> tuple[int, int]:
    """Median width and height."""
    return (
        round(median(one.width for one in found.facts)),
        round(median(one.height for one in found.facts)),
    )


def lines(found: Survey) -> list[str]:
    """The summary for a terminal."""
    rows = [HEADER, *class_rows(found)]
    width = min(60, max(len(row[0]) for row in rows))
    table = [
        f"  {row[0][:width]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows
    ]
    with_progress = [f"{name + ':':<10}{value}" for name, value in facts(found)]
    return [
        f"{found.source.config.name}: {found.source.path}",
        with_progress[0],
        *table,
        *with_progress[1:],
    ]


def _sizes(found: Survey) -> str:
    ordered = sorted(found.facts, key=lambda one: (one.width * one.height, one.width))
    least, most = ordered[0], ordered[-1]
    wide, high = median_sides(found)
    return (
        f"{least.width} x {least.height} the smallest, {wide} x {high} the median, "
        f"{most.width} x {most.height} the largest (width x height)"
    )


def _splits(found: Survey) -> str:
    if found.given_splits:
        return "those that came with the images; what they lack is chosen"
    split = found.source.config.split
    return (
        f"chosen, {split.val:.0%} val and {split.test:.0%} test, stratified by class, "
        f"seed {split.seed}"
    )


def _patients(found: Survey) -> str:
    numbers = images_per_patient(found.listing)
    if not numbers:
        return "not known"
    items = found.listing.items
    splits: dict[str, set[str | None]] = {}
    for item in items:
        if item.group:
            splits.setdefault(item.group, set()).add(item.split)
    both = sum(len(found_in) > 1 for found_in in splits.values())
    unknown = len(items) - sum(numbers)
    return (
        f"{len(numbers)}, with {numbers[0]} to {numbers[-1]} images each (median "
        f"{median(numbers):g}); {both} in two splits"
        + (f"; of {unknown} images not known" if unknown else "")
    )
