"""Check the splits of a dataset: leakage, conflicting labels, constant images, class counts.

For the report only: it opens the test split, so nothing that selects may use it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.data.load import Split
from mgdm_ray.data.sources.listing import some

Sameness = Literal["leakage", "near_leakage", "label_conflict", "duplicate"]
FindingKind = Literal[Sameness, "constant_image", "missing_class", "class_counts"]
Image = tuple[str, int]
"""(split, index)"""
NEAR = 0.99
"""Correlation of pixels above which two images are near-duplicates."""
COARSE = 32
"""Larger images are averaged down to at most this many pixels a side before they are correlated."""
BLOCK = 2048
"""Images correlated at a time."""


@dataclass(frozen=True)
class Finding:
    """One fact about the splits, with all the images concerned."""

    kind: FindingKind
    message: str
    images: tuple[Image, ...] = ()

    @property
    def serious(self) -> bool:
        """Whether it can bias a result; ``class_counts`` only informs."""
        return self.kind != "class_counts"


def check_splits(
    splits: Mapping[str, Split], thumbnails: Mapping[str, NDArray[np.uint8]] | None = None
) -> list[Finding]:
    """Findings over all splits of one dataset, the serious ones first.

    ``leakage``: pixel-identical images in different splits; ``near_leakage``: near-duplicates
    there, by correlation; ``label_conflict``: identical images with different labels, anywhere;
    ``duplicate``: identical images in one split with one label; ``missing_class``: a class that a
    split lacks; ``class_counts``: one per split, always.

    ``thumbnails`` `[N, h, w, c]` by split are correlated instead of images that black bars made
    square, which hide what images of different shape have in common.
    """
    return [
        *_identical_images(splits),
        *_near_images(splits, thumbnails or {}),
        *_constant_images(splits),
        *_classes(splits),
    ]


def leaked(findings: Iterable[Finding], split: str = "test") -> list[int]:
    """Sorted indices of the images of ``split`` that have a (near-)duplicate in another split."""
    kinds = ("leakage", "near_leakage")
    images = {image for finding in findings if finding.kind in kinds for image in finding.images}
    return sorted(index for name, index in images if name == split)


def nearest(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Highest correlation of each image with any of ``others``, in [-1, 1], and its index.

    Pearson's over all pixels and channels, of images averaged down to at most 32 pixels a side. A
    constant image correlates 0 with everything.
    """
    ours = standardised(images)
    best = np.full(len(ours), -1, dtype=np.float32)
    which = np.zeros(len(ours), dtype=np.int64)
    for start in range(0, len(others), BLOCK):
        block = standardised(others[start : start + BLOCK])
        for first in range(0, len(ours), BLOCK):
            rows = slice(first, first + BLOCK)
            found = ours[rows] @ block.T
            at = found.argmax(axis=1)
            value = found[np.arange(len(at)), at]
            better = value > best[rows]
            best[rows] = np.where(better, value, best[rows])
            which[rows] = np.where(better, start + at, which[rows])
    return best, which


def near(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> list[tuple[float, int, int]]:
    """(correlation, index, index) of each of ``others`` and its nearest of ``images``, if above
    0.99; none for images of different shape."""
    if not len(images) or not len(others) or images.shape[1:] != others.shape[1:]:
        return []
    best, which = nearest(others, images)
    return [(float(best[i]), int(which[i]), int(i)) for i in np.flatnonzero(best > NEAR)]


def standardised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
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


def _name(image: Image, splits: Mapping[str, Split]) -> str:
    return "{}[{}] (label {})".format(*image, splits[image[0]].labels[image[1]])


def _near_images(
    splits: Mapping[str, Split], thumbnails: Mapping[str, NDArray[np.uint8]]
) -> Iterable[Finding]:
    for first, second in combinations(splits, 2):
        a, b = splits[first], splits[second]
        found = near(thumbnails.get(first, a.images), thumbnails.get(second, b.images))
        found.sort(key=lambda pair: -pair[0])
        examples = [
            f"{_name((second, i), splits)} with {_name((first, k), splits)}: {value:.4f}"
            for value, k, i in found
        ]
        if found:
            other = sum(int(a.labels[k] != b.labels[i]) for _, k, i in found)
            yield Finding(
                "near_leakage",
                f"{len(found)} of {len(b)} {second} images correlate above {NEAR:g} with a {first} "
                f"image, {other} of them with one of another label: {some(examples)}",
                tuple(image for _, k, i in found for image in ((first, k), (second, i))),
            )


def _identical_images(splits: Mapping[str, Split]) -> Iterable[Finding]:
    groups: dict[bytes, list[Image]] = defaultdict(list)
    for name, split in splits.items():
        for index, image in enumerate(split.images):
            shape = str(image.shape).encode()
            groups[hashlib.sha256(shape + image.tobytes()).digest()].append((name, index))
    same = [group for group in groups.values() if len(group) > 1]
    across = [g for g in same if len({name for name, _ in g}) > 1]
    conflict = [g for g in same if len({int(splits[n].labels[i]) for n, i in g}) > 1]
    within = [g for g in same if g not in across and g not in conflict]
    kinds: dict[FindingKind, tuple[list[list[Image]], str]] = {
        "leakage": (across, "in different splits"),
        "label_conflict": (conflict, "with different labels"),
        "duplicate": (within, "in one split"),
    }
    for kind, (found, where) in kinds.items():
        if found:
            examples = some([" = ".join(_name(image, splits) for image in g) for g in found])
            message = f"{len(found)} group(s) of pixel-identical images {where}: {examples}"
            yield Finding(kind, message, tuple(chain(*found)))


def _constant_images(splits: Mapping[str, Split]) -> Iterable[Finding]:
    constant = [
        (name, int(index))
        for name, split in splits.items()
        for index in np.flatnonzero(np.ptp(split.images.reshape(len(split), -1), axis=1) == 0)
    ]
    if constant:
        examples = some([f"{name}[{i}]" for name, i in constant], 5, ", ")
        message = f"{len(constant)} constant image(s): {examples}"
        yield Finding("constant_image", message, tuple(constant))


def _classes(splits: Mapping[str, Split]) -> Iterable[Finding]:
    labels = {name: set(split.labels.tolist()) for name, split in splits.items()}
    for name, found in labels.items():
        if absent := sorted(set[int]().union(*labels.values()) - found):
            classes = ", ".join(map(str, absent))
            yield Finding("missing_class", f"{name} has no image of class {classes}")
    for name, split in splits.items():
        counts = np.unique(split.labels, return_counts=True)
        text = ", ".join(f"{k}: {n}" for k, n in zip(*counts, strict=True))
        yield Finding("class_counts", f"{name}: {len(split)} images ({text})")
