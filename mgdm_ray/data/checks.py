"""Sanity of a dataset's splits: leakage, conflicting labels, empty images, class counts.

For the report only: it opens the test split, so nothing that selects may use it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mgdm_ray.data.load import Split

FindingKind = Literal[
    "leakage", "label_conflict", "duplicate", "constant_image", "missing_class", "class_counts"
]


@dataclass(frozen=True)
class Finding:
    """One thing a reader must know. ``images`` are (split, index) pairs, all of them."""

    kind: FindingKind
    message: str
    images: tuple[tuple[str, int], ...] = ()

    @property
    def serious(self) -> bool:
        """Whether it can bias a result; ``class_counts`` only informs."""
        return self.kind != "class_counts"


def check_splits(splits: Mapping[str, Split]) -> list[Finding]:
    """Findings over all splits of one dataset, the serious ones first.

    ``leakage``: pixel-identical images in different splits; ``label_conflict``: pixel-identical
    images with different labels (anywhere); ``duplicate``: within one split, same label;
    ``constant_image``; ``missing_class``: a class some split does not have; ``class_counts``:
    one per split, always given.
    """
    return [
        *_identical_images(splits),
        *_constant_images(splits),
        *_missing_classes(splits),
        *_class_counts(splits),
    ]


def _identical_images(splits: Mapping[str, Split]) -> list[Finding]:
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, split in splits.items():
        for index, image in enumerate(split.images):
            shape = str(image.shape).encode()
            groups[hashlib.sha256(shape + image.tobytes()).digest()].append((name, index))
    same = [group for group in groups.values() if len(group) > 1]
    across = [g for g in same if len({name for name, _ in g}) > 1]
    conflict = [g for g in same if len({int(splits[n].labels[i]) for n, i in g}) > 1]
    within = [g for g in same if g not in across and g not in conflict]
    kinds: list[tuple[FindingKind, list[list[tuple[str, int]]], str]] = [
        ("leakage", across, "pixel-identical in different splits"),
        ("label_conflict", conflict, "pixel-identical but labelled differently"),
        ("duplicate", within, "pixel-identical within one split"),
    ]
    return [
        Finding(
            kind,
            f"{len(found)} group(s) of images are {what}: " + _examples(found, splits),
            tuple(image for group in found for image in group),
        )
        for kind, found, what in kinds
        if found
    ]


def _examples(groups: list[list[tuple[str, int]]], splits: Mapping[str, Split]) -> str:
    shown = [
        " = ".join(f"{name}[{i}] (label {splits[name].labels[i]})" for name, i in group)
        for group in groups[:3]
    ]
    return "; ".join(shown) + ("; ..." if len(groups) > 3 else "")


def _constant_images(splits: Mapping[str, Split]) -> list[Finding]:
    constant = [
        (name, int(index))
        for name, split in splits.items()
        for index in np.flatnonzero(np.ptp(split.images.reshape(len(split), -1), axis=1) == 0)
    ]
    if not constant:
        return []
    shown = ", ".join(f"{name}[{i}]" for name, i in constant[:5])
    more = ", ..." if len(constant) > 5 else ""
    return [
        Finding(
            "constant_image",
            f"{len(constant)} image(s) are one flat value: {shown}{more}",
            tuple(constant),
        )
    ]


def _missing_classes(splits: Mapping[str, Split]) -> list[Finding]:
    known = {int(label) for split in splits.values() for label in np.unique(split.labels)}
    findings = []
    for name, split in splits.items():
        absent = sorted(known - {int(label) for label in np.unique(split.labels)})
        if absent:
            classes = ", ".join(map(str, absent))
            findings.append(Finding("missing_class", f"{name} has no image of class {classes}"))
    return findings


def _class_counts(splits: Mapping[str, Split]) -> list[Finding]:
    findings = []
    for name, split in splits.items():
        labels, counts = np.unique(split.labels, return_counts=True)
        text = ", ".join(f"{k}: {n}" for k, n in zip(labels, counts, strict=True))
        findings.append(Finding("class_counts", f"{name}: {len(split)} images ({text})"))
    return findings
