"""Whether a selected score holds, and whether two scores rank alike."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mgdm_ray.evaluation.selection_bias import FEWEST, Confirmed, optimism, spearman

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=9)


def test_spearman_of_a_table_done_by_hand() -> None:
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: squared differences 1 1 1 1 0, rho = 1 - 6 * 4 / 120 = 0.8.

    Of the 120 orders of five, 1 has rho 1, 4 have 0.9, 3 have 0.8 (swaps of neighbours that do not
    meet), and as many the negative of each: p = 16 / 120.
    """
    found = spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50])
    assert found.rho == pytest.approx(0.8)
    assert found.p == pytest.approx(16 / 120)
    assert found.n == 5
    assert found.low < 0.8 < found.high <= 1
    assert not found.is_resolved


def test_tied_ranks_by_hand() -> None:
    """Ranks 1.5 1.5 3 4 and 1 2 3 4: covariance 4.5, variances 4.5 and 5."""
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]).rho == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_a_perfect_ranking_of_few_settings_is_not_called_resolved() -> None:
    """Catches certainty from a bootstrap of three settings, of which every draw agrees."""
    few = spearman([1, 2, 3, 4], [1, 2, 3, 4])
    assert few.rho == 1
    assert few.p == pytest.approx(2 / 24)
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    assert not few.is_resolved
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]).is_resolved
    reverse = spearman([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert reverse.rho == -1
    assert reverse.is_resolved


@pytest.mark.parametrize("scores", [([], []), ([1.0], [2.0]), ([1.0] * 6, [1, 2, 3, 4, 5, 6])])
def test_no_ranking_where_there_is_none(scores: tuple[list[float], list[float]]) -> None:
    """Catches a number for a proxy network that gives every setting the same score."""
    found = spearman(*scores)
    assert all(map(math.isnan, (found.rho, found.low, found.high, found.p)))
    assert not found.is_resolved


@pytest.mark.parametrize("scores", [([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])])
def test_spearman_refuses_what_it_cannot_pair(scores: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="equally long"):
        spearman(*scores)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_spearman_against_scipy_and_its_symmetries(pairs: list[tuple[int, int]]) -> None:
    """Catches ranks that depend on the size of scores, on the order of settings, or on which of
    the two scores comes first."""
    x, y = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = spearman(x, y, n_boot=200)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found.rho)
        return
    assert found.rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert spearman(y, x, n_boot=200).rho == pytest.approx(found.rho)
    assert spearman([math.exp(v) for v in x], y, n_boot=200) == found
    assert spearman([-v for v in x], y, n_boot=200).rho == pytest.approx(-found.rho)
    assert spearman(x, y, n_boot=200) == found
    assert 0 < found.p <= 1
    if len(x) >= FEWEST:
        assert -1 <= found.low <= found.high <= 1


def test_random_orders_agree_with_all_of_them() -> None:
    """Catches random permutations that miss orders: eight settings are drawn, seven are not."""
    x, y = [float(i) for i in range(8)], [3.0, 0, 1, 2, 6, 4, 5, 7]
    exact = scipy_stats.permutation_test(
        (y,),
        lambda order: scipy_stats.spearmanr(x, order).statistic,
        permutation_type="pairings",
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert spearman(x, y).p == pytest.approx(exact, abs=0.01)


def test_optimism_of_a_table_done_by_hand() -> None:
    """One network, 0.80 claimed, 0.70 0.72 0.74 fresh: mean 0.72, sd 0.02, error 0.02 / sqrt(3),
    t of 2 degrees of freedom 4.3027."""
    found = optimism(0.8, {"a": [0.70, 0.72, 0.74]})
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert found.value == pytest.approx(0.08)
    assert (found.low, found.high) == pytest.approx((0.08 - half, 0.08 + half), abs=1e-5)
    assert found.is_resolved
    assert found.n == 3


def test_networks_that_differ_do_not_widen_the_interval() -> None:
    """Catches the spread between networks, which are the same in both scores, taken for chance.

    Two networks with seeds 0.5 0.6 and 0.8 0.9: pooled variance 0.005 with 2 degrees of freedom,
    error of the mean sqrt(0.005 * (1/2 + 1/2)) / 2.
    """
    found = optimism(0.8, {"a": [0.5, 0.6], "b": [0.8, 0.9]})
    half = 4.3027 * math.sqrt(0.005) / 2
    assert found.fresh == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-5)


def test_two_seeds_that_tie_are_not_taken_for_certainty() -> None:
    """Catches an interval of no width, found in a first run: scores are ratios of small integers.

    Another setting's seeds differ by 0.02: variance (0 + 0.0002) / 2, error sqrt(0.0001 / 2), and
    one degree of freedom (t = 12.7062), for both settings have the same two seeds.
    """
    found = optimism(0.8, {"a": [0.7, 0.7]}, [{"a": [0.5, 0.52]}])
    half = 12.7062 * math.sqrt(0.0001 / 2)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-5)
    assert math.isnan(optimism(0.8, {"a": [0.7, 0.7]}, [{"a": [0.5, 0.5]}]).low)


def test_one_seed_gives_no_interval() -> None:
    found = optimism(0.8, {"a": [0.5], "b": [0.6]})
    assert found.value == pytest.approx(0.25)
    assert math.isnan(found.low)
    assert not found.is_resolved
    with pytest.raises(ValueError, match=r"\{\}"):
        optimism(0.8, {})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_optimism_moves_with_the_claim(fresh: list[float], claimed: float, more: float) -> None:
    """Catches an interval that is not around the value, or one whose width the claim changes."""
    if max(fresh) == min(fresh):
        return
    one, other = optimism(claimed, {"a": fresh}), optimism(claimed + more, {"a": fresh})
    assert other.value == pytest.approx(one.value + more, abs=1e-9)
    assert other.high - other.low == pytest.approx(one.high - one.low, abs=1e-9, nan_ok=True)
    assert not one.low > one.value
    assert not one.high < one.value


@pytest.mark.slow
def test_the_interval_covers_what_it_says() -> None:
    """Catches an interval that is too narrow: of 600 draws it holds the truth about 95 in 100."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(600):
        fresh = {
            name: rng.normal(mean, 0.05, 3).tolist() for name, mean in (("a", 0.5), ("b", 0.8))
        }
        found = optimism(0.7, fresh)
        hits += found.low <= 0.7 - 0.65 <= found.high
    assert 0.92 < hits / 600 < 0.98


def content(others: bool = True) -> dict[str, Any]:
    """Three settings; the search said 0.9, 0.7, 0.5, fresh seeds say 0.6 for each of them."""
    rows = [
        {"number": n, "network": network, "is_proxy": network == "p", "seed": seed, "score": score}
        for n, level in ((4, 0.3), (0, 0.2), (2, 0.1))
        for network, score in (("p", 0.6), ("a", level), ("b", level + 0.2))
        for seed in (0, 1)
        if others or network == "p"
    ]
    settings = [
        {"number": n, "setting": {"n": n}, "score": s} for n, s in ((4, 0.9), (0, 0.7), (2, 0.5))
    ]
    return {"trials": 8, "settings": settings, "rows": rows}


def test_what_a_confirmation_says_by_hand() -> None:
    """Catches proxies among the others, and the search's luck taken for that of the chosen one."""
    found = Confirmed.of(content())
    assert (found.trials, found.numbers) == (8, (4, 0, 2))
    assert found.chosen.value == pytest.approx(0.3)
    assert found.seeds == 2
    assert math.isnan(found.bounds[0])  # two seeds are too few
    assert not found.is_contradicted
    assert replace(found, means=(*found.means, (0.5, 0.7, 0.1))).is_contradicted
    assert found.shared == pytest.approx((0.3 + 0.1 - 0.1) / 3)
    assert found.means[0] == pytest.approx((0.9, 0.6, 0.4))
    assert found.transfer is not None
    assert found.transfer.rho == pytest.approx(1)
    assert math.isnan(found.repeat.rho)  # the proxy's fresh scores are all the same
    assert found.metrics() == pytest.approx(
        {"fresh_score": 0.6, "selection_optimism": 0.3, "shared_optimism": 0.1, "proxy_spearman": 1}
    )


def test_a_confirmation_without_other_networks() -> None:
    """Catches a ranking for networks that the study does not have."""
    found = Confirmed.of(content(others=False))
    assert found.transfer is None
    assert math.isnan(found.means[0][2])
    assert "proxy_spearman" not in found.metrics()
