"""Learning rates as torch's own schedulers give them; batches; checkpoints."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from mgdm_ray.classifiers.schedule import (
    balancing_weights,
    batch_indices,
    checkpoints,
    learning_rate,
)
from mgdm_ray.config import Training


def optimizer() -> AdamW:
    return AdamW([torch.nn.Parameter(torch.zeros(1))], 0.01)


def rates(schedule: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@given(st.integers(20, 200), st.floats(0.05, 0.9))
@settings(max_examples=30, deadline=None)
def test_warmed_cosine_is_that_of_torch(steps: int, warmup: float) -> None:
    """Catches a warm-up that starts at 0, or a fall that ends early."""
    rising = round(warmup * steps)
    training = Training(steps=steps, learning_rate=0.01, warmup=warmup, schedule="cosine")
    ours = rates(learning_rate(optimizer(), training), steps)
    theirs = optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its parts in an order it warns of
        parts = [
            LinearLR(theirs, 1 / (rising + 1), 1.0, total_iters=rising),
            CosineAnnealingLR(theirs, steps - rising),
        ]
        both = SequentialLR(theirs, parts, [rising])
    np.testing.assert_allclose(ours, rates(both, steps), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_one_cycle_is_that_of_torch(warmup: float) -> None:
    """Catches a warm-up that does not reach it, and momentum that stays."""
    training = Training(steps=50, learning_rate=0.01, warmup=warmup)
    mine, theirs = optimizer(), optimizer()
    schedule = learning_rate(mine, training)
    expected = OneCycleLR(theirs, 0.01, total_steps=50, pct_start=warmup)
    for _ in range(49):
        assert mine.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        assert mine.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]
        for one, its in ((mine, schedule), (theirs, expected)):
            one.step()
            its.step()


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    training = Training(steps=9, learning_rate=0.01, warmup=0, schedule="cosine")
    found = rates(learning_rate(SGD([torch.nn.Parameter(torch.zeros(1))], 0.01), training), 9)
    assert found[0] == 0.01
    assert found == sorted(found, reverse=True)
    assert found[-1] > 0


@given(st.integers(1, 5000))
def test_ten_equally_spaced_checkpoints_end_with_the_last_step(steps: int) -> None:
    """Catches a training whose end is never looked at."""
    found = sorted(checkpoints(steps))
    assert found[-1] == steps
    assert found[0] >= 1
    assert len(found) == min(steps, 10)
    assert max(np.diff([0, *found])) - min(np.diff([0, *found])) <= 1


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_balanced_batches_have_every_class_equally_often(labels: list[int], seed: int) -> None:
    """Catches weights by image instead of by class, and draws that ignore the seed."""
    y = torch.tensor(labels)
    weights = balancing_weights(y)
    sums = torch.zeros(5, dtype=torch.float64).index_add(0, y, weights)
    assert torch.allclose(sums[y.unique()], torch.ones(1, dtype=torch.float64))
    one, two = (torch.cat([*batch_indices(len(y), 50, 60, ("b", seed), weights)]) for _ in range(2))
    assert torch.equal(one, two)
    shares = torch.bincount(y[one], minlength=5)[y.unique()] / 3000
    assert float((shares - 1 / len(shares)).abs().max()) < 0.05


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
