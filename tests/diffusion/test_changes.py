"""Non-leaky augmentation: what happens to images, and what the network is told."""

from __future__ import annotations

import math

import pytest
import torch

from mgdm_ray.diffusion.changes import SHIFT, TOLD, ZOOM, changed, drawn_changes

MIRRORED, UPSIDE_DOWN, ZOOMED, COS, SIN, RIGHT, DOWN, UNTOLD = range(8)
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def row(**values: float) -> torch.Tensor:
    """The same changes for both images."""
    changes = torch.zeros(2, 8)
    for name, value in values.items():
        changes[:, globals()[name]] = value
    return changes


def turned(angle: float, **more: float) -> torch.Tensor:
    return row(COS=math.cos(angle) - 1, SIN=math.sin(angle), **more)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (row(MIRRORED=1), IMAGES.flip(3)),
        (row(UNTOLD=1), IMAGES.flip(3)),
        (row(MIRRORED=1, UNTOLD=1), IMAGES),
        (row(UPSIDE_DOWN=1), IMAGES.flip(2)),
        (turned(math.pi), IMAGES.flip(2).flip(3)),
        (turned(math.pi / 2), IMAGES.rot90(-1, (2, 3))),
        # first mirrored, then turned
        (turned(math.pi / 2, MIRRORED=1), IMAGES.flip(3).rot90(-1, (2, 3))),
    ],
)
def test_exact_changes(changes: torch.Tensor, expected: torch.Tensor) -> None:
    """Would catch a rotation the other way, axes that are swapped, and another order of changes."""
    torch.testing.assert_close(changed(IMAGES, changes), expected, atol=1e-5, rtol=0)


def test_shifts_and_zoom_move_the_right_way() -> None:
    """Would catch a shift against its sign or of half a pixel, and a zoom that shrinks."""
    moved = changed(IMAGES, row(RIGHT=2 / 8, DOWN=-1 / 8))
    torch.testing.assert_close(moved[:, :, :-1, 2:], IMAGES[:, :, 1:, :-2], atol=1e-5, rtol=0)
    place = (torch.arange(8) - 3.5).expand(2, 1, 8, 8)
    larger = changed(place, row(ZOOMED=1))
    torch.testing.assert_close(larger, place / 2, atol=1e-5, rtol=0)


def test_unchanged_images_are_bit_equal() -> None:
    """Would catch interpolation of images that have no changes, which the network would learn."""
    changes = row()
    changes[0, SIN], changes[0, COS] = 1, -1
    result = changed(IMAGES, changes)
    assert torch.equal(result[1], IMAGES[1])
    assert not torch.equal(result[0], IMAGES[0])


def test_how_often_and_how_much() -> None:
    """Would catch an image told of what did not happen, probabilities that multiply, and other
    sizes than published."""
    count, p = 20_000, 0.12
    changes = drawn_changes(count, p, True, "test")
    assert changes.shape == (count, 8)
    near = 5 * math.sqrt(p * (1 - p) / count)
    for column, share in ((MIRRORED, p / 2), (ZOOMED, p), (SIN, p), (RIGHT, p), (UNTOLD, 0.5)):
        often = float((changes[:, column] != 0).double().mean())
        assert often == pytest.approx(share, abs=near if share < 0.5 else 0.02), column
    for column, spread in ((ZOOMED, ZOOM), (RIGHT, SHIFT), (DOWN, SHIFT)):
        values = changes[changes[:, column] != 0, column]
        assert float(values.std()) == pytest.approx(spread, rel=0.05)
    length = (1 + changes[:, COS]).square() + changes[:, SIN].square()
    torch.testing.assert_close(length, torch.ones(count))
    assert not drawn_changes(100, 1.0, False, "test")[:, TOLD:].any()
    assert not drawn_changes(100, 0.0, True, "test")[:, :TOLD].any()
