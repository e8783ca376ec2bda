"""Training: determinism, batches, augmentation, failures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mgdm_ray.classifiers.fit import FitResult, NonFiniteLoss, Recipe, augmented, batch_indices, fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import DownstreamConfig


def small(seed: int = 0, dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 3),
        )


def toy(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Three brightness levels with noise."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return (0.1 * noise + (labels * 0.6 - 0.6).view(-1, 1, 1, 1)).clamp(-1, 1), labels


def run(network: nn.Module | None = None, **changes: Any) -> FitResult:
    images, labels = toy()
    config = DownstreamConfig(
        steps=changes.pop("steps", 6), batch_size=8, learning_rate=0.01, precision="float32"
    )
    on_step = changes.pop("on_step", None)
    recipe = Recipe(config, 3, **{"seed_parts": ("cell", 0), **changes})
    return fit(network or small(), images, labels, recipe, {"val": images}, on_step)


@pytest.mark.parametrize("augment", [False, True])
def test_equal_arguments_give_bit_equal_probabilities(augment: bool) -> None:
    """Catches draws from the global generator (dropout!) or an unseeded augmentation."""
    one = run(augment=augment)
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)
        two = run(augment=augment)
    assert np.array_equal(one.probabilities["val"], two.probabilities["val"])
    assert one.history == two.history


def test_real_network_is_bit_reproducible() -> None:
    """Catches non-deterministic kernels in a torchvision network with dropout and batch norm."""
    images, labels = (t[:12] for t in toy())
    images = nn.functional.interpolate(images, size=24)
    config = DownstreamConfig(steps=2, batch_size=4)
    results = [
        fit(
            build_network("mobilenet_v2", 3, 1, 24, "r"),
            images,
            labels,
            Recipe(config, 3, ("r",)),
            {"v": images},
        )
        for _ in range(2)
    ]
    assert np.array_equal(*(r.probabilities["v"] for r in results))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    parts: int, weights: torch.Tensor | None
) -> None:
    """Catches a cell that had to save memory and was therefore trained on another loss."""
    whole = run(small(dropout=0), class_weights=weights)
    cut = run(small(dropout=0), class_weights=weights, micro_batches=parts)
    np.testing.assert_allclose(cut.probabilities["val"], whole.probabilities["val"], atol=1e-5)
    for a, b in zip(cut.history, whole.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


def test_parts_of_a_batch_take_less_memory() -> None:
    """Catches a batch that goes through the network whole, and so saves nothing."""
    alive: list[int] = []
    network = small(dropout=0)
    network[0].register_forward_hook(lambda _module, args, _out: alive.append(len(args[0])))
    run(network, micro_batches=2, steps=1)
    assert max(alive) == 4, "the batch has 8 images"


def test_seed_parts_change_the_result() -> None:
    """Catches a seed that is not passed on: cells of other seeds would be copies."""
    one, two = run(), run(seed_parts=("cell", 1))
    assert not np.array_equal(one.probabilities["val"], two.probabilities["val"])


def test_global_random_state_is_left_alone() -> None:
    """Catches dropout seeding that leaks."""
    before = torch.get_rng_state()
    run(augment=True)
    assert torch.equal(before, torch.get_rng_state())


def test_learns_the_toy_and_reports_every_step() -> None:
    """Catches an optimiser that does not step, and steps that are miscounted."""
    seen: list[tuple[int, float]] = []
    result = run(small(dropout=0.0), steps=60, on_step=lambda s, x: seen.append((s, x)))
    assert [s for s, _ in seen] == list(range(1, 61))
    assert [{"step": s, "loss": x} for s, x in seen] == result.history
    p = result.probabilities["val"]
    assert p.dtype == np.float64
    assert p.shape == (30, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (p.argmax(1) == toy()[1].numpy()).mean() > 0.9


@given(st.integers(1, 40), st.integers(2, 33), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_batches_are_full_and_see_every_image_equally_often(
    count: int, batch: int, steps: int
) -> None:
    """Catches short last batches (batch norm!) and images that are never drawn."""
    batches = list(batch_indices(count, batch, steps, ("b", 0)))
    assert len(batches) == steps
    assert all(b.shape == (batch,) for b in batches)
    seen = np.bincount(torch.cat(batches).numpy(), minlength=count)
    assert len(seen) == count
    assert seen.max() - seen.min() <= 1


def test_fewer_images_than_a_batch_train() -> None:
    """Catches an endless wait for a full epoch."""
    images, labels = (t[:3] for t in toy())
    config = DownstreamConfig(steps=2, batch_size=8)
    assert len(fit(small(), images, labels, Recipe(config, 3, ("s",))).history) == 2


def test_class_weights_pull_towards_the_weighted_class() -> None:
    """Catches weights that are ignored."""
    plain = run(steps=20)
    weighted = run(steps=20, class_weights=torch.tensor([0.05, 0.05, 10.0]))
    gain = weighted.probabilities["val"][:, 2].mean() - plain.probabilities["val"][:, 2].mean()
    assert gain > 0.1


def test_nan_loss_stops_at_its_step() -> None:
    """Catches training that goes on with nan and ends in a score of chance."""
    images, labels = toy()
    images[:] = math.nan
    config = DownstreamConfig(steps=3, batch_size=8)
    with pytest.raises(NonFiniteLoss, match="step 1") as caught:
        fit(small(), images, labels, Recipe(config, 3, ("s",)))
    assert caught.value.step == 1


def test_network_broken_by_the_last_step_is_noticed() -> None:
    """Catches nan probabilities that no loss has shown."""

    def poison(step: int, _loss: float) -> None:
        if step == 6:
            with torch.no_grad():
                next(network.parameters()).fill_(math.nan)

    network = small()
    with pytest.raises(NonFiniteLoss, match="prediction"):
        run(network, on_step=poison)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_trainings_work(steps: int) -> None:
    """Catches a one-cycle schedule that divides by zero."""
    assert len(run(steps=steps).history) == steps


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (
            torch.zeros(2, 1, 8, 8, dtype=torch.float64),
            torch.zeros(2, dtype=torch.int64),
            "float32",
        ),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "N > 0"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), r"int64 \[2\]"),
        (torch.zeros(2, 1, 8, 8), torch.tensor([0, 3]), r"0 \.\. 2"),
    ],
)
def test_other_forms_are_refused(images: torch.Tensor, labels: torch.Tensor, says: str) -> None:
    """Catches images of another type, misaligned labels and labels of another dataset."""
    with pytest.raises(ValueError, match=says):
        fit(small(), images, labels, Recipe(DownstreamConfig(steps=1), 3, ("s",)))


def test_augmentation_changes_images_a_little_and_by_its_seed() -> None:
    """Catches augmentation that does nothing, leaves [-1, 1], or moves a batch as one."""
    ramp = torch.linspace(-0.8, 0.8, 16)
    images = (ramp.view(1, 1, 1, 16) + 0.3 * ramp.view(1, 1, 16, 1)).clamp(-1, 1)
    images = images.expand(64, 3, 16, 16).clone()
    kept = images.clone()
    one, two, other = (augmented(images, ("a", i)) for i in (0, 0, 1))
    assert torch.equal(images, kept)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert float(one.abs().max()) <= 1
    assert not torch.equal(one[0], one[1])


def test_augmentation_flips_sideways_about_half_the_images_and_never_upside_down() -> None:
    """Catches swapped axes: MONAI's grids are (y, x)."""
    side = torch.linspace(-1, 1, 16).view(1, 1, 1, 16).expand(200, 1, 16, 16)
    moved = augmented(side, ("f", 0))
    flipped = moved[..., -1].mean((1, 2)) < moved[..., 0].mean((1, 2))
    assert 70 < int(flipped.sum()) < 130
    up = augmented(side.transpose(2, 3), ("f", 0))
    assert (up[:, 0, -1].mean(1) > up[:, 0, 0].mean(1)).all()


def test_augmentation_keeps_the_rotation_rigid() -> None:
    """Catches a shear: an off-centre dot keeps its distance from the centre up to the zoom."""
    images = torch.full((100, 1, 65, 65), -1.0)
    images[:, :, 31:34, 52:55] = 1.0  # 21 px right of the centre
    moved = augmented(images, ("d", 0))[:, 0]
    weight = moved - moved.amin((1, 2), keepdim=True)
    axis = torch.arange(65.0) - 32
    total = weight.sum((1, 2))
    y = (weight * axis.view(1, -1, 1)).sum((1, 2)) / total
    x = (weight * axis.view(1, 1, -1)).sum((1, 2)) / total
    radius, angle = torch.hypot(x, y), torch.atan2(y, x.abs())
    assert 21 * 0.88 < float(radius.min()) < float(radius.max()) < 21 * 1.12
    assert float(angle.abs().max()) < math.radians(11)
    assert float(angle.std()) > math.radians(3)
