"""Precision, recall, density and coverage on points that can be counted by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdm_ray.evaluation.fidelity.distances import manifold_scores


def line(*places: float) -> np.ndarray:
    return np.array(places)[:, None]


def test_points_on_a_line_by_hand() -> None:
    """Would catch a wrong k, a set that counts itself as its neighbour, and balls of the wrong set.

    k = 1. Real 0, 1, 3: balls of radius 1, 1, 2 are (-1, 1), (0, 2), (1, 5). Of 0.5, 4 and 9 the
    first is in two of them, the second in one, the third in none. Balls of the others: radius 3.5,
    3.5, 5: (-3, 4), (0.5, 7.5), (4, 14): they hold 0, 1 and 3.
    """
    assert manifold_scores(line(0, 1, 3), line(0.5, 4, 9), k=1) == {
        "precision": pytest.approx(2 / 3),
        "density": pytest.approx(3 / 3),
        "coverage": pytest.approx(3 / 3),
        "recall": pytest.approx(3 / 3),
    }


def test_few_modes_have_precision_and_no_recall() -> None:
    """Would catch precision and recall exchanged. k = 2; images gather at one of two real places:
    all of them are in balls of all three real points there, so density is 3 / 2."""
    real = line(0, 0.1, 0.2, 10, 10.1, 10.2)
    found = manifold_scores(real, line(0.09, 0.1, 0.11, 0.1), k=2)
    assert found["precision"] == 1
    assert found["density"] == pytest.approx(3 / 2)
    assert found["coverage"] == 0.5
    assert found["recall"] == pytest.approx(1 / 6)


def test_an_edge_is_outside() -> None:
    """Would catch the other inequality than that of the paper's code: the image is 1 from the
    nearest real one, whose ball has radius 1."""
    assert manifold_scores(line(0, 1, 5), line(-1, -1.5), k=1)["precision"] == 0


def test_in_two_dimensions_by_hand() -> None:
    """Would catch distances of one coordinate only. k = 1, unit square: all radii are 1, and the
    middle is 0.71 from every corner."""
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    found = manifold_scores(corners, np.array([[0.5, 0.5], [3.0, 3.0]]), k=1)
    assert found["precision"] == 0.5
    assert found["density"] == pytest.approx(4 / 2)
    assert found["coverage"] == 1


def whole_table(real: np.ndarray, other: np.ndarray, k: int) -> dict[str, float]:
    """The paper's formulas on the whole table of distances."""

    def table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    reach_real = np.sort(table(real, real), axis=1)[:, k]
    reach_other = np.sort(table(other, other), axis=1)[:, k]
    between = table(real, other)
    return {
        "precision": (between < reach_real[:, None]).any(axis=0).mean(),
        "recall": (between < reach_other[None]).any(axis=1).mean(),
        "density": (between < reach_real[:, None]).sum(axis=0).mean() / k,
        "coverage": (between.min(axis=1) < reach_real).mean(),
    }


@given(st.integers(6, 25), st.integers(6, 25), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_pieces_give_what_the_whole_table_gives(n: int, m: int, k: int, seed: int) -> None:
    """Would catch a piece that is left out or counted twice, and shares outside [0, 1]."""
    rng = np.random.default_rng(seed)
    real, other = rng.standard_normal((n, 3)), rng.standard_normal((m, 3)) + 0.5
    found = manifold_scores(real, other, k)
    assert found == pytest.approx(whole_table(real, other, k))
    assert all(0 <= found[name] <= 1 for name in ("precision", "recall", "coverage"))
    assert found["density"] >= found["precision"] / k
    far = manifold_scores(real, other + 1000, k)
    assert set(far.values()) == {0.0}


def test_large_sets_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch balls of the wrong images from the second piece on."""
    from mgdm_ray.evaluation.fidelity import distances

    rng = np.random.default_rng(0)
    real, other = rng.standard_normal((40, 2)), rng.standard_normal((50, 2))
    chunked = distances.pairwise_distances_chunked
    pieces = []

    def small(x: np.ndarray, y: np.ndarray, working_memory: int) -> Iterator[np.ndarray]:
        for piece in chunked(x, y, working_memory=working_memory * 1e-5):
            pieces.append(piece)
            yield piece

    monkeypatch.setattr(distances, "pairwise_distances_chunked", small)
    assert manifold_scores(real, other) == pytest.approx(whole_table(real, other, 5))
    assert len(pieces) > 10


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="got 9 and 5"):
        manifold_scores(np.zeros((9, 2)), np.zeros((5, 2)))
