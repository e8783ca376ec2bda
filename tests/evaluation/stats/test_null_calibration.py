"""Fresh real images in all arms: a report must not call one better. See benchmarks/null.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import null

REPETITIONS = 12


def test_fresh_real_images_are_neither_better_nor_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches cells or test images that count as more evidence than they are: at 5 % in any of
    three contrasts, four of 12 have a probability of 0.2 %."""
    monkeypatch.setattr(null, "POOL", 400)
    monkeypatch.setattr(null, "DATASETS", ("phantom-ultrasound", "phantom-xray"))
    found = null.verdicts(REPETITIONS)
    assert sum(found.values()) - found["any"] == REPETITIONS
    assert found["any"] < 4


def test_the_networks_learn_and_their_test_images_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a calibration among networks at chance, and one without the stored predictions."""
    monkeypatch.setattr(null, "POOL", 400)
    pools = {"phantom-xray": null.pool("phantom-xray")}
    records = null.study(np.random.default_rng(0), pools, tmp_path, "")
    values = [record.metrics["balanced_accuracy"] for record in records]
    assert np.mean(values) > 1 / (pools["phantom-xray"][1].max() + 1) + 0.05
    context = null.ReportContext(
        study_name="null", config_yaml="", command="", started="", seconds=0.0,
        artefact=lambda record: tmp_path / record.key,
    )  # fmt: skip
    (first, *_) = null.Builder(tmp_path / "report", records, context).primary
    assert first.here is not None
    assert first.here.estimate.images == null.TEST
