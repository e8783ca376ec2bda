"""The end of a study, on a storage that an earlier version made."""

from __future__ import annotations

import json
import re
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mgdm_ray import study
from mgdm_ray.config import load_study
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.job import VERSIONS
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.status import StudyStatus
from mgdm_ray.results.finalize import CLOSED_FILE, RECORDS_FILE, REPORT_FILE, Finalizer
from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store
from tests import golden
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
EARLIER = str(FIXTURES / "earlier.yaml")


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ``VERSIONS`` that the storage was made with: others make new jobs on purpose."""
    then = json.loads((FIXTURES / "earlier-versions.json").read_text(encoding="utf-8"))
    for kind, version in then.items():
        monkeypatch.setitem(VERSIONS, kind, version)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    folder = tmp_path_factory.mktemp("earlier") / "runs"
    with tarfile.open(FIXTURES / "earlier-storage.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def finalizer(storage: Path) -> Finalizer:
    config, store = load_study(EARLIER), Store(storage)
    prints = {d.name: data_source(d, None).fingerprint() for d in config.datasets}
    return Finalizer(
        config, config.datasets, make_plan(config, prints), store, prints, "command", "now"
    )


@pytest.fixture
def known(finalizer: Finalizer) -> dict[str, Record]:
    rows = finalizer.folder / RECORDS_FILE
    return StudyStatus(finalizer.plan, finalizer.store, rows).finished()


def test_a_report_is_rebuilt_from_the_storage(
    storage: Path, finalizer: Finalizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch jobs of an earlier version that are no longer recognised, records that change,
    and sentences that nobody has read."""
    path = finalizer.folder / RECORDS_FILE
    # The fixture lacks the judge's weights, to keep it small.
    before = {r.key: r for r in read_records(path) if r.kind != "fit_judge"}
    assert study.main([EARLIER, "--storage", str(storage), "--report-only"]) == 0
    shown = re.sub(r"(compare-runs\?runs=).*", r"\1...", capsys.readouterr().out)
    golden.check("study-report-only", shown, storage)
    assert {record.key: record for record in read_records(path)} == before
    assert len(set(finalizer.plan.jobs) - set(before)) == 1


def test_nothing_is_written_twice(
    finalizer: Finalizer, known: dict[str, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a resumed study that spends minutes on a report that it has, or that keeps an
    outdated one."""
    finalizer.close(known, 0.0)
    page = finalizer.folder / REPORT_FILE
    page.write_text("old")
    finalizer.close(known, 0.0)
    assert page.read_text() == "old"
    key = next(key for key, record in known.items() if record.is_cell)
    changed = replace(known[key], metrics={**known[key].metrics, "balanced_accuracy": 0.125})
    finalizer.close({**known, key: changed}, 0.0)
    assert page.read_text() != "old"
    assert finalizer.is_closed()
    (finalizer.folder / CLOSED_FILE).write_text("state of another version")
    assert not finalizer.is_closed()
    capsys.readouterr()


def test_what_must_not_be_shown_has_no_artefact(
    finalizer: Finalizer, known: dict[str, Record]
) -> None:
    """Would catch images of a refused arm in the report or in MLflow."""
    [search] = [record for record in known.values() if record.kind == "search"]
    cell = next(record for record in known.values() if record.is_cell)
    trials = finalizer.with_trials(search)[1:]
    assert finalizer.artefact(cell) == finalizer.store.folder(cell.kind, cell.key)
    assert finalizer.artefact(replace(cell, status="refused", reason="limits.flips")) is None
    assert finalizer.artefact(replace(cell, key="absent")) is None
    assert {trial.kind for trial in trials} == {"trial"}
    assert {finalizer.artefact(trial) for trial in trials} == {None}
    assert finalizer.with_trials(cell) == [cell]
