"""Friedman's and Nemenyi's tests against a published example, and when they are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mgdm_ray.evaluation.stats.ranks import critical_difference, rank

# AUC of C4.5 with and without tuned m and cf on 14 data sets: table 6 of Demsar, JMLR 7 (2006).
# One value has a digit more than is printed there, so that its rank is the printed one.
DEMSAR = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""
NAMES = ("plain", "m", "cf", "both")


def demsar() -> dict[str, dict[str, float]]:
    rows = [list(map(float, line.split())) for line in DEMSAR.split("\n") if line]
    return {
        name: {str(block): row[i] for block, row in enumerate(rows)} for i, name in enumerate(NAMES)
    }


def test_the_published_example() -> None:
    """Catches ranks from the wrong end, ties not averaged, a wrong F, and Nemenyi's test against
    one control: the paper has mean ranks 3.143, 2.000, 2.893, 1.964, chi2 9.28 and F 3.69 without
    its correction for ties, and a critical difference of 1.25."""
    found = rank(demsar())
    ranks = [found.mean_ranks[name] for name in NAMES]
    assert ranks == pytest.approx([3.143, 2.0, 2.893, 1.964], abs=5e-4)
    plain = 12 * 14 / (4 * 5) * (sum(r**2 for r in ranks) - 4 * 5**2 / 4)
    assert plain == pytest.approx(9.28, abs=0.01)
    # Ties: four of one block and two of three others; sum of t^3 - t = 60 + 3 * 6.
    corrected = plain / (1 - (60 + 3 * 6) / (14 * 4 * 15))
    assert found.chi2 == pytest.approx(corrected)
    assert 0.01 < found.p < 0.05  # F(3, 39) of 3.69 and a little more
    assert found.differs
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    # "we can identify two groups": no pair differs by 1.25 or more in the ranks.
    assert min(found.nemenyi.values()) > 0.05


def test_the_f_of_iman_and_davenport_by_hand() -> None:
    """Catches degrees of freedom that are swapped: for two of three treatments alternating, k = 3,
    N = 6, ranks (1, 2, 3) four times and (2, 1, 3) twice: mean ranks 4/3, 5/3, 3.

    chi2 = 12 * 6 / 12 * (16/9 + 25/9 + 9 - 12) = 28/3; F = 5 * (28/3) / (12 - 28/3) = 17.5, and
    with 2 and 10 degrees of freedom p = (1 + 2 * 17.5 / 10) ^ -5.
    """
    wins = [(3.0, 2.0, 1.0)] * 4 + [(2.0, 3.0, 1.0)] * 2
    values = {n: {str(b): row[i] for b, row in enumerate(wins)} for i, n in enumerate("abc")}
    found = rank(values)
    assert found.chi2 == pytest.approx(28 / 3)
    assert found.p == pytest.approx(4.5**-5)
    assert found.nemenyi["a", "c"] < 0.05 < found.nemenyi["a", "b"]
    assert critical_difference(3, 6) == pytest.approx(2.3437 * np.sqrt(12 / 36), abs=1e-3)
    same = rank({n: {str(b): -float(i) for b in range(6)} for i, n in enumerate("abc")})
    assert same.p == 0


def test_four_datasets_are_refused_with_what_it_would_take() -> None:
    """Catches ranks of 120 cells that pass for 120 blocks."""
    values = {arm: {d: float(i) for d in "pqrs"} for i, arm in enumerate(("x", "y", "z"))}
    found = rank(values)
    assert found.refused
    assert not found.differs
    assert not found.mean_ranks


def test_premises_that_do_not_hold_are_named() -> None:
    """Catches a crash or a number where blocks have holes, all tie, or there are two only."""
    values = {arm: {str(b): float(i + b) for b in range(6)} for i, arm in enumerate("xyz")}
    assert not rank(values).refused
    level = {arm: {str(b): 0.5 for b in range(6)} for arm in "xyz"}
    two = {k: v for k, v in values.items() if k != "z"}
    holes = {**values, "y": {b: v for b, v in values["y"].items() if b != "3"}}
    for refused in (rank(two), rank(holes), rank(level)):
        assert refused.refused
        assert math.isnan(refused.p)
    assert rank(holes).refused.endswith(" y")


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Catches a p too small with few blocks: 7 arms that do not differ, 6 datasets, 400 times.

    5 % of 400 are 20; more than 34 would be three standard deviations away.
    """
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        table = rng.normal(size=(7, 6))
        values = {str(i): {str(b): x for b, x in enumerate(row)} for i, row in enumerate(table)}
        alarms += rank(values).p <= 0.05
    assert alarms <= 34
