"""Patients that the names of files suggest."""

from __future__ import annotations

import pytest

from mgdm_ray.data.inspection.findings import guess_group


@pytest.mark.parametrize(
    ("paths", "patients"),
    [
        (["a/P01_1.png", "a/P01_2.png", "b/P02_1.png"], 2),
        (["a/patient7-x.png", "a/patient7-y.png", "b/patient12-x.png"], 2),
        (["a/S1/1.png", "a/S1/2.png", "b/S2/1.png", "b/S3/1.png"], 3),
        (["a/sub-CN003_t1.nii", "b/sub-CN003_t2.nii", "b/sub-CN010_t1.nii"], 2),
    ],
    ids=["prefix", "word", "folder", "BIDS"],
)
def test_a_pattern_of_names(paths: list[str], patients: int) -> None:
    """Catches a common naming scheme that is not recognised, or counted wrongly."""
    found = guess_group(paths)
    assert found is not None
    assert found.patients == patients


@pytest.mark.parametrize(
    "paths",
    [
        ["a/1.png", "a/2.png", "b/3.png"],
        ["a/P01_1.png", "a/P01_2.png", "b/other.png"],
        ["a/P01_1.png", "a/P01_2.png"],
        ["a/P01_1.png", "a/P02_1.png"],
        ["a/P01_1.png", "a/P01_1.png"],
    ],
    ids=["no scheme", "one file off", "one patient", "one image each", "slices of one file"],
)
def test_no_pattern(paths: list[str]) -> None:
    """Catches a guess that groups nothing, or everything, or only some files."""
    assert guess_group(paths) is None
