"""Which test images are no independent evidence: those of one patient, and (near-)duplicates.

Groups are numbers in the order of first appearance. They say which images belong together and
nothing else: there is no name in them that could be looked up, and equal data give equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.checks import BLOCK, NEAR, standardised
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import numbered


@dataclass(frozen=True)
class ImageGroups:
    """``numbers`` int64 `[N]` of the test images; ``patients`` that they are of, None if unknown;
    ``repeated``: images with a (near-)duplicate in the test split."""

    numbers: NDArray[np.int64]
    patients: int | None
    repeated: int

    def __len__(self) -> int:
        return int(self.numbers.max(initial=-1)) + 1

    def problems(self) -> list[str]:
        """Sentences without full stop."""
        if not self.repeated:
            return []
        return [
            f"{self.repeated} of {len(self.numbers)} test images have a (near-)duplicate among "
            f"them (correlation above {NEAR:g}): intervals and verdicts count {len(self)} groups "
            "of images that belong together"
        ]

    @staticmethod
    def of(images: NDArray[np.uint8], patients: NDArray[np.int64] | None = None) -> ImageGroups:
        """``images`` uint8 `[N, H, W, C]`; ``patients`` `[N]`, where known."""
        alike = duplicates(images)
        repeated = int((np.bincount(alike)[alike] > 1).sum())
        if patients is None:
            return ImageGroups(alike, None, repeated)
        first = np.unique(patients, return_index=True, return_inverse=True)
        numbers = _join(alike, np.arange(len(alike)), first[1][first[2]])
        return ImageGroups(numbers, len(first[0]), repeated)


def duplicates(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups of images `[N]` that are identical, or correlate above 0.99, also through others."""
    contents: dict[bytes, int] = {}
    numbers = np.array(
        [contents.setdefault(image.tobytes(), len(contents)) for image in images], dtype=np.int64
    )
    rows = standardised(images)
    starts = range(0, len(rows), BLOCK)
    for start, other in ((a, b) for a in starts for b in starts if a <= b):
        found = np.nonzero(rows[start : start + BLOCK] @ rows[other : other + BLOCK].T > NEAR)
        numbers = _join(numbers, start + found[0], other + found[1])
    return numbers


def _join(
    numbers: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``numbers`` with the groups of the images ``one`` and ``other``, pair by pair, made one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.ones(len(one), dtype=bool), (numbers[one], numbers[other])
    size = int(numbers.max(initial=-1)) + 1
    return numbered(connected_components(coo_array(edges, (size, size)))[1][numbers])


def groups_of_test(config: DatasetConfig, data_dir: str | Path | None) -> ImageGroups:
    """Opens the test split. InputError for an .npz whose ``test_groups`` are none."""
    return _groups_of_test(config, data_dir, data_source(config, data_dir).fingerprint())


@lru_cache(maxsize=16)
def _groups_of_test(config: DatasetConfig, data_dir: str | Path | None, _: str) -> ImageGroups:
    source = data_source(config, data_dir)
    small = source.thumbnails("test")
    images = source.load("test").images if small is None else small
    return ImageGroups.of(images, source.patients("test"))
