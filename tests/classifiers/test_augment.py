"""Augmentation: each operation as torchvision's, images and labels stay what they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from mgdm_ray.classifiers import augment
from mgdm_ray.classifiers.augment import augmented, blended, blended_labels, moved_a_little

HOW = st.sampled_from(["none", "standard", "judge", "trivialaugment", "randaugment"])
IMAGES = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@given(HOW, st.integers(1, 9), st.sampled_from([1, 3]), st.integers(8, 20), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_images_stay_images(how: str, count: int, channels: int, size: int, seed: int) -> None:
    """Catches values outside [-1, 1], another shape or type, an input that changes in place, and
    numbers that are not a function of the seed."""
    number = torch.Generator().manual_seed(seed)
    images = torch.rand(count, channels, size, size, generator=number) * 2 - 1
    kept = images.clone()
    one, two = (augmented(images, how, ("a", seed)) for _ in range(2))
    assert torch.equal(images, kept)
    assert torch.equal(one, two)
    assert one.shape == images.shape
    assert one.dtype == torch.float32
    assert float(one.abs().max()) <= 1


@pytest.mark.parametrize("how", ["standard", "trivialaugment", "randaugment"])
def test_every_image_has_its_own_numbers(how: str) -> None:
    """Catches a policy that draws once for a batch, as torchvision's do."""
    same = IMAGES[:1].expand(24, -1, -1, -1) * 2 - 1
    found = augmented(same, how, ("a", 0))
    assert len({tuple(image.flatten().tolist()) for image in found}) > 12
    assert not torch.equal(found, augmented(same, how, ("a", 1)))


@pytest.mark.parametrize("space", [augment.WIDE, augment.RAND])
def test_nothing_changes_at_strength_zero(space: augment.Space) -> None:
    """Catches an operation whose magnitude 0 is not the identity; two have no magnitude."""
    for operation, _, _ in space:
        if operation not in (augment.autocontrast, augment.equalise):
            found = operation(IMAGES, torch.zeros(24))
            atol = 1 / 255 if operation is augment.posterise else 1e-5
            torch.testing.assert_close(found, IMAGES, atol=atol, rtol=0)


SCALARS = {
    augment.brightness: lambda x, m: tv.adjust_brightness(x, 1 + m),
    augment.colour: lambda x, m: tv.adjust_saturation(x, 1 + m),
    augment.contrast: lambda x, m: tv.adjust_contrast(x, 1 + m),
    augment.sharpness: lambda x, m: tv.adjust_sharpness(x, 1 + m),
    augment.solarise: lambda x, m: tv.solarize(x, 1 - m),
    augment.autocontrast: lambda x, _: tv.autocontrast(x),
}


@pytest.mark.parametrize("operation", SCALARS, ids=lambda op: op.__name__)
def test_colours_change_as_in_torchvision(operation: augment.Operation) -> None:
    """Catches a formula that differs, and a magnitude that goes to another image."""
    magnitudes = torch.linspace(-0.9, 0.9, 24)
    if operation is augment.solarise:
        magnitudes = magnitudes.abs()
    found = operation(IMAGES, magnitudes)
    expected = [SCALARS[operation](x, float(m)) for x, m in zip(IMAGES, magnitudes, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-6, rtol=0)


def test_bits_and_histograms_change_as_in_torchvision() -> None:
    eight = (IMAGES * 255).round().to(torch.uint8)
    images, bits = eight.float() / 255, torch.arange(24.0) % 7
    expected = [tv.posterize(x, 8 - int(b)) for x, b in zip(eight, bits, strict=True)]
    found = (augment.posterise(images, bits) * 255).round().to(torch.uint8)
    assert torch.equal(found, torch.stack(expected))
    flat = (augment.equalise(images, bits) * 255).round().to(torch.uint8)
    assert torch.equal(flat, torch.stack([tv.equalize(x) for x in eight]))


AFFINE = {
    augment.rotate: (40.0, {"angle": 40.0}),
    augment.translate_x: (0.25, {"translate": [-4, 0]}),
    augment.translate_y: (0.25, {"translate": [0, -4]}),
    augment.shear_x: (0.2, {"shear": [math.degrees(math.atan(0.2)), 0.0]}),
    augment.shear_y: (0.2, {"shear": [0.0, math.degrees(math.atan(0.2))]}),
}


@pytest.mark.parametrize("operation", AFFINE, ids=lambda op: op.__name__)
def test_shapes_change_as_in_torchvision(operation: augment.Operation) -> None:
    """Catches swapped axes and degrees taken for radians; away from the border, where padding
    differs, and up to the sign, which is drawn."""
    smooth = torch.nn.functional.avg_pool2d(IMAGES, 5, 1, 2)
    magnitude, given = AFFINE[operation]
    options = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **given}
    expected = tv.affine(smooth, **options, interpolation=tv.InterpolationMode.BILINEAR)
    gaps = [
        float(
            (operation(smooth, torch.full((24,), sign * magnitude)) - expected)[..., 6:10, 6:10]
            .abs()
            .max()
        )
        for sign in (1, -1)
    ]
    assert min(gaps) < 0.02 < max(gaps)


@given(st.floats(0.05, 5), st.floats(0, 5), st.integers(2, 9), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_blended_labels_are_shares_of_the_images(
    mixup: float, cutmix: float, count: int, seed: int
) -> None:
    """Catches labels that do not sum to one, or do not say how much of each image is in it."""
    labels = torch.arange(count) % 3
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 1, 12, 12)
    found, soft = blended(images, labels, 3, (mixup, cutmix), ("b", seed))
    torch.testing.assert_close(soft.sum(1), torch.ones(count))
    assert float(soft.min()) >= 0
    # Image i is the number i: its mean tells the share of the one before it.
    own = 1 - (found.mean((1, 2, 3))[1] - 1).abs()
    expected = torch.nn.functional.one_hot(labels, 3)
    expected = own * expected + (1 - own) * expected.roll(1, 0)
    torch.testing.assert_close(soft, expected, atol=1e-4, rtol=0)


def test_both_blends_take_turns() -> None:
    """Catches an option that hides the other."""
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    cut = 0
    for step in range(60):
        found, _ = blended(images, torch.arange(4) % 2, 2, (1.0, 1.0), ("t", step))
        whole = (found == images) | (found == images.roll(1, 0))
        cut += bool(whole.all())
    assert 15 < cut < 45
    assert torch.equal(blended_labels(torch.tensor([0, 1]), 2, 1.0), torch.eye(2))


def test_shifts_are_at_most_two_of_28_pixels() -> None:
    """Catches a share of the half side, or of the whole."""
    images = torch.full((300, 1, 57, 57), -1.0)
    images[:, :, 27:30, 27:30] = 1.0
    found = moved_a_little(images, ("s", 0))[:, 0]
    weight = found - found.amin((1, 2), keepdim=True)
    axis = torch.arange(57.0) - 28
    total = weight.sum((1, 2))
    for way in (axis.view(1, -1, 1), axis.view(1, 1, -1)):
        moved = ((weight * way).sum((1, 2)) / total).abs()
        assert 3 < float(moved.max()) < 57 * augment.SHIFT * 1.2
        assert np.isfinite(moved.numpy()).all()


def test_augmentation_changes_images_a_little_and_by_its_seed() -> None:
    """Catches augmentation that does nothing, leaves [-1, 1], or moves a batch as one."""
    ramp = torch.linspace(-0.8, 0.8, 16)
    images = (ramp.view(1, 1, 1, 16) + 0.3 * ramp.view(1, 1, 16, 1)).clamp(-1, 1)
    images = images.expand(64, 3, 16, 16).clone()
    kept = images.clone()
    one, two, other = (moved_a_little(images, ("a", i)) for i in (0, 0, 1))
    assert torch.equal(images, kept)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert float(one.abs().max()) <= 1
    assert not torch.equal(one[0], one[1])


def test_augmentation_flips_sideways_about_half_the_images_and_never_upside_down() -> None:
    """Catches swapped axes: MONAI's grids are (y, x)."""
    side = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(200, 1, 16, 16)
    moved = moved_a_little(side, ("f", 0))
    flipped = moved[..., -1].mean((1, 2)) < moved[..., 0].mean((1, 2))
    assert 70 < int(flipped.sum()) < 130
    up = moved_a_little(side.transpose(2, 3), ("f", 0))
    assert (up[:, 0, -1].mean(1) > up[:, 0, 0].mean(1)).all()


def test_augmentation_keeps_the_rotation_rigid() -> None:
    """Catches a shear: an off-centre dot keeps its distance from the centre up to the zoom."""
    images = torch.full((100, 1, 65, 65), -1.0)
    images[:, :, 31:34, 52:55] = 1.0  # 21 px right of the centre
    moved = moved_a_little(images, ("d", 0), shift=0)[:, 0]
    weight = moved - moved.amin((1, 2), keepdim=True)
    axis = torch.arange(65.0) - 32
    total = weight.sum((1, 2))
    y = (weight * axis.view(1, -1, 1)).sum((1, 2)) / total
    x = (weight * axis.view(1, 1, -1)).sum((1, 2)) / total
    radius, angle = torch.hypot(x, y), torch.atan2(y, x.abs())
    assert 21 * 0.88 < float(radius.min()) < float(radius.max()) < 21 * 1.12
    assert float(angle.abs().max()) < math.radians(11)
    assert float(angle.std()) > math.radians(3)
