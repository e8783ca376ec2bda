"""The judge's features in two dimensions: where real and added images lie, by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from mgdm_ray.results.report.assessed import Assessed, Judge

SHOWN = 300  # points per panel, evenly taken
GRID = 140  # points of the shading along each side
MARGIN = 0.2  # of the width, around what real training images fill
Points = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class FeatureMap:
    """``panels``: per name coordinates `[N, 2]` and labels `[N]`; ``x`` `[W]`, ``y`` `[H]`, and the
    ``uncertainty`` `[H, W]` there in [0, 1]; ``explained``: share of the variance of real training
    features in the plane; ``accuracy``: of the shading's classifier on the real test images."""

    panels: dict[str, Points]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    explained: float
    accuracy: float


def feature_map(judge: Judge, assessed: Sequence[Assessed]) -> FeatureMap | None:
    """None where the judge's features are not at hand, or have one class or dimension only.

    The plane is that of the first two principal components of real training features. The
    uncertainty is that of a logistic regression on the training images' coordinates in it: entropy
    of its prediction over its largest value, log K.
    """
    splits = {name: _points(judge.features, f"{name}/") for name in ("train", "test")}
    train = splits["train"]
    if train is None or min(train[0].shape) < 2 or len(np.unique(train[1])) < 2:
        return None
    plane = PCA(n_components=2, svd_solver="full").fit(train[0])
    places = plane.transform(train[0])
    scale = places.std(axis=0).clip(1e-12)
    classifier = LogisticRegression(max_iter=1000).fit(places / scale, train[1])
    low, high = np.quantile(places, 0.005, axis=0), np.quantile(places, 0.995, axis=0)
    edge = MARGIN * (high - low).clip(1e-9)
    x, y = (np.linspace(low[i] - edge[i], high[i] + edge[i], GRID) for i in (0, 1))
    over = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    p = classifier.predict_proba(over / scale)
    entropy = -(p * np.log(p.clip(1e-12))).sum(axis=1) / np.log(p.shape[1])
    sets = {"real, train": train, "real, test": splits["test"]}
    sets |= {one.name: _points(one.features()) for one in assessed}
    panels = {
        name: _few(plane.transform(points[0]), points[1])
        for name, points in sets.items()
        if points is not None and points[0].shape[1] == train[0].shape[1]
    }
    test = splits["test"]
    right = np.nan if test is None else classifier.score(plane.transform(test[0]) / scale, test[1])
    return FeatureMap(
        panels,
        x,
        y,
        entropy.reshape(GRID, GRID),
        float(plane.explained_variance_ratio_.sum()),
        float(right),
    )


def _points(arrays: Any, prefix: str = "") -> Points | None:
    """Finite features as float64, and their labels."""
    features, labels = arrays.get(f"{prefix}features"), arrays.get(f"{prefix}labels")
    if features is None or labels is None or len(features) == 0 or features.ndim != 2:
        return None
    kept = np.isfinite(features).all(axis=1)
    return (features[kept].astype(np.float64), labels[kept]) if kept.any() else None


def _few(places: NDArray[Any], labels: NDArray[Any]) -> Points:
    index = np.linspace(0, len(places) - 1, min(SHOWN, len(places))).round().astype(int)
    return places[index], labels[index]
