"""Chance level: what guessing reaches, and which networks never pass it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

NEAR_CHANCE = 0.02
"""A mean balanced accuracy at most this far above 1 / classes counts as chance."""


def chance_limit(labels: NDArray[np.integer]) -> float:
    """Balanced accuracy that guessing exceeds in 5 % of cases, for these labels.

    Guesses hit class k of n_k images with standard error sqrt(q (1 - q) / n_k), q = 1 / K.
    """
    counts = np.unique(labels, return_counts=True)[1]
    q = 1 / len(counts)
    return float(q + 1.645 * np.sqrt((q * (1 - q) / counts).sum()) / len(counts))


def networks_at_chance(
    cells: Mapping[tuple[str, str, str, int], float],
    chance: Mapping[str, float],
    arms: Collection[str],
) -> list[tuple[str, str]]:
    """(dataset, network) at chance in every one of ``arms``: no difference can show there.

    ``cells`` are balanced accuracies by (dataset, network, arm, seed); ``chance`` is 1 / classes by
    dataset. The mean over seeds of every arm must exist and lie within NEAR_CHANCE of it. All arms
    decide: selecting networks by one arm would bias every contrast with that arm.
    """
    by_arm: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (dataset, network, arm, _), value in cells.items():
        by_arm.setdefault((dataset, network), {}).setdefault(arm, []).append(value)
    return [
        (dataset, network)
        for (dataset, network), found in by_arm.items()
        if dataset in chance
        and set(arms) <= set(found)
        and all(sum(v) / len(v) <= chance[dataset] + NEAR_CHANCE for v in found.values())
    ]
