"""A storage that an earlier version made is the same storage: nothing is computed again.

To keep the archive small it lacks the judge's weights: the judge counts as damaged. The tests run
with the ``VERSIONS`` that it was made with (``earlier-versions.json``): a version raised since
makes new jobs on purpose, and everything else that could lose the old ones is still caught.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mgdm_ray.config.file import read_study
from mgdm_ray.pipeline.job import VERSIONS
from mgdm_ray.runtime import engine
from mgdm_ray.storage.records import read_records
from mgdm_ray.storage.store import Store
from tests.conftest import Said
from tests.finished import plan_of

FIXTURES = Path(__file__).parent / "fixtures"
STUDY = FIXTURES / "earlier.yaml"


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    then = json.loads((FIXTURES / "earlier-versions.json").read_text(encoding="utf-8"))
    for kind, version in then.items():
        monkeypatch.setitem(VERSIONS, kind, version)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / "earlier-storage.tar.gz") as archive:
        archive.extractall(tmp_path / "runs", filter="data")
    return tmp_path / "runs"


def test_every_job_is_recognised(storage: Path, mgdm: Callable[..., Said]) -> None:
    """Would catch a key, a manifest or a marker that changed: days of work done again."""
    config, _ = read_study(str(STUDY), [])
    plan = plan_of(config.model_dump(mode="json"))
    store = Store(storage)
    assert {(job.kind, key) for key, job in plan.jobs.items()} == set(store.done())
    assert len(plan.jobs) == 17
    damaged = [kind for kind, key in store.done() if store.verify(kind, key)]
    assert damaged == ["fit_judge"]
    assert mgdm(STUDY, "--storage", storage, "--plan").code == 0


def test_records_and_report_come_out_as_they_were(
    storage: Path, mgdm: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a record that is read or written differently, and an artefact no longer read."""
    records = storage / "studies" / "earlier" / "records.jsonl"
    lines = records.read_text().splitlines()
    monkeypatch.setattr(engine, "cluster", None)  # not to be called
    again = mgdm(STUDY, "--storage", storage, "--report-only")
    assert again.code == 0, again.err
    kept = [line for line in lines if '"kind": "fit_judge"' not in line]
    assert records.read_text().splitlines() == kept
    assert len(kept) == len(lines) - 1
    assert {r.status for r in read_records(records)} == {"done"}
    assert (records.parent / "report.html").stat().st_size > 10_000
