"""Limits on a real small study: refused, shown again, refused again, and nothing computed twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray.storage.records import Record, read_records
from tests.conftest import TINY
from tests.finished import plan_of
from tests.finished import run_study as run

STUDY: dict[str, Any] = {
    **TINY,
    "name": "gated",
    "arms": ["real", "duplicate", "generate", "roundtrip"],
    "networks": ["squeezenet1_1"],
    "search": None,
    "judge": {"network": "googlenet", "steps": 3, "batch_size": 8},
}
TIGHT = ("--set", "limits.flips=0", "--set", "limits.copies=0")
LOOSE = ("--set", "limits.flips=1", "--set", "limits.copies=1")


def records_of(storage: Path, kind: str) -> dict[str, Record]:
    rows = read_records(storage / "studies" / "gated" / "records.jsonl")
    return {str(row.arm): row for row in rows if row.kind == kind}


def stamps(storage: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in storage.glob("artifacts/*/*/done")}


@pytest.mark.long
def test_limits_refuse_and_show_again_and_compute_nothing_twice(tmp_path: Path) -> None:
    """Would catch cells of refused images that are trained, shown or forgotten; cells from a time
    without limits that are shown before anyone has looked at their images; limits that change a
    key; a refusal that ends in exit 1; and copies of real images, a control, refused for being
    copies."""
    from mlflow.tracking import MlflowClient

    study, storage = tmp_path / "gated.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    unjudged = run(study, storage, "--set", "judge=null", "--set", "arms=[real, generate]")
    assert unjudged.returncode == 0, unjudged.stdout + unjudged.stderr
    kept = stamps(storage)

    tight = run(study, storage, *TIGHT)
    assert tight.returncode == 0, tight.stdout + tight.stderr
    assert stamps(storage).items() >= kept.items()
    cells, assessed = records_of(storage, "fit_downstream"), records_of(storage, "assess")
    assert set(assessed) == {"duplicate", "generate", "roundtrip"}
    assert assessed["duplicate"].metrics["copy_rate"] == 1
    over = {
        arm
        for arm in ("generate", "roundtrip")
        for rate in ("copy_rate", "flip_rate")
        if assessed[arm].metrics[rate] > assessed[arm].metrics[f"{rate}_real"]
    }
    assert over, "the test needs images that a limit can refuse"
    assert {arm for arm, cell in cells.items() if cell.status == "refused"} == over
    for cell in plan_of(STUDY).cells():
        trained = (storage / "artifacts" / "fit_downstream" / cell.key / "done").exists()
        assert trained == (cell.arm not in over or cell.arm == "generate")
    for arm in over:
        assert cells[arm].reason.startswith("limits.")
        assert not cells[arm].metrics
        assert f"phantom-ultrasound {arm} (1): {cells[arm].reason}" in tight.stdout
    page = (storage / "studies" / "gated" / "report.html").read_text()
    assert cells[min(over)].reason.split(",")[0] in page
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'assess'")
    assert {r.data.params["arm"] for r in runs} == set(assessed)
    assert all("copy_rate" in r.data.metrics for r in runs)

    loose = run(study, storage, *LOOSE)
    assert loose.returncode == 0, loose.stdout + loose.stderr
    shown = records_of(storage, "fit_downstream")
    assert {cell.status for cell in shown.values()} == {"done"}
    everything = stamps(storage)

    again = run(study, storage, *TIGHT)
    assert again.returncode == 0
    assert "0 to do" in again.stdout
    assert {a: c.reason for a, c in records_of(storage, "fit_downstream").items() if c.reason} == {
        arm: cells[arm].reason for arm in over
    }
    plan = run(study, storage, *TIGHT, "--plan")
    assert re.search(rf"\b{len(over)}\b.*\blimits\b", plan.stdout)
    rebuilt = run(study, storage, *LOOSE, "--report-only")
    assert rebuilt.returncode == 0
    assert records_of(storage, "fit_downstream") == shown
    assert stamps(storage) == everything, "limits must not make anything be computed"
