"""Judge a survey: what would invalidate a study, what may bias it, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mgdm_ray.data.inspection.duplicates import Pair
from mgdm_ray.data.inspection.patients import guess_group
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.listing import shown, some
from mgdm_ray.data.sources.prepare import patients_tested, tiny_classes

Level = Literal["error", "warning", "ok"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
LONG = 1.34
"""Longer side over shorter side from which an image is far from square."""
UNEVEN = 3.0
"""Largest class over smallest class from which classes count as imbalanced."""
FITTED = {
    "pad": "They get black bars",
    "crop": "Only their middle is used",
    "stretch": "Their aspect ratio changes",
}


@dataclass(frozen=True)
class Finding:
    """One sentence and, unless all is well, what to do."""

    level: Level
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (f". {self.advice}" if self.advice else "")


def judge(found: Survey, copies: list[list[int]], near: list[Pair]) -> list[Finding]:
    """All findings, errors first. ``copies``: groups of rows of identical images."""
    findings = [
        *_files(found),
        *_classes(found),
        *_identical(found, copies),
        *_near(found, near),
        *_pixels(found),
        *_patients(found),
        *_privacy(found),
    ]
    levels = [finding.level for finding in findings]
    if "error" not in levels:
        number = levels.count("warning")
        verdict = f"no errors; decide on the {number} warning(s) above: they can change the results"
        findings.append(Finding("ok", verdict if number else "no problems found"))
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def caption(found: Survey, row: int) -> str:
    """Path, split and class of an image."""
    item = found.listing.items[row]
    number = f" slice {item.slice}" if item.slice is not None else ""
    return f"{shown(item.path)}{number} ({item.split}, {shown(found.listing.classes[item.label])})"


def _named(found: Survey, rows: Sequence[int]) -> str:
    return some([caption(found, row) for row in rows])


def _files(found: Survey) -> Iterable[Finding]:
    yield from (Finding("error", text) for text in found.errors)
    yield from (Finding("warning", text) for text in found.warnings)
    if found.damaged:
        refused = found.source.config.reading.damaged == "refuse"
        examples = some([f"{shown(path)} ({why})" for path, why in found.damaged.items()])
        yield Finding(
            "error" if refused else "warning",
            f"{len(found.damaged)} file(s) cannot be read: {examples}",
            "Repair or remove them, or set reading.damaged: leave_out"
            if refused
            else "The study leaves them out",
        )
    if ignored := found.listing.ignored:
        examples = some([shown(name) for name in ignored])
        yield Finding("ok", f"{len(ignored)} file(s) that are not images are ignored: {examples}")


def _classes(found: Survey) -> Iterable[Finding]:
    counts, names = found.counts(), found.listing.classes
    for split in SPLITS:
        empty = [shown(n) for n, count in zip(names, counts[split], strict=True) if not count]
        text = f"no {split} image of class {', '.join(empty)}"
        if empty and split == "train":
            yield Finding("error", text, "Add images, or remove the class")
        elif empty:
            yield Finding("warning", f"{text}: it is not measured there", "Add images of it")
    for text in tiny_classes(found.listing):
        yield Finding("warning", text, "Add images, or merge it with another class")
    train = counts["train"]
    if min(train) and max(train) / min(train) >= UNEVEN:
        yield Finding(
            "warning",
            f"the largest class has {max(train) / min(train):.1f} times as many training images as "
            "the smallest",
            "Look at balanced accuracy; set synthetic.balance: balanced and "
            "downstream.class_weighted: true (init writes both)",
        )


def _identical(found: Survey, copies: list[list[int]]) -> Iterable[Finding]:
    items = found.listing.items
    across = [g for g in copies if len({items[row].split for row in g}) > 1]
    conflict = [g for g in copies if len({items[row].label for row in g}) > 1]
    within = [g for g in copies if g not in across and g not in conflict]
    kinds: list[tuple[list[list[int]], Level, str, str]] = [
        (
            across,
            "error",
            "in different splits",
            "Remove the copies, or the given splits: then copies are kept together",
        ),
        (
            conflict,
            "error",
            "with different labels",
            "Find out which label is right, and remove the other image",
        ),
        (
            within,
            "warning",
            "with the same split and label",
            "Remove the copies: they count as several images",
        ),
    ]
    for groups, level, where, advice in kinds:
        if groups:
            examples = some([" = ".join(caption(found, row) for row in g[:4]) for g in groups])
            text = f"{sum(map(len, groups))} identical images in {len(groups)} group(s) {where}"
            yield Finding(level, f"{text}: {examples}", advice)


def _near(found: Survey, near: list[Pair]) -> Iterable[Finding]:
    items = found.listing.items
    conflict = [p for p in near if items[p.first].label != items[p.second].label]
    across = [p for p in near if items[p.first].split != items[p.second].split]
    across = [p for p in across if p not in conflict]
    for pairs, where in ((across, "in different splits"), (conflict, "with different labels")):
        if pairs:
            examples = some(
                [
                    f"{caption(found, p.first)} and {caption(found, p.second)} ({p.value:.4f})"
                    for p in pairs
                ]
            )
            yield Finding(
                "warning",
                f"{len(pairs)} pair(s) of near-duplicates {where}: {examples}",
                "Compare them on the page: images of one patient belong in one split",
            )


def _pixels(found: Survey) -> Iterable[Finding]:
    facts = found.facts
    flat = [row for row, one in enumerate(facts) if one.constant]
    if flat:
        text = f"{len(flat)} constant image(s): {_named(found, flat)}"
        yield Finding("warning", text, "Remove them")
    long = [f for f in facts if max(f.width, f.height) >= LONG * min(f.width, f.height)]
    if long:
        yield Finding(
            "warning",
            f"{len(long)} of {len(facts)} images are far from square",
            f"{FITTED[found.source.config.reading.fit]}; choose reading.fit: pad, crop or stretch",
        )
    colour = sum(one.colour for one in facts)
    if 0 < colour < len(facts):
        yield Finding(
            "warning",
            f"{colour} of {len(facts)} images are in colour, the others are grey",
            "If colour depends on the class, networks learn it; reading.channels: 1 makes all grey",
        )


def _patients(found: Survey) -> Iterable[Finding]:
    items = found.listing.items
    unknown = sum(item.group is None for item in items)
    if not unknown:
        for text in patients_tested(found.listing):
            yield Finding("warning", text, "Keep one test image per patient to avoid it")
        return
    if found.source.is_npz:
        yield Finding(
            "warning",
            "an .npz does not name patients, so leakage between splits cannot be checked",
            "Ask its authors whether it was divided by patient",
        )
        return
    which = "" if unknown == len(items) else f" for {unknown} of {len(items)} images"
    advice = "Name them in the column 'group' of a manifest, or with split.group in the study file"
    if guess := guess_group([item.path for item in items]):
        advice += (
            f". File names suggest --group '{guess.pattern}' ({guess.patients} patients): use it "
            "only if that is right"
        )
    yield Finding(
        "warning",
        f"patients are unknown{which}: if images of one patient are in two splits, results are "
        "too optimistic",
        advice,
    )


def _privacy(found: Survey) -> Iterable[Finding]:
    if marked := [row for row, one in enumerate(found.facts) if one.text]:
        yield Finding(
            "warning",
            f"{len(marked)} of {len(found.facts)} image(s) may hold burned-in text near their "
            f"edge: {_named(found, marked)}",
            "Look at them: text may name a patient, and networks may learn from it",
        )
    if found.identity:
        tags = ", ".join(f"{name} {number}" for name, number in sorted(found.identity.items()))
        yield Finding(
            "warning",
            f"DICOM tags identify patients (tag, files of {found.dicom_files}): {tags}",
            "The study reads only PatientID, to divide by patient, and does not store it; remove "
            "the tags before you share the files",
        )
