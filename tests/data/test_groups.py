"""Which test images belong together: by patient, by pixels, and through others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgdm_ray.config import DatasetConfig, InputError, PhantomConfig
from mgdm_ray.data import groups
from mgdm_ray.data.groups import ImageGroups, duplicates, groups_of_test
from mgdm_ray.data.load import data_source
from tests.data.test_load import OWN, save


def noise(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)


def test_copies_and_near_copies_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a copy that is missed because it is brighter, constant, far away or of another block;
    and strangers that are joined."""
    images = noise(9)
    images[4] = images[1]
    images[7] = np.clip(images[1].astype(int) // 2 + 9, 0, 255)  # the same, darker
    images[5], images[8] = 3, 3  # constant: correlates with nothing
    images[6] = 4
    expected = [0, 1, 2, 3, 1, 4, 5, 1, 4]
    assert duplicates(images).tolist() == expected
    monkeypatch.setattr(groups, "BLOCK", 2)
    assert duplicates(images).tolist() == expected
    found = ImageGroups.of(images)
    assert (len(found), found.patients, found.repeated) == (6, None, 5)
    assert "5 of 9" in found.problems()[0]
    assert ImageGroups.of(noise(4)).problems() == []


def test_a_copy_joins_two_patients() -> None:
    """Catches patients whose common image leaves them independent; and names that show."""
    images = noise(6)
    images[5] = images[0]
    found = ImageGroups.of(images, np.array([30, 7, 30, 7, 99, 8]))
    assert found.numbers.tolist() == [0, 1, 0, 1, 2, 0]
    assert (len(found), found.patients, found.repeated) == (3, 4, 2)


def test_an_npz_may_name_patients(tmp_path: Path) -> None:
    """Catches patients that are ignored, counted wrongly in the plan, or shown."""
    names = np.array([f"Mueller{i // 2}" for i in range(12)])
    save(tmp_path, {"test_groups": names})
    source = data_source(OWN, tmp_path)
    assert source.check() == []
    assert source.counts("test") == [4, 4, 4]
    assert source.units("test") == [4, 4, 4]
    found = groups_of_test(OWN, tmp_path)
    assert found.numbers.tolist() == [i // 2 for i in range(12)]
    assert found.patients == 6
    save(tmp_path, {"test_groups": np.arange(12)[:, None] % 3})
    assert data_source(OWN, tmp_path).units("test") == [1, 1, 1]
    assert groups_of_test(OWN, tmp_path).patients == 3
    save(tmp_path)
    assert data_source(OWN, tmp_path).units("test") == [4, 4, 4]
    assert groups_of_test(OWN, tmp_path).patients is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_groups": np.arange(11)}, "12 integers"),
        ({"test_groups": np.linspace(0, 1, 12)}, "float64"),
        ({"test_groups": np.arange(12).astype("S2")}, "test_groups"),
        ({"test_groups": np.arange(12), "train_groups": np.arange(11, 41)}, "'11' is in train"),
        ({"test_groups": np.full(12, "P1"), "val_groups": np.full(9, "P1")}, "val_groups and test"),
    ],
)
def test_groups_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    """Catches groups of other images, and a patient in two splits, before anything starts."""
    save(tmp_path, changes)
    with pytest.raises(InputError, match=message):
        data_source(OWN, tmp_path).check()


def test_phantoms_are_strangers() -> None:
    """Catches phantoms that are said to be of unknown patients."""
    config = DatasetConfig(name="phantom-xray", size=16, phantom=PhantomConfig(test=20))
    found = groups_of_test(config, None)
    assert (len(found), found.patients) == (20, 20)
    assert data_source(config, None).units("test") == data_source(config, None).counts("test")
