"""Scores of predicted class probabilities, by sklearn where it has them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from mgdm_ray.config import Task

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

ECE_BINS = 15


def score(probabilities: NDArray[Any], labels: NDArray[Any], task: Task) -> dict[str, float]:
    """All metrics of one split; a metric that is undefined or not finite is left out.

    ``probabilities`` [N, K], rows sum to 1; ``labels`` [N] in 0 .. K-1. The prediction is the first
    most probable class. Means over classes skip those without a true example. Higher is better, in
    [0, 1]: ``accuracy``, ``balanced_accuracy`` (mean recall), ``macro_f1``, ``auroc`` and
    ``average_precision`` (two classes: of class 1; else mean of one against the rest),
    ``worst_class_recall``. Lower is better: ``ece`` in [0, 1] (15 equal bins) and ``brier`` (two
    classes: mean of (p_1 - y)^2; else summed over classes, in [0, 2]). ``quadratic_kappa`` in [-1,
    1] for ordinal tasks. ValueError for inputs of another form.
    """
    p, y = _checked(probabilities, labels)
    classes = p.shape[1]
    predicted = p.argmax(axis=1)
    present = np.unique(y)
    confusion = confusion_matrix(y, predicted, labels=np.arange(classes))
    recall = confusion.diagonal()[present] / confusion.sum(axis=1)[present]
    metrics = {
        "accuracy": float((predicted == y).mean()),
        "balanced_accuracy": float(recall.mean()),
        "worst_class_recall": float(recall.min()),
        "macro_f1": float(
            f1_score(y, predicted, labels=present, average="macro", zero_division=0.0)
        ),
        "auroc": _auroc(p, y),
        "average_precision": _average_precision(p, y),
        "ece": expected_calibration_error(p, y),
        "brier": _brier(p, y),
    }
    # Undefined (0/0) if truth and prediction are one and the same single class.
    if task == "ordinal" and len(np.union1d(predicted, y)) > 1:
        metrics["quadratic_kappa"] = float(
            cohen_kappa_score(y, predicted, labels=np.arange(classes), weights="quadratic")
        )
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def expected_calibration_error(
    probabilities: Floats, labels: Labels, bins: int = ECE_BINS
) -> float:
    """Mean over images of |accuracy - mean confidence| of the image's confidence bin.

    Bins are ``(i/bins, (i+1)/bins]`` of the largest probability (Guo et al. 2017, eq. 3).
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def _checked(probabilities: NDArray[Any], labels: NDArray[Any]) -> tuple[Floats, Labels]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != p.shape[:1] or len(y) == 0:
        raise ValueError(
            f"probabilities must be [N, K >= 2] and labels [N], N > 0; got {p.shape} and {y.shape}"
        )
    if not np.isfinite(p).all() or (p < 0).any() or np.abs(p.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities must be finite, not negative, and sum to 1 in every row")
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be integers in 0 .. {p.shape[1] - 1}; got {np.unique(y)}")
    return p, y.astype(np.int64)


def _one_vs_rest(p: Floats, y: Labels) -> list[tuple[NDArray[np.bool_], Floats]]:
    """(is of the class, its score) per class that has both positives and negatives."""
    classes = [1] if p.shape[1] == 2 else range(p.shape[1])
    pairs = [(y == c, p[:, c]) for c in classes]
    return [(truth, s) for truth, s in pairs if 0 < truth.sum() < len(truth)]


def _auroc(p: Floats, y: Labels) -> float:
    values = [roc_auc_score(truth, s) for truth, s in _one_vs_rest(p, y)]
    return float(np.mean(values)) if values else math.nan


def _average_precision(p: Floats, y: Labels) -> float:
    values = [average_precision_score(truth, s) for truth, s in _one_vs_rest(p, y)]
    return float(np.mean(values)) if values else math.nan


def _brier(p: Floats, y: Labels) -> float:
    if p.shape[1] == 2:
        return float(((p[:, 1] - y) ** 2).mean())
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())
