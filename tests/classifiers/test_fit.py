"""Training: determinism, batches, augmentation, failures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mgdm_ray.classifiers.fit import FitResult, NonFiniteLoss, Recipe, fit, predict
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import Training


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
    numbers = {"steps": 6, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"}
    given = {name: changes.pop(name) for name in [*changes] if name in Training.model_fields}
    on_step = changes.pop("on_step", None)
    recipe = Recipe(Training(**{**numbers, **given}), 3, **{"seed_parts": ("cell", 0), **changes})
    seen = {"val": images}
    return fit(network or small(), images, labels, recipe, seen, on_step, (images, labels.numpy()))


@pytest.mark.parametrize(
    "options",
    [
        {"augment": "none"},
        {"augment": "standard"},
        {"augment": "trivialaugment", "mixup": 0.4},
        {"augment": "randaugment", "cutmix": 1.0, "class_balanced": True},
        {"checkpoint": "best_validation", "schedule": "cosine", "steps": 12},
    ],
)
def test_equal_arguments_give_bit_equal_probabilities(options: dict[str, Any]) -> None:
    """Catches draws from the global generator (dropout!) or an unseeded augmentation."""
    one = run(**options)
    with torch.random.fork_rng(devices=[]):
        torch.rand(7)
        two = run(**options)
    assert np.array_equal(one.probabilities["val"], two.probabilities["val"])
    assert one.history == two.history


def test_real_network_is_bit_reproducible() -> None:
    """Catches non-deterministic kernels in a torchvision network with dropout and batch norm."""
    images, labels = (t[:12] for t in toy())
    images = nn.functional.interpolate(images, size=24)
    config = Training(steps=2, batch_size=4)
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
    run(augment="randaugment", mixup=0.2)
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


def test_fewer_images_than_a_batch_train() -> None:
    """Catches an endless wait for a full epoch."""
    images, labels = (t[:3] for t in toy())
    config = Training(steps=2, batch_size=8)
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
    config = Training(steps=3, batch_size=8)
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
        fit(small(), images, labels, Recipe(Training(steps=1), 3, ("s",)))


def test_best_validation_keeps_the_best_of_ten_and_trains_as_ever() -> None:
    """Catches weights of another step, a look that changes the training, and a last step that wins
    whatever it scores."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int, _loss: float) -> None:
        seen[step] = {name: value.clone() for name, value in network.state_dict().items()}

    options = {"steps": 20, "learning_rate": 0.3, "checkpoint": "best_validation"}
    network = small()
    found = run(network, on_step=keep, **options)
    assert run(**{**options, "checkpoint": "last"}).history == found.history
    images, labels = toy()
    merits = {}
    for step in range(2, 21, 2):
        other = small()
        other.load_state_dict(seen[step])
        p = predict(other, images, 3, 8, "cpu")
        truth = p[range(len(labels)), labels.numpy()]
        recall = [float((p.argmax(1) == c)[labels.numpy() == c].mean()) for c in range(3)]
        merits[step] = (round(sum(recall) / 3, 12), float(np.log(truth.clip(1e-12)).mean()))
    best = max(merits, key=lambda step: merits[step])
    assert found.step == best != 20
    for name, value in network.state_dict().items():
        assert torch.equal(value, seen[best][name])


def test_best_validation_without_validation_is_refused() -> None:
    images, labels = toy()
    recipe = Recipe(Training(steps=1, checkpoint="best_validation"), 3, ("s",))
    with pytest.raises(ValueError, match="validation images"):
        fit(small(), images, labels, recipe)


def test_blended_labels_train_in_parts_as_in_one() -> None:
    """Catches soft labels whose weighted mean divides by another sum."""
    weights = torch.tensor([0.5, 1.0, 3.0])
    whole = run(small(dropout=0), mixup=0.5, class_weights=weights)
    cut = run(small(dropout=0), mixup=0.5, class_weights=weights, micro_batches=2)
    np.testing.assert_allclose(cut.probabilities["val"], whole.probabilities["val"], atol=1e-5)
    plain = run(small(dropout=0), class_weights=weights)
    assert not np.allclose(plain.probabilities["val"], whole.probabilities["val"], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "batch_size", "parts", "expected"),
    [(8, 8, 1, [128, 22]), (8, 60, 2, [30] * 5), (8, 140, 1, [140, 10]), (256, 8, 1, [8, 2])],
)
def test_images_are_evaluated_many_at_a_time(
    size: int, batch_size: int, parts: int, expected: list[int]
) -> None:
    """Catches evaluation in small batches of training, and one of large images that is larger."""
    network, seen = small(), list[int]()
    network.register_forward_hook(
        lambda module, inputs, _: None if module.training else seen.append(len(inputs[0]))
    )
    images, labels = toy()
    others = toy(150 if size == 8 else 10)[0]
    others = nn.functional.interpolate(others, size=size)
    config = Training(steps=2, batch_size=batch_size, precision="float32")
    recipe = Recipe(config, 3, ("cell", 0), micro_batches=parts)
    found = fit(network, images, labels, recipe, {"val": others}).probabilities["val"]
    assert seen == expected
    alone = predict(network, others, 3, 1, "cpu")
    np.testing.assert_allclose(found, alone, atol=1e-6)
