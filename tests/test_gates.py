"""Limits on a real small study: refused, shown again, refused again, and nothing computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray.records import Record, read_records
from tests.conftest import TINY
from tests.test_study import plan_of, run

STUDY: dict[str, Any] = {
    **TINY,
    "name": "gated",
    "arms": ["real", "duplicate", "generate", "roundtrip"],
    "networks": ["squeezenet1_1"],
    "search": None,
    "judge": {"network": "googlenet", "steps": 3, "batch_size": 8},
}


def cells(storage: Path) -> dict[str, Record]:
    records = read_records(storage / "studies" / "gated" / "records.jsonl")
    return {str(r.arm): r for r in records if r.is_cell}


def stamps(storage: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in storage.glob("artifacts/*/*/done")}


@pytest.mark.slow
def test_limits_refuse_and_show_again_without_computing(tmp_path: Path) -> None:
    """Would catch a cell of refused images that is trained, shown or forgotten; limits that change
    a key; a refusal that ends in exit 1; and copies of real images, a control, that are refused
    for being copies."""
    study, storage = tmp_path / "gated.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    tight = ("--set", "limits.flips=0", "--set", "limits.copies=0")
    loose = ("--set", "limits.flips=1", "--set", "limits.copies=1")

    first = run(study, storage, *loose)
    assert first.returncode == 0, first.stdout + first.stderr
    assert {r.status for r in cells(storage).values()} == {"done"}
    metrics = {arm: r.metrics for arm, r in cells(storage).items()}
    before = stamps(storage)
    assessed = {
        r.arm: r.metrics
        for r in read_records(storage / "studies" / "gated" / "records.jsonl")
        if r.kind == "assess"
    }
    assert set(assessed) == {"duplicate", "generate", "roundtrip"}
    assert assessed["duplicate"]["copy_rate"] == 1
    over = {
        arm
        for arm, m in assessed.items()
        if arm != "duplicate"
        and (m["flip_rate"] > m["flip_rate_real"] or m["copy_rate"] > m["copy_rate_real"])
    }
    assert over, "the test needs images that a limit can refuse"

    refused = run(study, storage, *tight)
    assert refused.returncode == 0, refused.stdout + refused.stderr
    assert "0 to do" in refused.stdout
    assert f"{len(over)} jobs were refused, as the study's limits ask:" in refused.stdout
    found = cells(storage)
    assert {arm for arm, r in found.items() if r.status == "refused"} == over
    for arm in over:
        assert found[arm].reason.startswith("limits.")
        assert not found[arm].metrics
        assert f"phantom-ultrasound {arm} (1): {found[arm].reason}" in refused.stdout
    page = (storage / "studies" / "gated" / "report.html").read_text()
    assert found[min(over)].reason.split(",")[0] in page
    assert (
        f"{len(over)} are refused by the study's limits"
        in run(study, storage, *tight, "--plan").stdout
    )

    again = run(study, storage, *loose)
    assert again.returncode == 0
    assert {arm: r.metrics for arm, r in cells(storage).items()} == metrics
    assert stamps(storage) == before, "limits must not make anything be computed"


@pytest.mark.slow
def test_cells_wait_for_the_judge_and_are_not_trained_for_nothing(tmp_path: Path) -> None:
    """Would catch cells of refused images that are trained all the same; cells that the store
    holds from a time without limits, shown before anyone has looked at their images; and a cell
    that never comes once the limits are loosened."""
    from mlflow.tracking import MlflowClient

    study, storage = tmp_path / "gated.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    unjudged = run(study, storage, "--set", "judge=null", "--set", "arms=[real, generate]")
    assert unjudged.returncode == 0, unjudged.stdout + unjudged.stderr
    assert "assess" not in unjudged.stdout
    kept = stamps(storage)

    plan = plan_of({**STUDY, "limits": {"flips": 0.0}})
    assert {j.arm for j in plan.jobs.values() if j.gate} == {"generate", "roundtrip"}
    done = run(study, storage, "--set", "limits.flips=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stamps(storage).items() >= kept.items()
    found, records = cells(storage), read_records(storage / "studies/gated/records.jsonl")
    for record in records:
        if record.kind == "assess" and record.arm != "duplicate":
            beyond = record.metrics["flip_rate"] > record.metrics["flip_rate_real"]
            status = found[str(record.arm)].status
            assert status == ("refused" if beyond else "done")
            made = [j for j in plan.cells() if j.arm == record.arm]
            trained = (storage / "artifacts" / "fit_downstream" / made[0].key / "done").exists()
            assert trained == (status == "done" or record.arm == "generate")
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("mgdm-ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'assess'")
    assert {r.data.params["arm"] for r in runs} == {"duplicate", "generate", "roundtrip"}
    assert all("copy_rate" in r.data.metrics for r in runs)

    loose = run(study, storage, "--set", "limits.flips=1")
    assert loose.returncode == 0
    assert {r.status for r in cells(storage).values()} == {"done"}
