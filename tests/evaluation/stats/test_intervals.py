"""Student's intervals, Holm's adjustment and the smallest margin, against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from mgdm_ray.evaluation.stats.intervals import (
    ALPHA,
    ONE_SIDED,
    Interval,
    claims,
    holm,
    over_cells,
    over_datasets,
    smallest_margins,
)

FAMILIES = st.lists(
    st.tuples(st.floats(-0.05, 0.05), st.floats(0.001, 0.03), st.integers(1, 30)),
    min_size=1,
    max_size=5,
)


def equivalence_p(one: Interval, margin: float) -> float:
    """Of two one-sided tests, written out again with scipy."""
    upper = special.stdtr(one.df, (one.difference - margin) / one.se)
    lower = special.stdtr(one.df, -(one.difference + margin) / one.se)
    return float(max(upper, lower))


def test_holm_by_hand() -> None:
    """Catches a missing step-down, a missing running maximum, and a planned test that failed and
    so makes the others easier to pass.

    0.01 * 4 = 0.04; 0.03 * 3 = 0.09; 0.04 * 2 = 0.08, raised to 0.09.
    """
    adjusted = holm([0.04, 0.01, math.nan, 0.03])
    assert adjusted[0] == pytest.approx(0.09)
    assert adjusted[1] == pytest.approx(0.04)
    assert math.isnan(adjusted[2])
    assert adjusted[3] == pytest.approx(0.09)
    assert holm([]) == []


def test_holm_agrees_with_statsmodels() -> None:
    p_values = list(np.random.default_rng(0).random(6) / 9)
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_p_and_keeps_the_order(p_values: list[float]) -> None:
    """Catches adjusted values below the raw ones or in another order; a single p is kept."""
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_an_interval_is_that_of_the_t_test() -> None:
    """Catches a normal quantile for Student's, a one-sided p, and wrong degrees of freedom."""
    values = np.random.default_rng(0).normal(0.02, 0.05, 7)
    oracle = scipy_stats.ttest_1samp(values, 0)
    for found in (over_cells([values]), over_datasets([values[i : i + 1] for i in range(7)])):
        assert found is not None
        assert (found.low, found.high) == pytest.approx(oracle.confidence_interval())
        assert found.p == pytest.approx(oracle.pvalue)


def test_the_smallest_margin_is_that_of_two_one_sided_tests() -> None:
    """Catches a bound at the wrong level (statsmodels as oracle: at the bound p is 5 %)."""
    values = np.random.default_rng(3).normal(-0.01, 0.05, 9)
    found = over_cells([values])
    assert found is not None
    p, _, _ = DescrStatsW(values).ttost_mean(-found.bound(), found.bound())
    assert p == pytest.approx(ONE_SIDED)


@given(FAMILIES)
@settings(max_examples=20, deadline=None)
def test_smallest_margins_are_where_holm_begins_to_reject(
    family: list[tuple[float, float, int]],
) -> None:
    """Catches a step that takes the wrong threshold: just above its margin an estimate is rejected
    by Holm's procedure over the p-values at that margin, just below it is not."""
    estimates = [Interval(*values) for values in family]
    for i, margin in enumerate(smallest_margins(estimates)):
        for factor, rejected in ((1.001, True), (0.999, False)):
            p_values = [equivalence_p(one, factor * margin) for one in estimates]
            assert (holm(p_values)[i] <= ONE_SIDED) == rejected


def test_what_was_not_tested_counts_in_its_family() -> None:
    """Catches contrasts that pass more easily because others failed, and a margin of 0 where no
    spread was seen."""
    one = Interval(0.01, 0.005, 20)
    alone, among = claims([one])[0], claims([one, None, None])[0]
    assert alone is not None
    assert among is not None
    assert among.p == pytest.approx(3 * alone.p)
    assert among.bound == pytest.approx(one.bound(ONE_SIDED / 3))
    assert among.bound > alone.bound
    level = claims([Interval(0.2, 0.0, math.nan)])[0]
    assert level is not None
    assert not level.is_resolved
    assert not level.is_within(0.9)
    assert math.isnan(level.estimate.low)


def test_unequal_variances_leave_the_general_test_its_level() -> None:
    """Catches an interval over datasets that needs them to be equally noisy: one of three has ten
    times the others' spread. 5 % of 2000 are 100; 130 would be three standard errors more."""
    rng = np.random.default_rng(0)
    sds = np.array([0.1, 0.01, 0.01])
    outside = 0
    for _ in range(2000):
        found = over_datasets([np.array([x]) for x in rng.normal(0, sds)])
        assert found is not None
        outside += found.p <= ALPHA
    assert outside <= 130
