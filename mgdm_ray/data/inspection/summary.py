"""The facts of a survey as table rows and lines, for the terminal and the page alike."""

from __future__ import annotations

from collections import Counter
from statistics import median

from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.listing import shown

HEADER = ("class", *SPLITS, "all")


def class_rows(found: Survey) -> list[tuple[str, ...]]:
    """Class name and number of images per split, in label order, then the sums."""
    counts = found.counts().values()
    names = [*(shown(name)[1:-1] for name in found.listing.classes), "all"]
    numbers = [*zip(*counts, strict=True), tuple(map(sum, counts))]
    return [(name, *map(str, row), str(sum(row))) for name, row in zip(names, numbers, strict=True)]


def facts(found: Survey) -> list[tuple[str, str]]:
    """(name, value) pairs."""
    number = len(found.listing.items)
    damaged = f", and {len(found.damaged)} unreadable" if found.damaged else ""
    classes = f"{len(found.listing.classes)} classes"
    rows = [
        ("found", f"{found.source.kind}: {number} images, {classes}{damaged}"),
        ("splits", _splits(found)),
        ("patients", _patients(found)),
    ]
    if not number:
        return rows
    ordered = sorted(found.facts, key=lambda one: (one.width * one.height, one.width))
    colour = sum(one.colour for one in found.facts)
    wide, high = median_sides(found)
    kinds = Counter(one.kind for one in found.facts)
    return [
        *rows,
        (
            "sizes",
            f"smallest {ordered[0].width} x {ordered[0].height}, median {wide} x {high}, largest "
            f"{ordered[-1].width} x {ordered[-1].height} (width x height)",
        ),
        ("formats", ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())),
        ("colour", f"{colour} in colour, {number - colour} grey"),
    ]


def median_sides(found: Survey) -> tuple[int, int]:
    wide, high = zip(*((one.width, one.height) for one in found.facts), strict=True)
    return round(median(wide)), round(median(high))


def lines(found: Survey) -> list[str]:
    rows = [HEADER, *class_rows(found)]
    width = min(60, max(len(row[0]) for row in rows))
    table = [
        f"  {row[0][:width]:<{width}}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows
    ]
    first, *others = [f"{name + ':':<10}{value}" for name, value in facts(found)]
    return [f"{found.source.config.name}: {found.source.path}", first, *table, *others]


def _splits(found: Survey) -> str:
    if found.given_splits:
        return "as given with the images; missing ones are chosen"
    split = found.source.config.split
    shares = f"{split.val:.0%} val, {split.test:.0%} test"
    return f"chosen: {shares}, stratified by class, seed {split.seed}"


def _patients(found: Survey) -> str:
    items = found.listing.items
    numbers = sorted(Counter(item.group for item in items if item.group).values())
    if not numbers:
        return "unknown"
    unknown = len(items) - sum(numbers)
    return (
        f"{len(numbers)}, with {numbers[0]} to {numbers[-1]} images each (median "
        f"{median(numbers):g}); {len(found.listing.split_groups())} in more than one split"
        + (f"; unknown for {unknown} images" if unknown else "")
    )
