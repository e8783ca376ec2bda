"""Intervals, paired tests and the refusal of incomplete grids."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from mgdm_ray.evaluation.stats.intervals import Claim, Interval
from mgdm_ray.evaluation.stats.paired import (
    CellId,
    Contrast,
    contrast_table,
    paired_contrast,
    rank_biserial,
    summarise,
)

SCORES = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 200), st.sampled_from("pqr")),
    min_size=2,
    max_size=18,
)


def grid(
    arms: dict[str, float], datasets: str = "pq", networks: str = "xy", seeds: int = 2
) -> dict[CellId, float]:
    """A complete grid; each arm's value is its own plus something that differs by cell."""
    cells = [(d, n, s) for d in datasets for n in networks for s in range(seeds)]
    return {
        (d, n, arm, s): value + 0.01 * i
        for arm, value in arms.items()
        for i, (d, n, s) in enumerate(cells)
    }


def test_summary_of_a_table_done_by_hand() -> None:
    """Catches a spread with n instead of n - 1 below the line: of 1, 2, 3 it is exactly 1."""
    summary = summarise([1.0, 2.0, 3.0])
    assert (summary.mean, summary.sd, summary.n) == (2.0, 1.0, 3)
    assert summary.text(1) == "2.0 ± 1.0"


def test_summary_of_one_value_claims_no_spread() -> None:
    """Catches a spread of 0 that was never measured."""
    summary = summarise([0.5])
    assert math.isnan(summary.sd)
    assert summary.text() == "0.500"


@pytest.mark.parametrize("values", [[], [0.1, math.nan]])
def test_summary_refuses_nothing_and_nan(values: list[float]) -> None:
    """Catches a nan that spreads through the report."""
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_contrast_of_a_table_done_by_hand() -> None:
    """Catches wrong pairing, counts, effect size, weights or degrees of freedom.

    Differences 1, 2 and 3, 0: mean 1.5, sd sqrt(5/3). Here: variances of the means 1/4 and 9/4,
    a quarter of each: 5/8; df (5/8)^2 / (1/16^2 + 9/16^2). In general: both means are 1.5.
    """
    contrast = paired_contrast([2, 4, 6, 1], [1, 2, 3, 1], ["p", "p", "q", "q"])
    assert contrast.difference == 1.5
    assert contrast.dz == pytest.approx(1.5 / math.sqrt(5 / 3))
    assert (contrast.wins, contrast.ties, contrast.losses, contrast.n) == (3, 1, 0, 4)
    here, general = contrast.here, contrast.general
    assert here is not None
    assert general is not None
    assert (here.estimate.difference, here.estimate.se) == pytest.approx((1.5, math.sqrt(5 / 8)))
    assert here.estimate.df == pytest.approx((5 / 8) ** 2 / (82 / 256))
    assert (general.estimate.difference, general.estimate.df) == (1.5, 1)
    assert not general.estimate.is_known


@given(SCORES)
@settings(max_examples=30, deadline=None)
def test_swapping_the_arms_flips_every_sign(scores: list[tuple[int, int, str]]) -> None:
    """Catches any asymmetry between the arms."""
    a, b, clusters = ([row[i] for row in scores] for i in range(3))
    one = paired_contrast(a, b, clusters)
    two = paired_contrast(b, a, clusters)
    assert (one.difference, one.wins, one.losses) == (-two.difference, two.losses, two.wins)
    for x, y in ((one.here, two.here), (one.general, two.general)):
        assert (x is None) == (y is None)
        if x and y:
            assert x.p == pytest.approx(y.p, nan_ok=True)
            assert x.estimate.low == pytest.approx(-y.estimate.high, nan_ok=True)
            assert x.bound == pytest.approx(y.bound, nan_ok=True)
    assert one.dz == pytest.approx(-two.dz, nan_ok=True)


@given(SCORES, st.integers(-50, 50))
@settings(max_examples=20, deadline=None)
def test_what_both_arms_gain_does_not_matter(
    scores: list[tuple[int, int, str]], shift: int
) -> None:
    """Catches an unpaired analysis: adding the same to both scores of a cell changes nothing."""
    a, b, clusters = ([row[i] for row in scores] for i in range(3))
    one = paired_contrast(a, b, clusters)
    moved = [shift * (i % 3) for i in range(len(a))]
    two = paired_contrast(
        [x + m for x, m in zip(a, moved, strict=True)],
        [x + m for x, m in zip(b, moved, strict=True)],
        clusters,
    )
    assert repr(one) == repr(two)


def test_one_dataset_says_nothing_in_general() -> None:
    """Catches an interval for other datasets from the cells of one."""
    contrast = paired_contrast([1, 2, 3, 4], [0, 0, 0, 0], ["only"] * 4)
    assert contrast.general is None
    assert contrast.here is not None
    oracle = scipy_stats.ttest_1samp([1, 2, 3, 4], 0).confidence_interval()
    assert (contrast.here.estimate.low, contrast.here.estimate.high) == pytest.approx(oracle)
    assert contrast.verdict == "better here"
    (row,) = contrast_table(grid({"a": 0.8, "b": 0.7}, datasets="p"), [("a", "b")])
    assert "one dataset" in row.note


def test_one_pair_has_no_interval_and_is_never_resolved() -> None:
    """Catches a single lucky seed that is sold as a result."""
    contrast = paired_contrast([0.9], [0.1], ["p"])
    assert contrast.here is None
    assert contrast.general is None
    assert contrast.verdict == "not resolvable"


def test_equal_scores_give_p_one_and_no_effect_size() -> None:
    """Catches 0/0 where every difference is a tie."""
    contrast = paired_contrast([0.3] * 4, [0.1 + 0.2] * 4, ["p", "p", "q", "q"])
    assert (contrast.ties, contrast.difference) == (4, 0.0)
    assert contrast.here is not None
    assert contrast.here.p == 1
    assert contrast.verdict == "not resolvable"
    assert math.isnan(contrast.dz)


@pytest.mark.parametrize(
    ("a", "b", "clusters"), [([], [], []), ([1.0], [1.0, 2.0], ["p"]), ([math.nan], [1.0], ["p"])]
)
def test_contrast_refuses_bad_scores(a: list[float], b: list[float], clusters: list[str]) -> None:
    """Catches silent broadcasting and nan."""
    with pytest.raises(ValueError, match=r"equally long|finite"):
        paired_contrast(a, b, clusters)


def test_table_pairs_cells_whatever_the_order_of_the_rows() -> None:
    """Catches pairing by position: the shuffled rows must give the very same contrast."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7, "real": 0.6})
    pairs = [("disturb", "duplicate"), ("real", "disturb")]
    expected = contrast_table(cells, pairs)
    names = list(cells)
    shuffled = {names[i]: cells[names[i]] for i in np.random.default_rng(0).permutation(len(names))}
    assert repr(contrast_table(shuffled, pairs)) == repr(expected)
    assert [c.pair for c in expected] == pairs
    assert [c.difference for c in expected] == pytest.approx([0.1, -0.2])
    assert all(c.n == 8 for c in expected)


def test_an_incomplete_grid_names_its_cells_and_is_no_answer() -> None:
    """Catches a contrast over cells that only one arm has, and a quiet restriction to them."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7})
    del cells["q", "y", "duplicate", 1]
    (contrast,) = contrast_table(cells, [("disturb", "duplicate")])
    assert contrast.missing == (("q", "y", "duplicate", 1),)
    assert (contrast.planned, contrast.n) == (8, 7)
    assert contrast.verdict == "incomplete"
    assert contrast.here is not None
    assert math.isnan(contrast.here.p)
    assert "not run (1)" in contrast.note


def test_a_cell_that_failed_in_every_arm_is_still_missed() -> None:
    """Catches a grid made only of the cells that came back."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7})
    left = {cell: v for cell, v in cells.items() if (*cell[:2], cell[3]) != ("p", "x", 0)}
    (contrast,) = contrast_table(left, [("disturb", "duplicate")])
    assert {arm for _, _, arm, _ in contrast.missing} == {"disturb", "duplicate"}
    assert contrast.verdict == "incomplete"


def test_an_absent_arm_gives_an_empty_contrast() -> None:
    """Catches a crash of the report, and a number for an arm that was never run."""
    (contrast,) = contrast_table(grid({"disturb": 0.8}), [("disturb", "roundtrip")])
    assert (contrast.n, len(contrast.missing)) == (0, 8)
    assert math.isnan(contrast.difference)
    assert contrast.verdict == "no data"
    (nothing,) = contrast_table({}, [("disturb", "roundtrip")])
    assert (nothing.n, nothing.missing, nothing.verdict) == (0, (), "no data")


def test_an_incomplete_grid_is_no_answer_whatever_its_numbers_are() -> None:
    """Catches a headline from the cells that happened to come back, and one that hides why the
    others did not."""
    cells = grid({"disturb": 0.9, "duplicate": 0.7}, seeds=6)
    lost = ("q", "y", "duplicate", 5)
    del cells[lost]
    reasons = {lost: "refused: copies 0.4"}
    (contrast,) = contrast_table(cells, [("disturb", "duplicate")], reasons=reasons)
    assert replace(contrast, here=claim(0.2, 0.01)).verdict == "incomplete"
    assert contrast.missing == (lost,)
    assert (contrast.planned, contrast.n) == (24, 23)
    assert "refused: copies 0.4 (1)" in contrast.note


def test_variants_of_a_dataset_are_one_cluster() -> None:
    """Catches six "datasets" made of three by cutting their training sets."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7}, datasets="abcdef")
    cells = {cell: v + 0.01 * (sum(map(ord, "".join(cell[:3]))) % 7) for cell, v in cells.items()}
    pairs = [("disturb", "duplicate")]
    origins = {"b": "a", "d": "c", "f": "e"}
    (apart,) = contrast_table(cells, pairs)
    (together,) = contrast_table(cells, pairs, origins=origins)
    assert apart.general is not None
    assert together.general is not None
    assert (apart.datasets, apart.general.estimate.df) == (6, 5)
    assert (together.datasets, together.general.estimate.df) == (3, 2)
    assert together.difference == pytest.approx(apart.difference)


def test_both_claims_are_made_in_a_family_of_their_own() -> None:
    """Catches an unadjusted claim, and one family for the claims here and those in general."""
    rng = np.random.default_rng(0)
    values = {"disturb": 0.8, "duplicate": 0.79, "generate": 0.785, "real": 0.78}
    cells = grid(values, datasets="abcdef", seeds=4)
    cells = {cell: v + rng.normal(0, 0.02) for cell, v in cells.items()}
    pairs = [("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "real")]
    found = contrast_table(cells, pairs)
    for tests in ([c.here for c in found], [c.general for c in found]):
        known = [test for test in tests if test]
        adjusted = multipletests([test.estimate.p for test in known], method="holm")[1]
        assert [test.p for test in known] == pytest.approx(list(adjusted))


def test_rank_biserial_by_hand() -> None:
    """Catches ranks that are not averaged over ties, zeros that count, a wrong sign.

    |1|, |-1| tie at rank 1.5, 3 has rank 3, -4 rank 4; (1.5 + 3 - 1.5 - 4) / 10 = -0.1.
    """
    assert rank_biserial([1, -1, 3, -4, 0]) == pytest.approx(-0.1)
    assert rank_biserial([0.2, 0.1]) == 1
    assert math.isnan(rank_biserial([0.0, 0.0]))


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_rank_biserial_agrees_with_scipys_signed_ranks(d: list[int]) -> None:
    """Catches another rule for ties than Wilcoxon's, whose statistic is the positive rank sum."""
    moved = [x for x in d if x]
    if not moved:
        return
    positive = scipy_stats.wilcoxon(moved, alternative="greater", method="approx").statistic
    total = len(moved) * (len(moved) + 1) / 2
    assert rank_biserial(d) == pytest.approx(2 * positive / total - 1)


def test_a_network_lost_in_every_cell_is_missed() -> None:
    """Catches a contrast that looks complete because a whole network failed."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7}, networks="x")
    expected = [(d, n, "disturb", s) for d in "pq" for n in "xy" for s in range(2)]
    (contrast,) = contrast_table(cells, [("disturb", "duplicate")], expected)
    assert contrast.n == 4
    assert len(contrast.missing) == 8
    assert {network for _, network, _, _ in contrast.missing} == {"y"}


def test_general_claims_agree_with_the_t_test_over_dataset_means() -> None:
    """Catches cells that pass for datasets (scipy as oracle), and unequal cells as weights."""
    rng = np.random.default_rng(1)
    clusters = [str(d) for d in range(5) for _ in range(d + 2)]
    scores = rng.normal(0.02, 0.05, len(clusters))
    contrast = paired_contrast(scores, np.zeros(len(scores)), clusters)
    names = np.array(clusters)
    oracle = scipy_stats.ttest_1samp([scores[names == str(d)].mean() for d in range(5)], 0)
    assert contrast.general is not None
    one = contrast.general.estimate
    assert one.p == pytest.approx(oracle.pvalue)
    assert (one.low, one.high) == pytest.approx(oracle.confidence_interval())
    assert contrast.difference == pytest.approx(scores.mean())


def claim(difference: float, p: float, bound: float = 0.1, se: float = 0.005) -> Claim:
    return Claim(Interval(difference, se, 20, 12, 100), p, bound)


def contrast(here: Claim | None, general: Claim | None, margin: float | None = None) -> Contrast:
    difference = here.estimate.difference if here else 0.02
    return Contrast(
        difference, 9, 1, 2, 0.5, 12, "", "disturb", "duplicate", datasets=7, here=here,
        general=general, margin=margin,
    )  # fmt: skip


YES, NO, DOWN = claim(0.02, 0.01), claim(0.01, 0.2), claim(-0.02, 0.01)
TIGHT, WIDE = claim(0.002, 0.6, 0.011), claim(0.002, 0.7, 0.028)
SMALL = claim(0.004, 0.03, 0.008, 0.001)
CLAIMS: list[tuple[Claim | None, Claim | None, float | None, str]] = [
    (YES, YES, None, "better"),
    (DOWN, DOWN, None, "worse"),
    (YES, NO, None, "better here"),
    (YES, None, None, "better here"),
    (DOWN, YES, None, "worse here"),
    (NO, YES, None, "not resolvable"),
    (None, YES, None, "better"),
    (NO, NO, 0.05, "not resolvable"),
    (TIGHT, WIDE, 0.01, "not resolvable"),
    (TIGHT, WIDE, 0.02, "no difference larger than 0.02 here"),
    (TIGHT, WIDE, 0.03, "no difference larger than 0.03 in general"),
    (SMALL, WIDE, 0.01, "better here"),
]


@pytest.mark.parametrize(("here", "general", "margin", "found"), CLAIMS)
def test_a_claim_is_made_where_its_test_agrees(
    here: Claim | None, general: Claim | None, margin: float | None, found: str
) -> None:
    """Catches a claim in general that does not hold here, one from an uncorrected p, and "no
    difference" without a margin fixed beforehand, or above it."""
    assert contrast(here, general, margin).verdict == found


def test_better_and_no_larger_than_the_margin_can_both_be_true() -> None:
    """Catches a difference that is resolved and called absent, or whose smallness is not said."""
    both = contrast(SMALL, WIDE, 0.01)
    assert both.verdict == "better here"
    assert both.equivalence == "no difference larger than 0.01 here"
