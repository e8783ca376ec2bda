"""8-bit images become the same floats, batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgdm_ray.data.load import to_tensor
from mgdm_ray.data.pixels import Pixels, as_float, to_pixels

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 5, 5, 3), dtype=np.uint8)


def test_every_grey_level_becomes_the_same_float() -> None:
    """Would catch a conversion that rounds otherwise than to_tensor, or in another order of
    axes."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(as_float(to_pixels(levels)), to_tensor(levels))
    assert torch.equal(as_float(to_pixels(IMAGES)), to_tensor(IMAGES))
    already = torch.rand(2, 3, 4, 4)
    assert as_float(already) is already


@pytest.mark.parametrize("rows", [torch.tensor([8, 0, 13, 9, 9, 3]), slice(4, 20), slice(0, 2)])
def test_rows_of_real_and_added_images(rows: torch.Tensor | slice) -> None:
    """Would catch rows that are off by one at the border of the two parts."""
    added = torch.rand(5, 3, 5, 5, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = Pixels((to_pixels(IMAGES), added))
    expected = torch.cat([to_tensor(IMAGES), added])
    assert len(both) == 14
    assert both.shape == expected.shape
    assert torch.equal(both[rows], expected[rows])
    assert torch.equal(both.near("cpu")[rows], expected[rows])
