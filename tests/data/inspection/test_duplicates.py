"""Identical and nearly identical images in a survey."""

from __future__ import annotations

import dataclasses

import pytest

from mgdm_ray.data.inspection.findings import identical, nearly_identical
from tests.data.inspection.surveys import fact, made, several


def test_groups_of_equal_content() -> None:
    """Catches groups split into pairs, and black images reported as copies of each other."""
    contents = [0, 1, 2, 1, 3, 1, 2]
    facts = [fact(k) for k in contents] + [fact(9, constant=True)] * 2
    assert identical(made(several(9), facts)) == [[1, 3, 5], [2, 6]]


def test_near_pairs_cross_a_split_or_a_class() -> None:
    """Catches pairs within one split and class, identical pairs, and a wrong order or value.

    Rows 0 to 8 are train/a, train/b in turn, rows 8 and 9 are val, 10 and 11 test.
    """
    found = made(several(12))
    for copy, original, noise in ((10, 0, 3), (9, 1, 1), (5, 2, 2), (6, 4, 0), (11, 3, 0)):
        found.small[copy] = found.small[original] // 2 + 20
        found.small[copy, :noise, :8] += 9
    found.facts[11] = dataclasses.replace(found.facts[11], digest=found.facts[3].digest)
    pairs = nearly_identical(found)
    assert {(p.first, p.second) for p in pairs} == {(0, 10), (1, 9), (2, 5)}, (
        "4 and 6 share split and class; 3 and 11 are identical"
    )
    assert [(p.first, p.second) for p in pairs] == [(1, 9), (2, 5), (0, 10)], "closest first"
    assert all(0.99 < p.value < 1 for p in pairs)


def test_of_several_near_images_the_nearest() -> None:
    """Catches one test image that is listed with every frame of a film."""
    found = made(several(12))
    for copy, noise in ((2, 4), (10, 1)):
        found.small[copy] = found.small[0] // 2 + 20
        found.small[copy, :noise, :8] += 9
    (pair,) = nearly_identical(found)
    assert (pair.first, pair.second) in ((0, 10), (2, 10))


def test_nothing_to_compare() -> None:
    """Catches a crash where a split is empty."""
    found = made(several(4))
    assert nearly_identical(found) == []
    assert identical(found) == []


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_brightness_does_not_hide_a_copy(factor: float) -> None:
    """Catches a comparison of values instead of a correlation."""
    found = made(several(12))
    found.small[11] = (found.small[1] * factor).astype("uint8")
    assert [(p.first, p.second) for p in nearly_identical(found)] == [(1, 11)]
