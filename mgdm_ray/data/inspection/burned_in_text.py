"""Signs of text that is part of the pixels: names and dates that no removal of tags takes away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

BAND = 0.2
"""Where machines write: this share of the image along each edge."""
LEAST_SIDE = 96
"""Smaller images hold no text that can be read."""
WHITE, DARK = 252, 100
STROKES, LINES = 4, 4


def may_hold_text(image: NDArray[np.uint8]) -> bool:
    """Whether ``image`` `[H, W]` or `[H, W, 3]` has rows of thin white strokes near its edge.

    Four strokes in each of four rows, in one of the four bands. Anatomy is seldom pure white and a
    few pixels wide; noise is not that regular. It misses grey and very large text.
    """
    grey = image if image.ndim == 2 else image.min(axis=2)
    height, width = grey.shape
    if min(height, width) < LEAST_SIDE:
        return False
    strokes = _strokes(grey)
    rows, columns = round(height * BAND), round(width * BAND)
    bands = (strokes[:rows], strokes[-rows:], strokes[:, :columns], strokes[:, -columns:])
    return any(int((band.sum(axis=1) >= STROKES).sum()) >= LINES for band in bands)


def _strokes(grey: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a short white run begins that has something dark close by on both sides."""
    reach = max(4, min(grey.shape) // 60)
    left = minimum_filter1d(grey, reach, axis=1, origin=(reach - 1) // 2, mode="nearest")
    right = minimum_filter1d(grey, reach, axis=1, origin=-(reach // 2), mode="nearest")
    white = grey >= WHITE
    beside = np.zeros_like(white)  # a stroke goes on in the row above or below, noise does not
    beside[1:] |= maximum_filter1d(white, 3, axis=1)[:-1]
    beside[:-1] |= maximum_filter1d(white, 3, axis=1)[1:]
    thin = white & beside & (left <= DARK) & (right <= DARK)
    begins: NDArray[np.bool_] = thin.copy()
    begins[:, 1:] &= ~thin[:, :-1]
    return begins
