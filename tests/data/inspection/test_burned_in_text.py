"""Text burned into pixels: letters are found, anatomy and noise are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mgdm_ray.data.inspection.burned_in_text import LEAST_SIDE, may_hold_text


def written(
    place: tuple[int, int], size: int = 200, fill: int = 255, ground: int = 40
) -> np.ndarray:
    image = Image.new("L", (size, size), ground)
    font = ImageFont.load_default(16)
    ImageDraw.Draw(image).text(place, "ANNA MUSTER 1950", fill=fill, font=font)
    return np.asarray(image)


@pytest.mark.parametrize("place", [(4, 4), (40, 178), (2, 90)])
def test_text_along_each_edge(place: tuple[int, int]) -> None:
    """Catches a band that is not looked at: top, bottom, left."""
    assert may_hold_text(written(place))


def test_colour_text() -> None:
    """Catches colour images that are passed over; yellow is not white and is missed."""
    white = np.stack([written((4, 4))] * 3, axis=2)
    assert may_hold_text(white)
    yellow = white.copy()
    yellow[..., 2] = 40
    assert not may_hold_text(yellow)


def test_what_is_no_text() -> None:
    """Catches false alarms: text in the middle, grey text, text on white, small and noisy images,
    and bright shapes."""
    assert not may_hold_text(written((45, 92)))
    assert not may_hold_text(written((4, 4), fill=200))
    assert not may_hold_text(written((4, 4), ground=250))
    assert not may_hold_text(written((4, 4), size=LEAST_SIDE - 1))
    rng = np.random.default_rng(0)
    assert not may_hold_text(rng.integers(0, 256, (200, 200), dtype=np.uint8))
    y, x = np.mgrid[:200, :200]
    disc = np.where(np.hypot(x - 100, y - 20) < 15, 255, 10).astype(np.uint8)
    assert not may_hold_text(disc)
