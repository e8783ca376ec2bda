"""When a network sees which images, at which learning rate, and where it is validated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mgdm_ray.config import Training
from mgdm_ray.seeding import generator

SeedParts = tuple[str | int | float | bool, ...]

CHECKPOINTS = 10
"""Steps of a training at which ``checkpoint: best_validation`` looks, the last one included."""


def learning_rate(optimizer: torch.optim.Optimizer, training: Training) -> LRScheduler:
    """Of every step; ``optimizer`` must have been made with the peak."""
    if training.schedule == "one_cycle":  # Smith & Topin (2018), torch's other defaults
        return OneCycleLR(
            optimizer, training.learning_rate, total_steps=training.steps, pct_start=training.warmup
        )
    return LambdaLR(optimizer, lambda step: warmed_cosine(step, training.steps, training.warmup))


def warmed_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak at ``step`` (0-based): linear over the share ``warmup``, then a cosine."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) / 2


def checkpoints(steps: int) -> set[int]:
    """Equally spaced steps, 1-based; the last one is ``steps``."""
    return {math.ceil(steps * part / CHECKPOINTS) for part in range(1, CHECKPOINTS + 1)}


def batch_indices(
    count: int,
    batch_size: int,
    steps: int,
    seed_parts: SeedParts,
    weights: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """``steps`` index tensors [batch_size] over ``count`` images.

    Shuffled epochs are concatenated and cut into full batches: after k * count images every image
    was seen k times. With ``weights`` `[count]` an epoch is drawn with replacement, each image with
    a probability proportional to its weight.
    """
    stream = torch.empty(0, dtype=torch.int64)
    epoch = 0
    for _ in range(steps):
        while len(stream) < batch_size:
            number = generator(*seed_parts, "batch", epoch)
            if weights is None:
                order = torch.randperm(count, generator=number)
            else:
                order = torch.multinomial(weights, count, replacement=True, generator=number)
            stream = torch.cat([stream, order])
            epoch += 1
        yield stream[:batch_size]
        stream = stream[batch_size:]


def balancing_weights(labels: torch.Tensor) -> torch.Tensor:
    """`[N]` float64 for labels int64 `[N]`: every class that occurs has the same sum."""
    return 1 / torch.bincount(labels).double()[labels]
