"""Scores against sklearn's own entry points and tables done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mgdm_ray.classifiers.metrics import expected_calibration_error, score


def random_case(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n)])
    logits = rng.normal(size=(len(labels), classes)) + 1.5 * np.eye(classes)[labels]
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), labels


def test_binary_table_done_by_hand() -> None:
    """Catches swapped classes, micro averages and a Brier score that counts both classes.

    Predictions 0, 1, 1, 1 of truth 0, 0, 1, 1: recalls 1/2 and 1.
    """
    p1 = np.array([0.2, 0.6, 0.7, 0.9])
    result = score(np.stack([1 - p1, p1], 1), np.array([0, 0, 1, 1]), "binary")
    assert result["accuracy"] == 0.75
    assert result["balanced_accuracy"] == 0.75
    assert result["worst_class_recall"] == 0.5
    assert result["auroc"] == 1.0
    assert result["average_precision"] == 1.0
    assert result["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert result["brier"] == pytest.approx((0.04 + 0.36 + 0.09 + 0.01) / 4)
    assert "quadratic_kappa" not in result


@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_agrees_with_sklearn_where_all_classes_occur(seed: int, n: int, classes: int) -> None:
    """Catches any deviation from sklearn's multi-class metrics."""
    p, y = random_case(seed, n, classes)
    result = score(p, y, "ordinal")
    predicted = p.argmax(1)
    truth = np.eye(classes)[y]
    scores, targets = (p[:, 1], y) if classes == 2 else (p, truth)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
    assert result["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro"))
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(targets, scores))
    assert result["average_precision"] == pytest.approx(sk.average_precision_score(targets, scores))
    assert result["brier"] == pytest.approx(sk.brier_score_loss(y, scores))
    assert result["quadratic_kappa"] == pytest.approx(
        sk.cohen_kappa_score(y, predicted, weights="quadratic")
    )
    assert all(math.isfinite(value) for value in result.values())
    assert result["worst_class_recall"] <= result["balanced_accuracy"] <= 1
    assert 0 <= result["ece"] <= 1


@pytest.mark.filterwarnings("error")
def test_classes_without_examples_are_skipped_without_a_warning() -> None:
    """Catches nan or recall 0 for a class that a small validation split lacks."""
    p, y = random_case(0, 40, 4)
    keep = y != 2
    result = score(p[keep], y[keep], "multiclass")
    recall = [float((p[y == c].argmax(1) == c).mean()) for c in (0, 1, 3)]
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert result["auroc"] == pytest.approx(
        np.mean([sk.roc_auc_score(y[keep] == c, p[keep, c]) for c in (0, 1, 3)])
    )


@pytest.mark.filterwarnings("error")
def test_undefined_metrics_are_left_out() -> None:
    """Catches nan in a record (JSON refuses it): one class only has no AUROC and no kappa."""
    result = score(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]), "ordinal")
    assert not {"auroc", "average_precision", "quadratic_kappa"} & set(result)
    assert result["balanced_accuracy"] == 1.0


def test_kappa_counts_distance_between_grades() -> None:
    """Catches unweighted kappa: an error by two grades must cost more than one by one grade."""
    y = np.array([0, 0, 1, 1, 2, 2])
    near, far = np.eye(3)[[0, 1, 1, 1, 2, 2]], np.eye(3)[[0, 2, 1, 1, 2, 2]]
    kappas = [score(p, y, "ordinal")["quadratic_kappa"] for p in (near, far)]
    assert kappas[0] > kappas[1]


def test_calibration_error_by_hand() -> None:
    """Catches wrong bins or weights: 4 at confidence 0.75 of which 2 right, 1 at 1.0 and right."""
    p1 = np.array([0.75, 0.75, 0.75, 0.75, 1.0])
    p = np.stack([1 - p1, p1], 1)
    labels = np.array([1, 1, 0, 0, 1])
    assert expected_calibration_error(p, labels) == pytest.approx(4 / 5 * 0.25)


def test_calibrated_predictions_have_a_small_calibration_error() -> None:
    """Catches an error measured against the wrong class: labels are drawn from p itself."""
    rng = np.random.default_rng(0)
    p1 = rng.random(20_000)
    labels = (rng.random(20_000) < p1).astype(int)
    p = np.stack([1 - p1, p1], 1)
    assert expected_calibration_error(p, labels) < 0.02
    assert expected_calibration_error(p, 1 - labels) > 0.4


@pytest.mark.parametrize(
    ("p", "y", "says"),
    [
        (np.ones((2, 1)), np.array([0, 0]), "K >= 2"),
        (np.ones((0, 2)), np.zeros(0, dtype=int), "N > 0"),
        (np.array([[0.5, 0.6]]), np.array([0]), "sum to 1"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "finite"),
        (np.array([[0.5, 0.5]]), np.array([2]), r"0 \.\. 1"),
        (np.array([[0.5, 0.5]]), np.array([0.0]), "integers"),
    ],
)
def test_refuses_what_is_not_probabilities_and_labels(
    p: np.ndarray, y: np.ndarray, says: str
) -> None:
    """Catches logits, nan and labels of another dataset that would be scored quietly."""
    with pytest.raises(ValueError, match=says):
        score(p, y, "multiclass")


def test_ranking_metrics_by_hand() -> None:
    """Catches the other class's score. Of the four pairs of a positive and a negative three are in
    order; precision is 1 at the first positive and 2/3 at the second, each half of the recall."""
    positive = np.array([0.1, 0.4, 0.35, 0.8])
    found = score(np.stack([1 - positive, positive], axis=1), np.array([0, 0, 1, 1]), "binary")
    assert found["auroc"] == pytest.approx(0.75)
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
