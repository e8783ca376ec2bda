"""Judge a survey: what would invalidate a study, what may bias it, and what to do about it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from mgdm_ray.data.checks import near
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
PATTERNS = (
    r"((?:patient|pat|sub|subject|case)[_-]?[A-Za-z]*[0-9]+)",
    r"([A-Za-z]*[0-9]+)[_-][^/]*$",
    r"/([^/]*[0-9][^/]*)/[^/]*$",
)
"""patient12 anywhere; P012_03.png; CLASS/P012/3.png."""
TEXTS: dict[str, tuple[Level, str, str]] = yaml.safe_load(
    Path(__file__).with_name("findings.yaml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Finding:
    """One sentence and, unless all is well, what to do."""

    level: Level
    text: str
    advice: str = ""

    @classmethod
    def of(cls, name: str, **values: Any) -> Finding:
        """The finding of this name in findings.yaml."""
        level, text, advice = TEXTS[name]
        return cls(level, text.format(**values), advice.format(**values))

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (f". {self.advice}" if self.advice else "")


class Pair(NamedTuple):
    """Two rows of a survey and their correlation."""

    first: int
    second: int
    value: float


def identical(found: Survey) -> list[list[int]]:
    """Groups of rows whose pixels are equal, in any file format; constant images do not count."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, facts in enumerate(found.facts):
        if not facts.constant:
            rows[facts.digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def nearly_identical(found: Survey) -> list[Pair]:
    """Pairs in different splits or classes that correlate above 0.99 without being identical.

    The closest first; of each image only its nearest one in every other split and class.
    """
    labels = np.array([item.label for item in found.listing.items], dtype=np.int64)
    splits = np.array([item.split for item in found.listing.items])
    parts = [(splits == one, splits == other) for one, other in combinations(SPLITS, 2)]
    parts += [(labels == k, labels > k) for k in range(len(found.listing.classes) - 1)]
    pairs: dict[tuple[int, int], float] = {}
    for left, right in (map(np.flatnonzero, part) for part in parts):
        for value, one, other in near(found.small[left], found.small[right]):
            first, second = sorted((int(left[one]), int(right[other])))
            if found.facts[first].digest != found.facts[second].digest:
                pairs[first, second] = value
    ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [Pair(first, second, value) for (first, second), value in ranked]


class Guess(NamedTuple):
    """A regular expression by which several images belong to one patient."""

    pattern: str
    patients: int


def guess_group(paths: Sequence[str]) -> Guess | None:
    """A pattern that matches every path and gives fewer patients than files, or None.

    From names alone: the 1 of 1_2.png may be a date as well as a patient.
    """
    files = set(paths)
    for pattern in PATTERNS:
        found = [match for path in files if (match := re.search(pattern, path))]
        names = {match.group(1) for match in found}
        if len(found) == len(files) and 2 <= len(names) < len(files):
            return Guess(pattern, len(names))
    return None


def judge(found: Survey, copies: list[list[int]], near: list[Pair]) -> list[Finding]:
    """All findings, errors first. ``copies``: groups of rows of identical images."""
    findings = [
        *_files(found),
        *_classes(found),
        *_repeated(found, copies, near),
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


def caption(found: Survey, row: int, quote: slice = slice(None)) -> str:
    """Path, split and class of an image; ``quote`` of each name, in quotes."""
    item = found.listing.items[row]
    number = f" slice {item.slice}" if item.slice is not None else ""
    label = shown(found.listing.classes[item.label])[quote]
    return f"{shown(item.path)[quote]}{number} ({item.split}, {label})"


def _named(found: Survey, rows: Sequence[int]) -> str:
    return some([caption(found, row) for row in rows])


def _files(found: Survey) -> Iterable[Finding]:
    yield from (Finding("error", text) for text in found.errors)
    yield from (Finding("warning", text) for text in found.warnings)
    if found.damaged:
        refused = found.source.config.reading.damaged == "refuse"
        examples = some([f"{shown(path)} ({why})" for path, why in found.damaged.items()])
        name = "unreadable" if refused else "left_out"
        yield Finding.of(name, number=len(found.damaged), examples=examples)
    if ignored := found.listing.ignored:
        yield Finding.of("ignored", number=len(ignored), examples=some([*map(shown, ignored)]))


def _classes(found: Survey) -> Iterable[Finding]:
    counts, names = found.counts(), found.listing.classes
    for split in SPLITS:
        empty = [shown(n) for n, count in zip(names, counts[split], strict=True) if not count]
        if empty:
            name = "no_train_image" if split == "train" else "no_image"
            yield Finding.of(name, split=split, classes=", ".join(empty))
    yield from (Finding.of("tiny_class", sentence=text) for text in tiny_classes(found.listing))
    few, most = min(counts["train"]), max(counts["train"])
    if few and most / few >= UNEVEN:
        yield Finding.of("imbalance", ratio=most / few)


def _repeated(found: Survey, copies: list[list[int]], near: list[Pair]) -> Iterable[Finding]:
    items = found.listing.items
    across = [g for g in copies if len({items[row].split for row in g}) > 1]
    conflict = [g for g in copies if len({items[row].label for row in g}) > 1]
    within = [g for g in copies if g not in across and g not in conflict]
    for name, groups in (("across", across), ("conflict", conflict), ("within", within)):
        if groups:
            examples = some([" = ".join(caption(found, row) for row in g[:4]) for g in groups])
            images = sum(map(len, groups))
            name = f"identical_{name}"
            yield Finding.of(name, images=images, number=len(groups), examples=examples)
    clash = [p for p in near if items[p.first].label != items[p.second].label]
    apart = [p for p in near if p not in clash and items[p.first].split != items[p.second].split]
    for name, pairs in (("near_across", apart), ("near_conflict", clash)):
        shown_pairs = [
            f"{caption(found, p.first)} and {caption(found, p.second)} ({p.value:.4f})"
            for p in pairs
        ]
        if pairs:
            yield Finding.of(name, number=len(pairs), examples=some(shown_pairs))


def _pixels(found: Survey) -> Iterable[Finding]:
    facts, fit = found.facts, found.source.config.reading.fit
    if flat := [row for row, one in enumerate(facts) if one.constant]:
        yield Finding.of("constant", number=len(flat), examples=_named(found, flat))
    long = sum(max(f.width, f.height) >= LONG * min(f.width, f.height) for f in facts)
    if long:
        yield Finding.of("not_square", number=long, all=len(facts), fitted=FITTED[fit])
    colour = sum(one.colour for one in facts)
    if 0 < colour < len(facts):
        yield Finding.of("some_colour", number=colour, all=len(facts))


def _patients(found: Survey) -> Iterable[Finding]:
    items = found.listing.items
    unknown = sum(item.group is None for item in items)
    which = "" if unknown == len(items) else f" for {unknown} of {len(items)} images"
    if not unknown:
        for sentence in patients_tested(found.listing):
            yield Finding.of("several_per_patient", sentence=sentence)
    elif found.source.is_npz:
        yield Finding.of("npz_patients")
    elif guess := guess_group([item.path for item in items]):
        yield Finding.of("guessed_patients", which=which, guess=guess)
    else:
        yield Finding.of("unknown_patients", which=which)


def _privacy(found: Survey) -> Iterable[Finding]:
    if marked := [row for row, one in enumerate(found.facts) if one.text]:
        number, examples = len(marked), _named(found, marked)
        yield Finding.of("burned_in_text", number=number, all=len(found.facts), examples=examples)
    if found.identity:
        tags = ", ".join(f"{name} {number}" for name, number in sorted(found.identity.items()))
        yield Finding.of("identity", files=found.dicom_files, tags=tags)
