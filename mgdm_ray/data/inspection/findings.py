"""From a survey to sentences: what would spoil a study, what may, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mgdm_ray.data.inspection.duplicates import Pair
from mgdm_ray.data.inspection.patients import guess_group
from mgdm_ray.data.inspection.survey import Survey
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.listing import shown
from mgdm_ray.data.sources.prepare import patients_tested, tiny_classes

Level = Literal["ok", "warning", "error"]
LONG = 1.34
"""Longer side over shorter one from which an image is far from square."""
UNEVEN = 3.0
"""Most frequent class over rarest one from which classes count as imbalanced."""
FEW = 3
"""Examples that a sentence names."""


@dataclass(frozen=True)
class Finding:
    """One sentence and, unless all is well, what to do."""

    level: Level
    text: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (f". {self.do}" if self.do else "")


def judge(found: Survey, twins: list[list[int]], near: list[Pair]) -> list[Finding]:
    """All findings, errors first."""
    parts: list[Callable[[], Iterable[Finding]]] = [
        lambda: _files(found),
        lambda: _classes(found),
        lambda: _twins(found, twins),
        lambda: _near(found, near),
        lambda: _pixels(found),
        lambda: _patients(found),
        lambda: _privacy(found),
    ]
    findings = [finding for part in parts for finding in part()]
    levels = [finding.level for finding in findings]
    if "error" not in levels:
        number = levels.count("warning")
        what = "nothing found that would spoil a study"
        if number:
            what = (
                f"no error; decide on the {number} warning(s) above, which can change the results"
            )
        findings.append(Finding("ok", what))
    order = ("error", "warning", "ok")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _files(found: Survey) -> Iterable[Finding]:
    for text in found.trouble:
        yield Finding("error", text)
    for text in found.notes:
        yield Finding("warning", text)
    if found.damaged:
        refused = found.source.config.reading.damaged == "refuse"
        examples = _some([f"{shown(path)} ({why})" for path, why in found.damaged.items()])
        yield Finding(
            "error" if refused else "warning",
            f"{len(found.damaged)} file(s) cannot be read: {examples}",
            "Mend them or take them away, or set reading.damaged: leave_out"
            if refused
            else "The study leaves them out",
        )
    if ignored := found.listing.ignored:
        examples = _some([shown(name) for name in ignored])
        yield Finding(
            "ok", f"{len(ignored)} file(s) that are no images are passed over: {examples}"
        )


def _classes(found: Survey) -> Iterable[Finding]:
    counts, names = found.counts(), found.listing.classes
    for split in SPLITS:
        empty = [shown(n) for n, count in zip(names, counts[split], strict=True) if not count]
        if empty and split == "train":
            yield Finding(
                "error",
                f"no training image of class {', '.join(empty)}",
                "Add images, or take the class out",
            )
        elif empty:
            yield Finding(
                "warning",
                f"no image of class {', '.join(empty)} in {split}: it is not measured there",
                "Add images of it",
            )
    for text in tiny_classes(found.listing):
        yield Finding("warning", text, "Add images, or join it with another class")
    train = counts["train"]
    if min(train) and max(train) / min(train) >= UNEVEN:
        yield Finding(
            "warning",
            f"the largest class has {max(train) / min(train):.1f} times as many training images as "
            "the smallest",
            "Look at balanced accuracy; synthetic.balance: balanced and downstream.class_weighted: "
            "true (init writes both)",
        )


def _twins(found: Survey, twins: list[list[int]]) -> Iterable[Finding]:
    items = found.listing.items
    across = [g for g in twins if len({items[row].split for row in g}) > 1]
    conflict = [g for g in twins if len({items[row].label for row in g}) > 1]
    within = [g for g in twins if g not in across and g not in conflict]
    kinds: list[tuple[list[list[int]], Level, str, str]] = [
        (
            across,
            "error",
            "are identical and stand in different splits",
            "Take one of each away, or leave the splits out: then they are kept together",
        ),
        (
            conflict,
            "error",
            "are identical and have different labels",
            "Find out which label is right, and take the other one away",
        ),
        (
            within,
            "warning",
            "are identical (same split, same label)",
            "Take the copies away: they count as several images",
        ),
    ]
    for groups, level, what, do in kinds:
        if groups:
            examples = _some([" = ".join(_name(found, row) for row in g[:4]) for g in groups])
            number = sum(len(group) for group in groups)
            yield Finding(
                level, f"{number} images in {len(groups)} group(s) {what}: {examples}", do
            )


def _near(found: Survey, near: list[Pair]) -> Iterable[Finding]:
    items = found.listing.items
    conflict = [p for p in near if items[p.first].label != items[p.second].label]
    across = [
        p for p in near if items[p.first].split != items[p.second].split and p not in conflict
    ]
    for pairs, what in (
        (across, "nearly identical and stand in different splits"),
        (conflict, "nearly identical and have different labels"),
    ):
        if pairs:
            yield Finding(
                "warning",
                f"{len(pairs)} pair(s) of images are {what}: {_some(_pairs(found, pairs))}",
                "Look at them on the page: of one patient they belong into one split",
            )


def _pairs(found: Survey, pairs: list[Pair]) -> list[str]:
    return [f"{_name(found, p.first)} and {_name(found, p.second)} ({p.value:.4f})" for p in pairs]


def _pixels(found: Survey) -> Iterable[Finding]:
    facts = found.facts
    flat = [row for row, one in enumerate(facts) if one.constant]
    if flat:
        examples = _some([_name(found, row) for row in flat])
        yield Finding(
            "warning", f"{len(flat)} image(s) are one flat value: {examples}", "Take them away"
        )
    long = [f for f in facts if max(f.width, f.height) >= LONG * min(f.width, f.height)]
    if long:
        yield Finding(
            "warning",
            f"{len(long)} of {len(facts)} images are far from square",
            f"{_fitted(found)}; reading.fit: pad, crop or stretch",
        )
    colour = sum(one.colour for one in facts)
    if 0 < colour < len(facts):
        yield Finding(
            "warning",
            f"{colour} of {len(facts)} images have colour, the others are grey",
            "Where that goes with the class, networks learn it: reading.channels: 1 makes all grey",
        )


def _fitted(found: Survey) -> str:
    return {
        "pad": "They get black bars",
        "crop": "Only their middle is used",
        "stretch": "Their aspect is changed",
    }[found.source.config.reading.fit]


def _patients(found: Survey) -> Iterable[Finding]:
    items = found.listing.items
    unknown = sum(item.group is None for item in items)
    if not unknown:
        for text in patients_tested(found.listing):
            yield Finding("warning", text, "One image per patient in the test split avoids it")
        return
    if found.source.is_npz:
        yield Finding(
            "warning",
            "an .npz names no patients: whether one stands in two splits cannot be seen",
            "Ask whoever divided it",
        )
        return
    some = "" if unknown == len(items) else f" of {unknown} of {len(items)} images"
    guess = guess_group([item.path for item in items])
    say = "Name them by the column 'group' of a manifest, or by split.group in the study file"
    if guess is not None:
        say += (
            f"; the names of files suggest --group '{guess.pattern}' "
            f"({guess.patients} patients), if you know that it is so"
        )
    yield Finding(
        "warning",
        f"patients{some} are not known: images of one patient may stand in two splits, and results "
        "then look better than they are",
        say,
    )


def _privacy(found: Survey) -> Iterable[Finding]:
    marked = [row for row, one in enumerate(found.facts) if one.text]
    if marked:
        examples = _some([_name(found, row) for row in marked])
        yield Finding(
            "warning",
            f"{len(marked)} of {len(found.facts)} image(s) may hold burnt-in text near their edge: "
            f"{examples}",
            "Look at them: text may name a patient, and networks may learn from it",
        )
    if found.identity:
        tags = ", ".join(f"{name} {number}" for name, number in sorted(found.identity.items()))
        yield Finding(
            "warning",
            f"DICOM tags tell who the patient is (tag, files of {found.dicom_files}): {tags}",
            "The study reads pixels and, to divide, the patient's number, which it does not store; "
            "take the tags away before you pass the files on",
        )


def _name(found: Survey, row: int) -> str:
    item = found.listing.items[row]
    number = "" if item.slice is None else f" slice {item.slice}"
    return f"{shown(item.path)}{number} ({item.split}, {shown(found.listing.classes[item.label])})"


def _some(texts: list[str]) -> str:
    return "; ".join(texts[:FEW]) + (f"; and {len(texts) - FEW} more" if len(texts) > FEW else "")
