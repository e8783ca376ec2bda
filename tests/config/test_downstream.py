"""Steps, epochs and recipes, on their way from the study to a job and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.config import ARMS, DEFAULT_ARMS, NETWORKS, DownstreamConfig, StudyConfig, Training
from mgdm_ray.config.downstream import DEFAULT_STEPS, NETWORK_RECIPES, PLAIN, USUAL


def training(network: str, images: int = 100, **given: Any) -> Training:
    config = DownstreamConfig.model_validate(given)
    return Training.of({"downstream": config.inputs(network)}, network, images)


def test_a_network_has_its_recipe_and_others_the_usual_one() -> None:
    """Catches a table that nothing reads, and a name that no network has."""
    assert set(NETWORK_RECIPES) <= set(NETWORKS)
    for name in (*NETWORKS, "resnet34"):
        found, expected = training(name), NETWORK_RECIPES.get(name, USUAL)
        assert (found.learning_rate, found.batch_size, found.warmup) == expected
        assert found.steps == DEFAULT_STEPS
        assert found.augment == "standard"


def test_what_is_given_goes_before_the_recipe_and_a_network_before_all() -> None:
    """Catches an override that reaches other networks, or loses against the table."""
    own = {"alexnet": {"learning_rate": 0.25}}
    options = {"learning_rate": 0.5, "batch_size": 7, "recipes": own}
    alexnet, vgg = (training(name, **options) for name in ("alexnet", "vgg16_bn"))
    assert (alexnet.learning_rate, vgg.learning_rate) == (0.25, 0.5)
    assert (alexnet.batch_size, vgg.batch_size) == (7, 7)


@given(st.floats(0.1, 50), st.integers(2, 64), st.integers(1, 5000))
def test_epochs_are_passes_over_the_real_images(epochs: float, batch: int, real: int) -> None:
    """Catches an epoch that is a step short, or longer in an arm with more images."""
    found = training("resnet18", real, epochs=epochs, batch_size=batch)
    assert (found.steps - 1) * batch < epochs * real <= found.steps * batch + 1e-6 * real * batch


def test_options_that_are_not_used_add_nothing_to_a_key() -> None:
    """Catches an option whose arrival makes all users compute anew."""
    plain = DownstreamConfig(
        steps=3, batch_size=4, learning_rate=0.1, warmup=PLAIN["warmup"], augment="none"
    )
    assert set(plain.inputs("resnet18")) == {
        "steps", "batch_size", "learning_rate", "weight_decay", "precision", "pretrained",
        "class_weighted",
    }  # fmt: skip
    defaults = Training(steps=3)
    assert {name: getattr(defaults, name) for name in PLAIN} == PLAIN


@pytest.mark.parametrize("name", PLAIN)
def test_options_that_are_used_come_back(name: str) -> None:
    """Catches an option that is lost between the study and the job: results under a wrong key."""
    other = {
        "warmup": 0.1, "schedule": "cosine", "augment": "trivialaugment", "mixup": 0.3,
        "cutmix": 0.4, "class_balanced": True, "checkpoint": "best_validation",
    }[name]  # fmt: skip
    assert getattr(training("resnet18", **{name: other}), name) == other


def test_every_arm_but_the_augmented_one_by_default() -> None:
    """Catches a study without arms that the default augmentation refuses."""
    assert set(ARMS) - set(DEFAULT_ARMS) == {"augment"}
    study = {"name": "s", "datasets": ["breastmnist"], "networks": ["resnet18"]}
    assert StudyConfig.model_validate(study).arms == DEFAULT_ARMS
