"""What a fitted guide says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from mgdm_ray.pipeline.tasks.fit import chance_limit


@pytest.mark.parametrize("counts", [[50, 50], [78, 34, 20, 15, 5], [0, 30, 30]])
def test_guessing_passes_the_limit_in_one_of_twenty_cases(counts: list[int]) -> None:
    """Catches a guide that is called better than chance because classes are few or rare."""
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = [k for k, n in enumerate(counts) if n]
    rng = np.random.default_rng(0)
    guesses = rng.choice(classes, size=(4000, len(labels)))
    accuracy = np.mean([(guesses[:, labels == k] == k).mean(axis=1) for k in classes], axis=0)
    assert 0.03 < (accuracy > chance_limit(labels)).mean() < 0.075


def test_a_perfect_guide_is_above_the_limit() -> None:
    """Catches a limit that nothing can pass: one image of each of five classes."""
    assert chance_limit(np.arange(5)) < 1
    assert chance_limit(np.repeat([0, 1], 1000)) == pytest.approx(0.5, abs=0.02)
