"""The sections on the added images: numbers, words, and what happens where artefacts are absent."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mgdm_ray.results.report import cells, results, words, write_report
from mgdm_ray.results.report.artefacts import Judge
from mgdm_ray.results.report.synthetic import rank_correlation
from mgdm_ray.storage.records import Record
from tests.judged_example import add_judged, add_ratios
from tests.results.report.page import cell, read_page, rows_of
from tests.study_example import ARMS, Example

Point = tuple[float, float, float]


def small(root: Path, *, files: bool = True, accuracy: float = 0.82) -> Example:
    """One dataset d of two classes with a cell per arm and a judge."""
    example = Example([cell(arm, 0.6 + 0.01 * i) for i, arm in enumerate(ARMS)], root)
    add_judged(example, "d", 2, ARMS, files=files, accuracy=accuracy)
    return example


def report(example: Example, folder: Path, **changes: object) -> tuple[Path, str]:
    info = [{"name": "d", "classes": ["benign", "malignant"]}]
    context = example.context(**{"expected_cells": (), "datasets": info, **changes})
    path = write_report(folder, example.records, context)
    return path, read_page(path)[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of ``small`` and its words."""
    root = tmp_path_factory.mktemp("judged")
    return report(small(root / "a"), root / "s")


def test_the_table_has_each_arm_and_real_images_as_yardstick(written: tuple[Path, str]) -> None:
    """Catches an arm's number under another arm, and numbers without what real images have."""
    path, _ = written
    rows = {row["arm"]: row for row in rows_of(path, "synthetic-d")}
    assert list(rows) == ["duplicate", "generate", "roundtrip", "disturb", "held-out real"]
    assert rows["generate"]["FD"] == "9.0"
    assert rows["held-out real"]["FD"] == "2.0"
    assert rows["held-out real"]["entropy"] == "0.3"
    assert rows["held-out real"]["precision"] == ""
    assert (rows["disturb"]["flips"], rows["held-out real"]["flips"]) == ("0.25", "0.18")
    by_class = rows_of(path, "synthetic-classes-d")
    assert len(by_class) == 4 * 2
    assert [row["FD"] for row in by_class[:2]] == ["0.02", ""]  # null: too few images
    assert by_class[1]["class"] == "malignant"


def test_copies_stand_beside_the_share_of_real_images(written: tuple[Path, str]) -> None:
    """Catches a copy rate without the rate of images that are certainly no copies."""
    path, _ = written
    rows = {row["arm"]: row for row in rows_of(path, "copies")}
    assert (rows["duplicate"]["near-copies"], rows["disturb"]["near-copies"]) == ("1.0", "0.05")
    assert rows["disturb"]["near-copies, real"] == "0.04"
    assert rows["disturb"]["threshold"] == "1.25"
    assert (path.parent / "figures" / "closest-d-disturb.png").is_file()


def test_a_judge_that_guesses_is_called_so(tmp_path: Path, written: tuple[Path, str]) -> None:
    """Catches flips and entropies of a judge that knows nothing taken at face value."""
    assert [row["caveat"] for row in rows_of(written[0], "judges")] == [""]
    example = small(tmp_path / "b", accuracy=0.55)
    metrics = {"share_of_t_at_chance": 0.75}
    example.records.append(Record("g", "fit_guide", "done", dataset="d", metrics=metrics))
    path, words = report(example, tmp_path / "t")
    assert re.search(r"\bguide\b[^.]*\bd \(75 %\)", words)
    assert re.search(r"\bjudge\b[^.]*\bd \(validation and test\b", words)
    [caveat] = [row["caveat"] for row in rows_of(path, "judges")]
    assert "validation and test" in caveat
    assert 'class="warning">On d' in path.read_text()
    assert 'class="warning">On d' not in written[0].read_text()


def test_a_judge_at_chance_by_hand() -> None:
    """50 images of each of two classes: the limit is 0.582."""
    labels = np.repeat([0, 1], 50)
    judge = Judge("d", {"balanced_accuracy": 0.58}, {"test/labels": labels})
    assert judge.at_chance
    assert not replace(judge, metrics={"test_balanced_accuracy": 0.6}).at_chance
    assert not Judge("d", {"balanced_accuracy": 0.5}, {}).at_chance  # the limit is unknown
    weak = {"balanced_accuracy": 0.9, "val_balanced_accuracy": 0.3, "val_chance_below": 0.3}
    assert Judge("d", weak, {}).at_chance == {"validation": 0.3}


def test_records_without_files_give_the_table_only(tmp_path: Path) -> None:
    """Catches a crash, or a figure made up, where the artefacts lie on another machine."""
    path, _ = report(small(tmp_path / "a", files=False), tmp_path / "s")
    assert len(rows_of(path, "synthetic-d")) == 5
    figures = {p.stem for p in (path.parent / "figures").glob("*.png")}
    assert "fd-against-gain" in figures
    assert not {"entropy", "closest-d-disturb"} & figures


def test_damaged_and_failed_artefacts_are_left_out(tmp_path: Path) -> None:
    """Catches one torn file that costs the whole report, and numbers of a failed assessment."""
    example = small(tmp_path / "a")
    for path in (tmp_path / "a").rglob("features.safetensors"):
        path.write_bytes(b"torn")
    example.records = [
        replace(r, status="failed", reason="nan") if r.key == "assess-d-disturb" else r
        for r in example.records
    ]
    path, _ = report(example, tmp_path / "s")
    assert "disturb" not in {row["arm"] for row in rows_of(path, "synthetic-d")}


def test_a_study_without_judge_has_none_of_it(tmp_path: Path) -> None:
    """Catches empty sections in studies that did not ask."""
    example = Example([cell("real", 0.6), cell("disturb", 0.7)], tmp_path / "a")
    path, _ = report(example, tmp_path / "s")
    assert not {"synthetic", "copies"} & read_page(path)[0].ids


@pytest.mark.parametrize(
    ("points", "rho"),
    [
        ({"a": (1, 0, 0.3), "b": (2, 0, 0.2), "c": (3, 0, 0.1)}, -1.0),
        ({"a": (1, 0, 0.1), "b": (2, 0, 0.3), "c": (3, 0, 0.2)}, 0.5),
        ({"a": (1, 0, 0.1), "b": (2, 0, 0.3)}, math.nan),
        ({"a": (1, 0, 0.1), "b": (2, 0, 0.1), "c": (3, 0, 0.1)}, math.nan),
    ],
)
def test_rank_correlation_by_hand(points: dict[str, Point], rho: float) -> None:
    """1 - 6 (1 + 1 + 0...) / (3 * 8); nan where there is nothing to rank."""
    assert rank_correlation(points) == pytest.approx(rho, nan_ok=True)


def test_ratio_curves_by_hand(tmp_path: Path) -> None:
    """Gains over real of 0.1 and 0.2 at half the images, and 0.3 of the cell of seed 0 at ratio 1.

    Catches a curve whose point at the study's own ratio is the mean over networks and seeds that
    the rest of the curve does not have.
    """
    example = Example([], tmp_path)
    add_ratios(example, "d", "n", {("disturb", 0.5, 0): 0.6, ("disturb", 0.5, 1): 0.8})
    cells = {("d", n, a, s): 0.5 for n in "nm" for a in ("real", "disturb") for s in (0, 1, 2)}
    cells |= {("d", "n", "real", 1): 0.6, ("d", "n", "disturb", 0): 0.8}
    del cells["d", "n", "disturb", 1]
    curve = results.ratio_curves(example.records, cells, 1.0)["d"]["disturb"]
    assert {ratio: (round(s.mean, 9), s.n) for ratio, s in curve.items()} == {
        0.5: (0.15, 2), 1.0: (0.3, 1),
    }  # fmt: skip
    assert list(results.ratio_curves(example.records, cells, None)["d"]["disturb"]) == [0.5]
    assert results.ratio_curves([], cells, 1.0) == {}


def test_ratio_points_are_no_cells_of_the_tables(tmp_path: Path) -> None:
    """Catches cells of the curve that get into means and contrasts."""
    example = Example([cell("real", 0.6), cell("disturb", 0.7)], tmp_path / "a")
    before = cells.scores(example.records)
    add_ratios(example, "d", "n", {("disturb", 0.5, 0): 0.9})
    assert cells.scores(example.records) == before
    path, _ = report(example, tmp_path / "s", ratio=1.0)
    (row,) = rows_of(path, "ratios")
    assert float(row["0.5"]) == pytest.approx(0.3)
    assert float(row["1"]) == pytest.approx(0.1)


def test_networks_are_compared_one_by_one(tmp_path: Path) -> None:
    """Catches one network's numbers in the other's row: +0.1 for a, -0.1 for b."""
    records = [
        cell(arm, 0.5 + (gain + (seed - 0.5) / 50) * (arm == "disturb"), seed, network)
        for arm in ("real", "duplicate", "disturb")
        for network, gain in (("a", 0.1), ("b", -0.1))
        for seed in (0, 1)
    ]
    path, _ = report(Example(records, tmp_path / "a"), tmp_path / "s")
    name = f"disturb {words.MINUS} duplicate"
    rows = {row["network"]: row for row in rows_of(path, "networks")}
    assert float(rows["a"][name]) == pytest.approx(0.1)
    assert float(rows["b"][name]) == pytest.approx(-0.1)
    low, high = (float(rows["a"][f"{name}, 95 % interval {end}"]) for end in ("low", "high"))
    assert (low + high) / 2 == pytest.approx(0.1)
    assert low < 0.1


def test_a_dataset_without_pictures_shows_none(tmp_path: Path) -> None:
    """Catches images of patients in a page that is passed on: only drawn figures may be in it."""
    example = small(tmp_path / "a")
    shown, _ = report(example, tmp_path / "shown")
    path, words = report(example, tmp_path / "s", without_pictures=frozenset({"d"}))
    names = {file.stem for file in (path.parent / "figures").glob("*.png")}
    everything = {file.stem for file in (shown.parent / "figures").glob("*.png")}
    hidden = {n for n in everything if n.startswith(("closest-d-", "entropy-d-", "grid-d-"))}
    assert len(hidden) >= 2
    assert names == everything - hidden
    assert "pictures: false" in words
