"""Patients named by an .npz, from the command line: refused where they contradict the splits, and
the unit of what a plan can resolve."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgdm_ray.runtime import engine
from tests.conftest import Said
from tests.data.test_load import save


@pytest.fixture
def study(tiny: dict[str, Any], tmp_path: Path, write_study: Callable[..., Path]) -> Path:
    tiny["datasets"] = [{"name": "mine", "path": "own.npz", "size": 8, "task": "multiclass"}]
    return write_study({**tiny, "data_dir": str(tmp_path), "seeds": 3, "search": None})


def test_a_patient_in_two_splits_is_refused(
    study: Path, tmp_path: Path, mgdm: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a study of days on a test split that is not held out."""
    monkeypatch.setattr(engine, "cluster", None)  # not to be called
    save(tmp_path, {"test_groups": np.arange(12), "val_groups": np.arange(11, 20)})
    refused = mgdm(study, "--storage", tmp_path / "runs")
    assert refused.code == 2
    for word in (f"{study}: datasets[0]: ", "own.npz", "1 patient(s)", "'11'", "val_groups"):
        assert word in refused.err
    assert not list((tmp_path / "runs").rglob("artifacts"))


def test_a_plan_counts_patients(study: Path, tmp_path: Path, mgdm: Callable[..., Said]) -> None:
    """Would catch a plan that promises from twelve images what three patients cannot show."""
    found = []
    for patients in (np.arange(12), np.arange(12) // 4):
        save(tmp_path, {"test_groups": patients})
        shown = mgdm(study, "--storage", tmp_path / "runs", "--plan")
        assert shown.code == 0, shown.err
        found.append(float(re.findall(r"  on mine: ([\d.]+)", shown.out)[0]))
    assert found[1] > found[0]
