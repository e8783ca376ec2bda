"""Augmentation of a batch on its device: every image has its own numbers, drawn on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from mgdm_ray.seeding import derive_seed, generator

SeedParts = tuple[str | int | float | bool, ...]

FLIP = 0.5
"""Probability of a left-right flip. Never upside down: gravity and anatomy have a direction."""
ROTATION = math.radians(10)
"""Largest rotation, radians."""
ZOOM = 0.1
"""Largest relative change of size."""
SHIFT = 0.07
"""Largest shift of a side: 2 of 28 pixels."""
INTENSITY_SCALE = 0.1
"""Largest relative change of contrast."""
INTENSITY_SHIFT = 0.1
"""Largest change of brightness; the whole range of images is 2."""

BINS = 31
"""Magnitudes of both policies, 0 (identity) to 30."""
RAND_OPS, RAND_MAGNITUDE = 2, 9
"""RandAugment's defaults (Cubuk et al. 2020): operations in a row, and their magnitude."""


def augmented(images: Tensor, how: str, seed_parts: SeedParts) -> Tensor:
    """float32 `[N, C, H, W]` in [-1, 1], changed; a function of the seed parts.

    ``how``: a ``config.Augmentation``, or ``judge``. Images are changed where they are, all at
    once: transforms of one image at a time take 5 ms for 28 px.
    """
    if how == "none":
        return images
    if how in ("standard", "judge"):
        return moved_a_little(images, seed_parts, shift=SHIFT if how == "standard" else 0.0)
    number = generator(*seed_parts)
    n = len(images)
    if how == "trivialaugment":  # Mueller & Hutter 2021: one operation of any magnitude
        return _policy(images, WIDE, [torch.randint(BINS, (n,), generator=number)], number)
    magnitudes = [torch.full((n,), RAND_MAGNITUDE)] * RAND_OPS
    return _policy(images, RAND, magnitudes, number)


def moved_a_little(images: Tensor, seed_parts: SeedParts, shift: float = SHIFT) -> Tensor:
    """Flip, rotate, scale, shift and change the intensities of each image; stays in [-1, 1]."""
    n = len(images)
    number = generator(*seed_parts)
    u = torch.rand(5, n, generator=number) * 2 - 1  # uniform in [-1, 1)
    right, down = (torch.rand(2, n, generator=number) * 2 - 1) * 2 * shift
    angle, zoom = u[0] * ROTATION, 1 / (1 + u[1] * ZOOM)
    mirror = torch.where(u[2] < 2 * FLIP - 1, -1.0, 1.0)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    # Rows and columns in the order (x, y); maps output to input places.
    matrix = [cos * mirror, sin, right, -sin * mirror, cos, down]
    numbers = torch.stack([*matrix, 1 + u[3] * INTENSITY_SCALE, u[4] * INTENSITY_SHIFT], dim=1)
    numbers = numbers.to(images.device)
    scale, brightness = numbers[:, 6:].unbind(dim=1)
    moved = _warped(images, numbers[:, :6].reshape(n, 2, 3))
    return (moved * scale.view(n, 1, 1, 1) + brightness.view(n, 1, 1, 1)).clamp(-1, 1)


def _warped(images: Tensor, theta: Tensor) -> Tensor:
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(
        images.contiguous(), grid, padding_mode="border", align_corners=False
    )


# --- TrivialAugment and RandAugment -------------------------------------------------------------
# torchvision's transforms draw one operation for a whole batch. Here an operation gets its images
# of a batch, float32 [n, C, H, W] in [0, 1], and a magnitude of each, float32 [n].

Operation = Callable[[Tensor, Tensor], Tensor]


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + _each(factor) * (images - other)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else tv.rgb_to_grayscale(images)


def _affine(images: Tensor, xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, y: Tensor) -> Tensor:
    theta = torch.stack([xx, xy, x, yx, xx, y], dim=1).view(-1, 2, 3)
    return _warped(images, theta)


def shear_x(images: Tensor, m: Tensor) -> Tensor:
    return _affine(images, m * 0 + 1, m, m * 0, m * 0, m * 0)


def shear_y(images: Tensor, m: Tensor) -> Tensor:
    return _affine(images, m * 0 + 1, m * 0, m * 0, m, m * 0)


def translate_x(images: Tensor, m: Tensor) -> Tensor:
    return _affine(images, m * 0 + 1, m * 0, 2 * m, m * 0, m * 0)


def translate_y(images: Tensor, m: Tensor) -> Tensor:
    return _affine(images, m * 0 + 1, m * 0, m * 0, m * 0, 2 * m)


def rotate(images: Tensor, m: Tensor) -> Tensor:
    angle = m.deg2rad()
    return _affine(images, angle.cos(), -angle.sin(), m * 0, angle.sin(), m * 0)


def brightness(images: Tensor, m: Tensor) -> Tensor:
    return _blended(images, torch.zeros_like(images), 1 + m)


def colour(images: Tensor, m: Tensor) -> Tensor:
    return _blended(images, _grey(images), 1 + m)


def contrast(images: Tensor, m: Tensor) -> Tensor:
    return _blended(images, _grey(images).mean((1, 2, 3), keepdim=True), 1 + m)


def sharpness(images: Tensor, m: Tensor) -> Tensor:
    return _blended(images, tv.adjust_sharpness(images, 0.0), 1 + m)


def posterise(images: Tensor, m: Tensor) -> Tensor:
    """Keep ``8 - m`` bits."""
    width = 2 ** _each(m.round())
    return ((images * 255).round() / width).floor() * width / 255


def solarise(images: Tensor, m: Tensor) -> Tensor:
    """Invert what is brighter than ``1 - m``; nothing at 0."""
    return torch.where(images > 1 - _each(m), 1 - images, images)


def autocontrast(images: Tensor, m: Tensor) -> Tensor:  # noqa: ARG001
    found: Tensor = tv.autocontrast(images)
    return found


def equalise(images: Tensor, m: Tensor) -> Tensor:  # noqa: ARG001
    found: Tensor = tv.equalize((images * 255).round().to(torch.uint8))
    return found.float() / 255


def identity(images: Tensor, m: Tensor) -> Tensor:  # noqa: ARG001
    return images


Space = Sequence[tuple[Operation, float, bool]]
"""Operation, its largest magnitude, and whether it has a sign."""


def _space(shear: float, shift: float, angle: float, blend: float, bits: float) -> Space:
    return [
        (identity, 0.0, False),
        *((op, shear, True) for op in (shear_x, shear_y)),
        *((op, shift, True) for op in (translate_x, translate_y)),
        (rotate, angle, True),
        *((op, blend, True) for op in (brightness, colour, contrast, sharpness)),
        (posterise, bits, False),
        (solarise, 1.0, False),
        (autocontrast, 0.0, False),
        (equalise, 0.0, False),
    ]


WIDE = _space(0.99, 32 / 224, 135.0, 0.99, 6.0)
"""TrivialAugmentWide's, with shifts in shares of a side: 32 pixels would leave nothing of 28."""
RAND = _space(0.3, 150 / 331, 30.0, 0.9, 4.0)


def _policy(
    images: Tensor, space: Space, magnitudes: Sequence[Tensor], number: torch.Generator
) -> Tensor:
    """One operation after another, each drawn anew for every image; `[N, C, H, W]` in [-1, 1]."""
    n = len(images)
    found = (images + 1) / 2
    for magnitude in magnitudes:
        chosen = torch.randint(len(space), (n,), generator=number)
        sign = 1 - 2 * torch.randint(2, (n,), generator=number)
        for index in sorted(set(chosen.tolist())):
            operation, most, signed = space[index]
            rows = (chosen == index).nonzero().flatten()
            strength = magnitude[rows] / (BINS - 1) * most * (sign[rows] if signed else 1)
            rows = rows.to(images.device)
            found[rows] = operation(found[rows], strength.float().to(images.device))
    return (found * 2 - 1).clamp(-1, 1)


# --- blends of two images ----------------------------------------------------------------------


def blended_labels(labels: Tensor, num_classes: int, share: float) -> Tensor:
    """`[N, num_classes]` float32, rows sum to 1: ``share`` of one's own, the rest of the next."""
    own = nn.functional.one_hot(labels, num_classes).float()
    return share * own + (1 - share) * own.roll(1, 0)


def blended(
    images: Tensor, labels: Tensor, num_classes: int, alphas: tuple[float, float], parts: SeedParts
) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of each image with the one before.

    ``alphas``: of MixUp and of CutMix, 0 for none; with both, one at random. Labels int64 `[N]`
    become shares `[N, num_classes]`.
    """
    number = np.random.default_rng(derive_seed(*parts))
    mixup, cutmix = alphas
    cut = cutmix > 0 and (not mixup or number.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(number.beta(alpha, alpha))
    other = images.roll(1, 0)
    if not cut:
        return share * images + (1 - share) * other, blended_labels(labels, num_classes, share)
    height, width = images.shape[-2:]
    half = math.sqrt(1 - share) / 2
    centre = number.random(2) * (height, width)
    top, left = (max(0, round(c - half * s)) for c, s in zip(centre, (height, width), strict=True))
    bottom, right = (
        min(s, round(c + half * s)) for c, s in zip(centre, (height, width), strict=True)
    )
    images = images.clone()
    images[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return images, blended_labels(labels, num_classes, share)
