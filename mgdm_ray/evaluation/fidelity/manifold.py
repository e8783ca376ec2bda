"""Precision, recall, density and coverage (PRDC) of synthetic images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

Array = NDArray[np.floating]

NEIGHBOURS = 5


def manifold_scores(real: Array, other: Array, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return ``precision``, ``recall``, ``density`` and ``coverage`` of ``other`` `[M, D]` for
    ``real`` `[N, D]`.

    A vector's ball reaches to its k-th nearest neighbour in its own set. *precision*: share of
    ``other`` within a ball of ``real``; *recall*: the reverse; *density*: mean number of balls of
    ``real`` around one of ``other``, over k (about 1 for real images); *coverage*: share of the
    balls of ``real`` that hold one of ``other``. All but density are in [0, 1]. Recall and
    coverage grow with M: compare equal counts only. Source: Naeem et al. (2020), eq. 1 to 6, with
    their code's strict inequality. Raises ValueError for sets of k vectors or fewer.
    """
    if min(len(real), len(other)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} vectors; got {len(real)} and {len(other)}"
        )
    reach_real, reach_other = _reach(real, k), _reach(other, k)
    inside = hit = start = 0
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    # In chunks: a table of 10,000 by 10,000 takes a gigabyte.
    for distances in pairwise_distances_chunked(other, real, working_memory=64):
        in_real = distances < reach_real
        inside += int(in_real.sum())
        hit += int(in_real.any(axis=1).sum())
        covered |= in_real.any(axis=0)
        rows = reach_other[start : start + len(distances), None]
        recalled |= (distances < rows).any(axis=0)
        start += len(distances)
    return {
        "precision": hit / len(other),
        "recall": float(recalled.mean()),
        "density": inside / (k * len(other)),
        "coverage": float(covered.mean()),
    }


def _reach(x: Array, k: int) -> NDArray[np.float64]:
    distances, _ = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    reach: NDArray[np.float64] = distances[:, -1]
    return reach
