"""Sanity of a dataset's splits: leakage, conflicting labels, empty images, class counts.

For the report only: it opens the test split, so nothing that selects may use it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.data.load import Split

FindingKind = Literal[
    "leakage",
    "near_leakage",
    "label_conflict",
    "duplicate",
    "constant_image",
    "missing_class",
    "class_counts",
]
NEAR = 0.99
"""Correlation of two images' pixels above which they count as nearly identical."""
COARSE = 32
"""Larger images are averaged down to at most so many pixels a side before they are correlated."""
BLOCK = 2048
"""Images correlated at a time."""


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


def check_splits(
    splits: Mapping[str, Split], thumbnails: Mapping[str, NDArray[np.uint8]] | None = None
) -> list[Finding]:
    """Findings over all splits of one dataset, the serious ones first.

    ``leakage``: pixel-identical images in different splits; ``near_leakage``: nearly identical
    ones, by the correlation of their pixels; ``label_conflict``: pixel-identical
    images with different labels (anywhere); ``duplicate``: within one split, same label;
    ``constant_image``; ``missing_class``: a class some split does not have; ``class_counts``:
    one per split, always given.

    ``thumbnails`` `[N, h, w, c]` by split are correlated in place of the images: for images that
    black bars made square, which hide what two of different shape have in common.
    """
    return [
        *_identical_images(splits),
        *_near_images(splits, thumbnails or {}),
        *_constant_images(splits),
        *_missing_classes(splits),
        *_class_counts(splits),
    ]


def leaked(findings: Iterable[Finding], split: str = "test") -> list[int]:
    """Indices of the images of ``split`` that are, nearly or exactly, in another split as well."""
    return sorted(
        {
            index
            for finding in findings
            if finding.kind in ("leakage", "near_leakage")
            for name, index in finding.images
            if name == split
        }
    )


def nearest(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Largest correlation of each image with any of ``others``, in [-1, 1], and whose it is.

    Pearson's over all pixels and channels, of images averaged down to at most 32 pixels a side. An
    image of one flat value correlates 0 with everything.
    """
    ours = _standardised(images)
    best = np.full(len(ours), -1, dtype=np.float32)
    which = np.zeros(len(ours), dtype=np.int64)
    for start in range(0, len(others), BLOCK):
        block = _standardised(others[start : start + BLOCK])
        for first in range(0, len(ours), BLOCK):
            rows = slice(first, first + BLOCK)
            found = ours[rows] @ block.T
            at = found.argmax(axis=1)
            value = found[np.arange(len(at)), at]
            better = value > best[rows]
            best[rows] = np.where(better, value, best[rows])
            which[rows] = np.where(better, start + at, which[rows])
    return best, which


def _standardised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One row per image, mean 0 and norm 1, or all 0."""
    data = images.astype(np.float32)
    factor = -(-max(data.shape[1:3]) // COARSE)
    if factor > 1:
        n, height, width, channels = data.shape
        rows, columns = height // factor, width // factor
        data = data[:, : rows * factor, : columns * factor]
        data = data.reshape(n, rows, factor, columns, factor, channels).mean(axis=(2, 4))
    data = data.reshape(len(data), -1)
    data -= data.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(data, axis=1, keepdims=True)
    return (data / np.where(norm > 0, norm, 1)).astype(np.float32)


def _near_images(
    splits: Mapping[str, Split], thumbnails: Mapping[str, NDArray[np.uint8]]
) -> list[Finding]:
    found = []
    for first, second in combinations(splits, 2):
        a, b = splits[first], splits[second]
        ours, others = thumbnails.get(second, b.images), thumbnails.get(first, a.images)
        if len(a) == 0 or len(b) == 0 or ours.shape[1:] != others.shape[1:]:
            continue
        best, which = nearest(ours, others)
        near = np.flatnonzero(best > NEAR)
        if not len(near):
            continue
        near = near[np.argsort(-best[near], kind="stable")]
        other = int((a.labels[which[near]] != b.labels[near]).sum())
        shown = "; ".join(
            f"{second}[{i}] (label {b.labels[i]}) with {first}[{which[i]}] "
            f"(label {a.labels[which[i]]}): {best[i]:.4f}"
            for i in near[:3]
        )
        message = (
            f"{len(near)} of {len(b)} {second} images correlate above {NEAR:g} with a {first} "
            f"image, {other} of them with one of another label: {shown}"
            + ("; ..." if len(near) > 3 else "")
        )
        pairs = [pair for i in near for pair in ((first, int(which[i])), (second, int(i)))]
        found.append(Finding("near_leakage", message, tuple(pairs)))
    return found


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
