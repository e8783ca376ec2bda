"""Intervals cover what they say and verdicts are rarely false: simulated studies, known truth.

A small version of ``python -m benchmarks.statistics``, whose table is in docs/statistics.md.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from benchmarks.statistics import GROUPED, SPREAD, Drawn, World, contrasts_of, draw, simulate

STUDIES = 120


def three_errors(share: float, count: int) -> float:
    """Three standard errors of a binomial share."""
    return 3 * math.sqrt(share * (1 - share) / count)


@pytest.mark.parametrize("datasets", [1, 3])
def test_intervals_cover_and_verdicts_are_rarely_false(datasets: int) -> None:
    """Catches the bootstrap over datasets (75 % at two of them), a t with the wrong degrees of
    freedom, blindness to test images, and families that are not adjusted (14 %)."""
    found = simulate(STUDIES, datasets, cells=(4, 3))
    covered = {name: share for name, share in found.items() if name.startswith("covered")}
    wrong = {name: share for name, share in found.items() if name.startswith("false")}
    assert len(covered) == (4 if datasets == 1 else 5)
    assert len(wrong) == 4
    tolerance = three_errors(0.05, STUDIES)  # contrasts share an arm: they count once
    for name, share in covered.items():
        assert 0.95 - tolerance <= share <= min(1, 0.97 + tolerance), name
    for name, share in wrong.items():
        assert share <= 0.05 + tolerance, name


def test_draws_of_images_are_covered() -> None:
    """Catches an interval over cells: where draws differ by 0.019 it covers 80 %, and where all
    seeds share one draw, less. Also "better" of a draw that happens to be good."""
    found = simulate(STUDIES, 3, cells=(4, 3), drawn=Drawn(0.019))
    tolerance = three_errors(0.05, STUDIES)
    for name, share in found.items():
        if name.startswith("covered"):
            assert share >= 0.95 - tolerance, name
        else:
            assert share <= 0.05 + tolerance, name
    shared = Drawn(0.019, each=False)
    one = simulate(STUDIES, 3, cells=(4, 3), worlds=(SPREAD,), drawn=shared)
    assert one["covered: here"] < 0.85


def test_patients_and_duplicates_in_the_test_split() -> None:
    """Catches intervals that take four images of a patient, or an image and its copy, as
    independent: they cover 80 to 90 %, and find differences that are not there in 10 to 30 %."""
    found = simulate(STUDIES, 2, cells=(3, 3), worlds=GROUPED)
    tolerance = three_errors(0.05, STUDIES)
    blind = {name: share for name, share in found.items() if name.endswith("by image")}
    assert len(blind) == 2 * len(GROUPED) == 6
    for name, share in found.items():
        if name in blind:
            continue
        if name.startswith("covered"):
            assert share >= 0.95 - tolerance, name
        else:
            assert share <= 0.05 + tolerance, name
    assert sum(share for name, share in blind.items() if name.startswith("covered")) / 3 < 0.9
    assert sum(share for name, share in blind.items() if name.startswith("false")) / 3 > 0.1


def test_a_simulated_effect_is_found() -> None:
    """Catches a simulation whose studies can never say anything: with a margin of 0.02 and no
    difference most large studies conclude that, and a clear effect is found."""
    rng = np.random.default_rng(0)
    verdicts = Counter[tuple[str, float]]()
    for effect in (0.0, 0.05):
        for _ in range(20):
            study = draw(rng, 4, World((effect,)), (6, 3))
            verdicts[contrasts_of(study)[0].verdict, effect] += 1
    none = sum(n for (verdict, effect), n in verdicts.items()
               if verdict.startswith("no difference") and not effect)  # fmt: skip
    better = sum(n for (verdict, effect), n in verdicts.items()
                 if verdict.startswith("better") and effect)  # fmt: skip
    assert none > 10
    assert better > 15
