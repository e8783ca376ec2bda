"""Geometric changes of training images that the denoiser is told of.

Non-leaky augmentation (Karras et al. 2022, appendix F.2): the network learns the images given their
changes, and sampling asks for unchanged ones. A row of changes is: mirrored, upside down (0 or 1),
log2 of the zoom, cos - 1 and sin of the rotation, shift right and down in shares of the width; 0 is
none. The last number, mirrored, is not told.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mgdm_ray.seeding import generator

TOLD = 7
"""Numbers of a row that condition the network."""
ZOOM, SHIFT = 0.2, 0.125
"""Standard deviations of log2 of the zoom and of the shift, as published."""


def drawn_changes(
    count: int, probability: float, mirror: bool, *seed_parts: str | int | float | bool
) -> Tensor:
    """float32 `[count, 8]`: each of five changes with ``probability``, and by ``mirror`` half of
    the images mirrored untold."""
    numbers = generator(*seed_parts)
    happens = torch.rand(5, count, generator=numbers) < probability
    flips = torch.randint(2, (3, count), generator=numbers).float()
    zoom, right, down = torch.randn(3, count, generator=numbers) * torch.tensor(
        [[ZOOM], [SHIFT], [SHIFT]]
    )
    angle = (torch.rand(count, generator=numbers) * 2 - 1) * math.pi
    told = [flips[0], flips[1], zoom, angle.cos() - 1, angle.sin(), right, down]
    which = [0, 1, 2, 3, 3, 4, 4]
    rows = [value * happens[i] for value, i in zip(told, which, strict=True)]
    return torch.stack([*rows, flips[2] * mirror], dim=1)


def changed(images: Tensor, changes: Tensor) -> Tensor:
    """float32 `[N, C, H, H]`, each by its row of ``changes``; rows of zeros stay bit-equal."""
    mirrored, upside_down, zoom, cosine, sine, right, down, untold = changes.unbind(dim=1)
    across = (1 - 2 * mirrored) * (1 - 2 * untold)
    upright, inverse = 1 - 2 * upside_down, torch.exp2(-zoom)
    cos, sin = inverse * (1 + cosine), inverse * sine
    # From places of the result to places of the image, in [-1, 1]: shifted back, turned back, and
    # flipped back.
    x, y = -2 * right, -2 * down
    theta = torch.stack(
        [
            across * cos, across * sin, across * (cos * x + sin * y),
            -upright * sin, upright * cos, upright * (cos * y - sin * x),
        ],
        dim=1,
    )  # fmt: skip
    grid = nn.functional.affine_grid(
        theta.reshape(-1, 2, 3), list(images.shape), align_corners=False
    )
    moved = nn.functional.grid_sample(
        images.contiguous(), grid, padding_mode="reflection", align_corners=False
    )
    return torch.where(changes.any(dim=1).view(-1, 1, 1, 1), moved, images)
