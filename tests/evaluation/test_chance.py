"""What guessing reaches, and which networks never pass it."""

from __future__ import annotations

import numpy as np
import pytest

from mgdm_ray.evaluation.chance import chance_limit, networks_at_chance

ARMS = ("real", "duplicate", "disturb")


@pytest.mark.parametrize("counts", [[50, 50], [78, 34, 20, 15, 5], [0, 30, 30]])
def test_guessing_passes_the_limit_in_one_of_twenty_cases(counts: list[int]) -> None:
    """Catches a guide that is called better than chance because classes are few or rare."""
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = [k for k, n in enumerate(counts) if n]
    rng = np.random.default_rng(0)
    guesses = rng.choice(classes, size=(4000, len(labels)))
    accuracy = np.mean([(guesses[:, labels == k] == k).mean(axis=1) for k in classes], axis=0)
    assert 0.03 < (accuracy > chance_limit(labels)).mean() < 0.075


def test_the_limit_by_hand() -> None:
    """50 images of each of two classes: 0.5 + 1.645 * sqrt(2 * 0.25 / 50) / 2 = 0.582. Catches a
    limit that nothing can pass: one image of each of five classes."""
    assert chance_limit(np.repeat([0, 1], 50)) == pytest.approx(0.58225)
    assert chance_limit(np.arange(5)) < 1


def test_only_chance_in_every_arm_counts() -> None:
    """Catches a network that is left out because it fails with real images alone: where added
    images made it learn, that is the answer."""
    cells = {("d", "dead", arm, seed): 0.5 + 0.01 * seed for arm in ARMS for seed in (0, 1)}
    cells |= {("d", "saved", arm, 0): 0.9 if arm == "disturb" else 0.5 for arm in ARMS}
    assert networks_at_chance(cells, {"d": 0.5}, ARMS) == [("d", "dead")]
    assert networks_at_chance(cells, {"d": 0.2}, ARMS) == []
    assert networks_at_chance(cells, {}, ARMS) == []
    # While a study runs, an arm may not have been tried yet.
    assert networks_at_chance(cells, {"d": 0.5}, [*ARMS, "generate"]) == []
