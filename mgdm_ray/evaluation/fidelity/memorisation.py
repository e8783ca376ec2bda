"""Are synthetic images copies of training images?

Seen in pixels, not in the features of a network trained on these training images: such features
are made to forget what tells two images of a class apart, which is what makes a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.neighbors import NearestNeighbors

SIDE = 28
"""Images are compared at about so many pixels a side, blurred by one of them: noise, and a shift
of less than that, do not hide a copy."""
NEIGHBOURS = 50
"""Their median distance is the measure of what is near."""
SAME_IMAGE = 0.3
"""A real image nearer than this to a training image shows the same thing: a leak between the
splits, or the same patient. Nothing can be calibrated by it. Of the test images of breastmnist
59 of 156 are below, most of them the same scan again, none is between 0.3 and 0.4, and the median
of the others is 0.8. In data of six dimensions or more an independent image gets there in less
than 2 % of cases, for (d_1 / d_25)^D is about Exp(1) / 25."""
QUANTILE = 0.05
"""Share of independent real images that are called near-copies: the price of the threshold."""
ROUNDING = 1e-3
"""Distances of equal images come to less than this: vectors have length 1, in float32."""
_CHUNK = 256


@dataclass(frozen=True)
class Nearest:
    """For each of M images the nearest training image."""

    distance: NDArray[np.float32]
    """`[M]`, relative: 0 for a copy, about 1 for what is no nearer to one training image than to
    50."""
    train: NDArray[np.int64]
    """`[M]`, its index."""
    mirrored: NDArray[np.bool_]
    """`[M]`, whether it is near as its mirror image."""


def nearest(images: NDArray[np.floating], train: NDArray[np.floating]) -> Nearest:
    """The training image that each of ``images`` `[M, C, H, W]` is nearest to; ``train``
    `[N, C, H, W]`, both in [-1, 1].

    Images are blurred by 1/28 of their width and stripped of brightness and contrast, and so are
    the training images and their left-right mirror images. The distance to the nearest is divided
    by the median distance to the 50 nearest (Carlini et al. 2023, section 5.2, "Extracting
    Training Data from Diffusion Models"): a bland image is near to many training images and a
    copy of none. On breastmnist, retinamnist and two phantoms, roundtrip images of models too
    weak to copy anything fell below the threshold in at most 3 % of cases (below that of the plain
    distance of the blurred images in at most 6 %). Raises ValueError for fewer than 3 training
    images.
    """
    if len(train) < 3:
        raise ValueError(f"what is near needs 3 training images or more to tell; got {len(train)}")
    both = np.concatenate([_comparable(train), _comparable(train[..., ::-1])])
    index = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(train)), algorithm="brute").fit(both)
    distance, place = index.kneighbors(_comparable(images))
    closest, usual = distance[:, 0], np.median(distance, axis=1)
    # What is equal stays so where all 50 are one and the same image.
    equal = closest < ROUNDING
    relative = np.divide(closest, usual, out=np.zeros(len(usual)), where=~equal)
    first = place[:, 0]
    return Nearest(relative.astype(np.float32), first % len(train), first >= len(train))


def _comparable(images: NDArray[np.floating]) -> NDArray[np.float32]:
    """`[N, P]`: blurred, thinned out, mean 0 and length 1 (all 0 for a flat image)."""
    size = images.shape[-1]
    sigma, step = size / SIDE, max(1, size // SIDE)
    parts = [
        gaussian_filter(images[i : i + _CHUNK].astype(np.float32), (0, 0, sigma, sigma))[
            ..., ::step, ::step
        ]
        for i in range(0, len(images), _CHUNK)
    ]
    flat = np.concatenate(parts).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(
        flat, length, out=np.zeros_like(flat), where=length > 1e-4
    )
    return unit


def is_independent(distance: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which held-out real images are no training images themselves; the others are leaks."""
    return distance >= SAME_IMAGE


def threshold_of(distance: NDArray[np.floating]) -> float:
    """Below which an image is a near-copy: one in twenty independent real images is.

    ``distance`` `[H]` of held-out real images, of which leaks are left out; never below
    SAME_IMAGE, so that a data set that leaks does not make a threshold of 0. Rates of real
    images must come from others than these.
    """
    kept = distance[is_independent(distance)]
    return float(np.quantile(kept, QUANTILE)) if len(kept) else SAME_IMAGE
