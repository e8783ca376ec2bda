"""Two sets of feature vectors: Frechet (FD) and kernel distance (KID); precision, recall, density
and coverage (PRDC)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

Array = NDArray[np.floating]

BLOCK = 1000
"""Above this many vectors KID is the mean over random blocks of this size (as its authors do)."""
BLOCKS = 10
NEIGHBOURS = 5
"""Of PRDC."""


def frechet_distance(a: Array, b: Array) -> float:
    """FD between Gaussians fitted to ``a`` `[N, D]` and ``b`` `[M, D]`; 0 if equal, unbounded.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))   (Heusel et al. 2017, eq. 6), unbiased
    covariances. Biased upward for few vectors: compare equal counts only.

    With fewer vectors than dimensions a matrix square root is slow and can fail (MONAI's
    FIDMetric). Instead: S = X^T X for centred rows X / sqrt(N - 1), and tr (S_a S_b)^(1/2) is the
    sum of the singular values of X_a X_b^T. Raises ValueError for fewer than two vectors.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two vectors or more; got {len(a)} and {len(b)}")
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = (root_a**2).sum() + (root_b**2).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + spread - 2 * shared))


def _mean_and_root(x: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean `[D]`, some R `[min(N, D), D]` with R^T R the covariance)."""
    x = x.astype(np.float64)
    mean = x.mean(axis=0)
    centred = (x - mean) / np.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        centred = np.linalg.qr(centred, mode="r")
    return mean, centred


def kernel_distance(a: Array, b: Array, rng: np.random.Generator) -> float:
    """KID: the unbiased squared MMD of ``a`` `[N, D]` and ``b`` `[M, D]` under (x.y / D + 1)^3.

    0 on average for two samples of one distribution, so it can be negative. ``rng`` matters only
    above BLOCK vectors. Source: Binkowski et al. (2018), eq. 4 and section 4. Raises ValueError
    for fewer than two vectors.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"KID needs two vectors or more; got {len(a)} and {len(b)}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if max(len(a), len(b)) <= BLOCK:
        return _mmd(a, b)
    blocks = [
        _mmd(*(x[rng.choice(len(x), min(len(x), BLOCK), replace=False)] for x in (a, b)))
        for _ in range(BLOCKS)
    ]
    return float(np.mean(blocks))


def _mmd(a: Array, b: Array) -> float:
    within_a, within_b = (_mean_of_pairs(polynomial_kernel(x, degree=3)) for x in (a, b))
    return float(within_a + within_b - 2 * polynomial_kernel(a, b, degree=3).mean())


def _mean_of_pairs(kernel: NDArray[np.float64]) -> float:
    """Mean over pairs of different vectors: unbiased without the diagonal."""
    n = len(kernel)
    return float((kernel.sum() - kernel.trace()) / (n * (n - 1)))


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
