"""Intervals, paired tests and the refusal of incomplete grids."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from mgdm_ray.evaluation.stats.paired import (
    CellId,
    Contrast,
    contrast_table,
    holm,
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
    """Catches wrong pairing, counts, effect size or p.

    Differences 1, 2, 3, 0: mean 1.5, sd sqrt(5/3); the three that move reach |sum| = 6 in 2 of 8
    sign patterns.
    """
    contrast = paired_contrast([2, 4, 6, 1], [1, 2, 3, 1], ["p", "p", "q", "q"])
    assert contrast.difference == 1.5
    assert contrast.dz == pytest.approx(1.5 / math.sqrt(5 / 3))
    assert (contrast.wins, contrast.ties, contrast.losses, contrast.n) == (3, 1, 0, 4)
    assert contrast.p == 0.25
    assert 0 <= contrast.low <= contrast.difference <= contrast.high <= 3
    assert re.search(r"\b0\.25$", contrast.note)


@given(SCORES)
@settings(max_examples=30, deadline=None)
def test_exact_p_agrees_with_scipy(scores: list[tuple[int, int, str]]) -> None:
    """Catches a wrong two-sided count, up to the size that is enumerated (scipy as oracle)."""
    a, b = (np.array([row[i] for row in scores[:10]], dtype=float) for i in (0, 1))
    contrast = paired_contrast(a, b, [row[2] for row in scores[:10]], n_boot=10)
    oracle = scipy_stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert contrast.p == pytest.approx(oracle.pvalue)


def test_random_p_approaches_the_normal_theory() -> None:
    """Catches a wrong random branch (more than 14 pairs), against the paired t test."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.02, 0.1, 60), np.zeros(60)
    contrast = paired_contrast(a, b, ["p", "q", "r"] * 20)
    assert contrast.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert contrast.p > 0


@given(SCORES)
@settings(max_examples=30, deadline=None)
def test_swapping_the_arms_flips_every_sign(scores: list[tuple[int, int, str]]) -> None:
    """Catches any asymmetry between the arms."""
    a, b, clusters = ([row[i] for row in scores] for i in range(3))
    one = paired_contrast(a, b, clusters, n_boot=200)
    two = paired_contrast(b, a, clusters, n_boot=200)
    assert (one.difference, one.wins, one.losses) == (-two.difference, two.losses, two.wins)
    assert one.p == two.p
    assert one.low == pytest.approx(-two.high)
    assert one.high == pytest.approx(-two.low)
    assert one.dz == pytest.approx(-two.dz, nan_ok=True)


@given(SCORES, st.integers(-50, 50))
@settings(max_examples=20, deadline=None)
def test_what_both_arms_gain_does_not_matter(
    scores: list[tuple[int, int, str]], shift: int
) -> None:
    """Catches an unpaired analysis: adding the same to both scores of a cell changes nothing."""
    a, b, clusters = ([row[i] for row in scores] for i in range(3))
    one = paired_contrast(a, b, clusters, n_boot=100)
    moved = [shift * (i % 3) for i in range(len(a))]
    two = paired_contrast(
        [x + m for x, m in zip(a, moved, strict=True)],
        [x + m for x, m in zip(b, moved, strict=True)],
        clusters,
        n_boot=100,
    )
    assert one == two or math.isnan(one.dz)
    assert (one.low, one.high, one.p) == (two.low, two.high, two.p)


def test_interval_covers_the_truth_when_datasets_differ() -> None:
    """Catches an interval that ignores datasets: over cells alone it would cover far less."""
    rng = np.random.default_rng(0)
    clusters = [str(d) for d in range(8) for _ in range(6)]
    hits = pooled = 0
    for _ in range(100):
        effect = np.repeat(rng.normal(0, 1, 8), 6) + rng.normal(0, 0.5, 48)
        zero = np.zeros(48)
        hits += paired_contrast(effect, zero, clusters, n_boot=400).spans_zero
        pooled += paired_contrast(effect, zero, ["all"] * 48, n_boot=400).spans_zero
    assert hits >= 82
    assert pooled < 70


def test_one_dataset_falls_back_to_its_cells_and_says_so() -> None:
    """Catches an interval of width 0 from resampling a single dataset."""
    contrast = paired_contrast([1, 2, 3, 4], [0, 0, 0, 0], ["only"] * 4)
    assert contrast.low < 2.5 < contrast.high
    assert (contrast.datasets, contrast.p_datasets) == (1, 1.0)
    assert contrast.note


def test_one_pair_has_no_interval_and_is_never_resolved() -> None:
    """Catches a single lucky seed that is sold as a result."""
    contrast = paired_contrast([0.9], [0.1], ["p"])
    assert math.isnan(contrast.low)
    assert contrast.p == 1.0
    assert contrast.spans_zero
    assert contrast.verdict == "not resolvable"


def test_equal_scores_give_p_one_and_no_effect_size() -> None:
    """Catches 0/0 where every difference is a tie."""
    contrast = paired_contrast([0.3] * 4, [0.1 + 0.2] * 4, ["p", "p", "q", "q"])
    assert (contrast.ties, contrast.p, contrast.difference) == (4, 1.0, 0.0)
    assert math.isnan(contrast.dz)


@pytest.mark.parametrize(
    ("a", "b", "clusters"), [([], [], []), ([1.0], [1.0, 2.0], ["p"]), ([math.nan], [1.0], ["p"])]
)
def test_contrast_refuses_bad_scores(a: list[float], b: list[float], clusters: list[str]) -> None:
    """Catches silent broadcasting and nan."""
    with pytest.raises(ValueError, match=r"equally long|finite"):
        paired_contrast(a, b, clusters)


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_p_and_keeps_the_order(p_values: list[float]) -> None:
    """Catches adjusted values below the raw ones or in another order; a single p is kept."""
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_table_pairs_cells_whatever_the_order_of_the_rows() -> None:
    """Catches pairing by position: the shuffled rows must give the very same contrast."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7, "real": 0.6})
    pairs = [("disturb", "duplicate"), ("real", "disturb")]
    expected = contrast_table(cells, pairs, n_boot=200)
    names = list(cells)
    shuffled = {names[i]: cells[names[i]] for i in np.random.default_rng(0).permutation(len(names))}
    assert contrast_table(shuffled, pairs, n_boot=200) == expected
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
    assert math.isnan(contrast.p_adjusted)
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
    assert replace(contrast, p_adjusted=0.0001).verdict == "incomplete"
    assert contrast.missing == (lost,)
    assert (contrast.planned, contrast.n) == (24, 23)
    assert "refused: copies 0.4 (1)" in contrast.note


def test_variants_of_a_dataset_are_one_cluster() -> None:
    """Catches six "datasets" made of three by cutting their training sets: with six clusters the
    permutation over datasets would say 2 / 2^6, with three it cannot be below 2 / 2^3."""
    cells = grid({"disturb": 0.8, "duplicate": 0.7}, datasets="abcdef")
    pairs = [("disturb", "duplicate")]
    origins = {"b": "a", "d": "c", "f": "e"}
    (apart,) = contrast_table(cells, pairs, n_boot=50)
    (together,) = contrast_table(cells, pairs, n_boot=50, origins=origins)
    assert (apart.datasets, apart.p_datasets) == (6, 2 / 64)
    assert (together.datasets, together.p_datasets) == (3, 2 / 8)
    assert together.scope.startswith("on these 3 datasets")
    assert together.difference == apart.difference


def test_the_claim_beyond_these_datasets_is_one_of_a_family() -> None:
    """Catches three chances at a general claim: 2 / 2^6 is below 0.05, three times that is not,
    and seven datasets are enough for three contrasts."""
    pairs = [("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "real")]
    values = {"disturb": 0.8, "duplicate": 0.7, "generate": 0.7, "real": 0.7}
    for datasets, p in (("abcdef", 3 * 2 / 64), ("abcdefg", 3 * 2 / 128)):
        found = contrast_table(grid(values, datasets=datasets), pairs, n_boot=20)
        assert {contrast.p_datasets for contrast in found} == {p}
        assert bool(found[0].scope) == (p > 0.05)


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


def test_only_whole_datasets_speak_for_other_datasets() -> None:
    """Catches a claim in general from many cells of few datasets.

    Six datasets that agree: 2 of 2^6 patterns reach the observed sum. Five: 2 of 2^5.
    """
    for count, p, scope in ((6, 2 / 64, ""), (5, 2 / 32, "on these 5 datasets")):
        clusters = [str(d) for d in range(count) for _ in range(4)]
        contrast = paired_contrast([1.0] * len(clusters), [0.0] * len(clusters), clusters)
        assert contrast.p_datasets == p
        assert contrast.p < 0.001
        assert contrast.scope.startswith(scope)
        assert bool(contrast.scope) == bool(scope)
    one = paired_contrast([1.0, 2.0] * 4, [0.0] * 8, ["only"] * 8)
    assert one.p_datasets == 1.0
    assert one.verdict == "better here"
    assert one.scope


def test_few_pairs_in_a_family_cannot_be_resolved_and_it_is_said() -> None:
    """Catches silence where no outcome could have been called better: 3 * 2 / 2^6 = 0.094."""
    alone = paired_contrast([1.0] * 6, [0.0] * 6, ["p"] * 3 + ["q"] * 3)
    assert not re.search(r"\d\.\d", alone.note), "two datasets, but no lowest p"
    family = paired_contrast([1.0] * 6, [0.0] * 6, ["p"] * 3 + ["q"] * 3, family=3)
    assert re.search(r"Holm.*\b0\.0938$", family.note)


def contrast(low: float, high: float, p: float) -> Contrast:
    mean = (low + high) / 2
    return Contrast(
        mean,
        low,
        high,
        p,
        9,
        1,
        2,
        0.5,
        12,
        "",
        "disturb",
        "duplicate",
        datasets=7,
        p_datasets=0.01,
    )


CLAIMS: list[tuple[float, float, float, float, str]] = [
    (0.01, 0.03, 0.01, math.nan, "better"),
    (-0.03, -0.01, 0.0001, math.nan, "worse"),
    (-0.01, 0.03, 0.01, math.nan, "not resolvable"),
    (0.01, 0.03, 0.2, math.nan, "not resolvable"),
    (0.01, 0.03, 0.01, 0.06, "not resolvable"),
]


@pytest.mark.parametrize(("low", "high", "p", "adjusted", "found"), CLAIMS)
def test_a_claim_needs_both_the_interval_and_the_test(
    low: float, high: float, p: float, adjusted: float, found: str
) -> None:
    """Catches a claim from the interval or the p-value alone, or from an uncorrected p."""
    assert replace(contrast(low, high, p), p_adjusted=adjusted).verdict == found
