"""What a GPU is given: 8-bit images, augmented there, few copies and one wait a step."""

from __future__ import annotations

import contextlib

import pytest
import torch
from monai.networks.layers.spatial_transforms import AffineTransform

from mgdm_ray.classifiers import fit as fitting
from mgdm_ray.classifiers.augment import FLIP, ROTATION, ZOOM, augmented
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.config import Training
from mgdm_ray.data.pixels import Pixels, as_float
from mgdm_ray.seeding import generator
from tests.classifiers.test_fit import small
from tests.fake_gpu import Measured, fake_gpu

LABELS = torch.arange(30) % 3
NUMBERS = torch.Generator().manual_seed(0)
REAL = torch.randint(256, (20, 1, 8, 8), generator=NUMBERS, dtype=torch.uint8)
ADDED = torch.rand(10, 1, 8, 8, generator=NUMBERS) * 2 - 1


def recipe(steps: int, **changes: object) -> Recipe:
    config = Training(steps=steps, batch_size=12, precision="float32", augment="standard")
    return Recipe(config, 3, ("seed",), **changes)  # type: ignore[arg-type]


def test_8_bit_images_train_the_same() -> None:
    """Would catch rounding on the way to floats, and real images that are taken for added ones."""
    floats, images = torch.cat([as_float(REAL), ADDED]), Pixels((REAL, ADDED))
    options = recipe(6)
    plain = fit(small(), floats, LABELS, options, {"val": as_float(REAL)})
    small_ones = fit(small(), images, LABELS, options, {"val": REAL})
    assert small_ones.history == plain.history
    assert (small_ones.probabilities["val"] == plain.probabilities["val"]).all()


def test_augmentation_is_that_of_monai() -> None:
    """Would catch rotations the other way, or flips along the other axis, than before it was
    written without MONAI."""
    images = torch.rand(40, 3, 9, 9, generator=NUMBERS) * 0.2
    u = torch.rand(5, 40, generator=generator("a", 1)) * 2 - 1
    angle, zoom = u[0] * ROTATION, 1 / (1 + u[1] * ZOOM)
    mirror = torch.where(u[2] < 2 * FLIP - 1, -1.0, 1.0)
    theta = torch.zeros(40, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = zoom * angle.cos(), -zoom * angle.sin() * mirror
    theta[:, 1, 0], theta[:, 1, 1] = zoom * angle.sin(), zoom * angle.cos() * mirror
    warp = AffineTransform(normalized=True, align_corners=False, padding_mode="border")
    moved = warp(images, theta)
    scale, shift = 1 + 0.1 * u[3].view(-1, 1, 1, 1), 0.1 * u[4].view(-1, 1, 1, 1)
    assert torch.equal(augmented(images, "judge", ("a", 1)), (moved * scale + shift).clamp(-1, 1))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_copies_numbers_only(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch images that cross to the GPU at every step, and a wait for each part.

    The copies are the rows, twice, and the numbers of the augmentation.
    """
    monkeypatch.setattr(fitting, "_seeded", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("mgdm_ray.data.pixels.has_room", lambda *_: True)
    monkeypatch.setattr(fitting, "_check", lambda *_: None)
    rows = torch.arange(12)
    monkeypatch.setattr(fitting, "batch_indices", lambda _n, _size, count, *_: [rows] * count)

    def counts(steps: int) -> Measured:
        network, images = small(), Pixels((REAL, ADDED))
        options = recipe(steps, device="cuda", micro_batches=micro_batches)
        with fake_gpu() as gpu, gpu.measured() as found:
            fit(network, images, LABELS, options)
        return found

    more = counts(6).counts
    more.subtract(counts(2).counts)
    assert (more["to device"] / 4, (more["to host"] + more["waits"]) / 4) == (3, 1)
