"""Signs of text burned into the pixels: names and dates that removing tags does not remove."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

BAND = 0.2
"""Share of the image along each edge where machines write."""
LEAST_SIDE = 96
"""Smaller images hold no legible text."""
WHITE, DARK = 252, 100
STROKES, LINES = 4, 4


def may_hold_text(image: NDArray[np.uint8]) -> bool:
    """Whether ``image`` `[H, W]` or `[H, W, 3]` has rows of thin white strokes near its edge.

    At least 4 strokes in each of 4 rows of one band: anatomy is seldom pure white and a few pixels
    wide, and noise is not that regular. Grey and very large text is missed.
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
    """Where a short white run begins with dark pixels close by on both sides."""
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
