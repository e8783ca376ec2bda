"""The engine on a real Ray, with jobs of milliseconds: deaths, full disks, several drivers."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from mgdm_ray.config import ResourcesConfig
from mgdm_ray.environment import StudyStopped
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.tasks.base import Context, JobFunction, Outcome
from mgdm_ray.runtime import engine
from mgdm_ray.runtime.job_task import Live, RunOptions
from mgdm_ray.storage.locks import Locks
from mgdm_ray.storage.records import NO_SPACE, OUT_OF_MEMORY, WORKER_DIED, Record
from tests.conftest import ROOT

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.usefixtures("local_ray")


def cells(count: int, *needs: str) -> dict[str, Job]:
    roles = {str(i): need for i, need in enumerate(needs)}
    keys = [f"cell{i:04d}" for i in range(count)]
    return {k: Job("fit_downstream", k, {}, roles, "d", "net", "real", 0) for k in keys}


def write_down(job: Job, context: Context, folder: Path) -> Outcome:
    """Says in a file of its own that it ran, and in the artefact that it was done."""
    with (Path(context.study_folder) / "ran").open("a") as file:
        file.write(f"{job.key}\n")
    time.sleep(float(job.inputs.get("sleep", 0)))
    (folder / "payload").write_text(job.key)
    return {"metrics": {"smaller": float(context.smaller)}}


def ran(folder: Path) -> Counter[str]:
    path = folder / "ran"
    return Counter(path.read_text().split()) if path.exists() else Counter()


class Watch:
    """An Observer that keeps what it is told."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.said: list[str] = []

    def ended(self, job: Job, record: Record) -> None:
        assert job.key not in self.records, "a job came to two records"
        self.records[job.key] = record

    def live(self, rows: Mapping[str, Live]) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def run(
    folder: Path,
    todo: dict[str, Job],
    function: JobFunction = write_down,
    known: dict[str, Record] | None = None,
    **resources: int,
) -> dict[str, Record]:
    watch = Watch()
    engine.run_plan(
        todo,
        known or {},
        Context(storage=str(folder), study_folder=str(folder), datasets={}),
        RunOptions(ResourcesConfig.model_validate(resources), 1),
        Locks(folder),
        watch,
        functions=dict.fromkeys(("fit_downstream", "generate", "fit_guide"), function),
    )
    return watch.records


def test_needs_are_there_before_a_job_runs(tmp_path: Path) -> None:
    """Would catch a job that runs before its need, and one that runs twice."""

    def needs_first(job: Job, context: Context, folder: Path) -> Outcome:
        kinds = {"first": "fit_guide", "second": "generate"}
        for need in job.needs.values():
            assert context.store.is_done(kinds[need], need)
        return write_down(job, context, folder)

    todo = {
        **cells(4, "second"),
        "second": Job("generate", "second", {}, {"a": "first"}, "d"),
        "first": Job("fit_guide", "first", {}, {}, "d"),
    }
    records = run(tmp_path, todo, needs_first)
    assert {r.status for r in records.values()} == {"done"}, records
    assert ran(tmp_path) == Counter(todo.keys())
    again = run(tmp_path, todo, needs_first)
    assert again == records
    assert not list((tmp_path / "claims").iterdir()), "a lock was kept"
    assert ran(tmp_path) == Counter(todo.keys()), "what is done was done again"


def test_a_failure_takes_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    """Would catch a study that stops, or hangs, at its first failure."""

    def fail(job: Job, context: Context, folder: Path) -> Outcome:
        if job.kind == "generate":
            raise ValueError("no such thing\n  at all")
        return write_down(job, context, folder)

    todo = {**cells(2, "bad"), "bad": Job("generate", "bad", {}, {}, "d")}
    todo["free"] = Job("fit_downstream", "free", {}, {}, "d")
    records = run(tmp_path, todo, fail)
    assert records["free"].status == "done"
    assert records["bad"].reason == "ValueError: no such thing at all"
    reason = "needs generate bad, which failed: ValueError: no such thing at all"
    assert records["cell0000"].reason == records["cell0001"].reason == reason
    assert not records["cell0000"].is_transient
    assert "Traceback" in next((tmp_path / "logs").iterdir()).read_text()


def test_a_worker_that_dies_is_replaced_and_too_many_deaths_are_no_verdict(tmp_path: Path) -> None:
    """Would catch a job lost with its worker, and one that is given up for good because machines
    died under it."""

    def die(job: Job, context: Context, folder: Path) -> Outcome:
        outcome = write_down(job, context, folder)
        if ran(Path(context.study_folder))[job.key] <= int(job.inputs["deaths"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    todo = {
        key: Job("fit_downstream", key, {"deaths": deaths}, {}, "d")
        for key, deaths in (("never", 0), ("once", 1), ("thrice", 3))
    }
    first = run(tmp_path, todo, die, max_retries=1)
    assert ran(tmp_path) == {"never": 1, "once": 2, "thrice": 2}
    assert first["never"].status == first["once"].status == "done"
    assert first["thrice"].reason.startswith(WORKER_DIED)
    assert first["thrice"].is_transient
    second = run(tmp_path, {"thrice": todo["thrice"]}, die, max_retries=1)
    assert second["thrice"].status == "done"


def test_out_of_memory_is_tried_once_more_with_less(tmp_path: Path) -> None:
    """Would catch a cell that is given up although half of its batch would fit, and one that is
    tried without end. The memory really is refused, by the system."""

    def hungry(job: Job, context: Context, folder: Path) -> Outcome:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
        try:
            wanted = int(job.inputs["bytes"]) // (2 if context.smaller else 1)
            np.ones(wanted, dtype=np.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return write_down(job, context, folder)

    todo = {
        key: Job("fit_downstream", key, {"bytes": size}, {}, "d")
        for key, size in (("small", 2**20), ("half", 2**28 + 2**24), ("huge", 2**31))
    }
    todo["other"] = Job("fit_guide", "other", {"bytes": 2**31}, {}, "d")
    records = run(tmp_path, todo, hungry)
    assert records["small"].metrics == {"smaller": 0.0}
    assert records["half"].metrics == {"smaller": 1.0}
    assert records["huge"].reason.startswith(OUT_OF_MEMORY)
    assert "half" in records["huge"].reason, "it was not tried with less"
    assert not records["huge"].is_transient
    assert records["other"].reason.startswith(OUT_OF_MEMORY), "a kind that cannot be smaller"


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """Would catch thousands of cells that fail one after the other because a disk is full."""

    def full(job: Job, context: Context, folder: Path) -> Outcome:
        if job.key == "cell0001" and not (Path(context.study_folder) / "room").exists():
            while not ran(Path(context.study_folder))["cell0000"]:
                time.sleep(0.05)  # its worker may take longer to start
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return write_down(job, context, folder)

    todo = cells(40)
    with pytest.raises(StudyStopped, match=f"{NO_SPACE}: fit_downstream d"):
        run(tmp_path, todo, full)
    before = ran(tmp_path)
    assert before["cell0000"] == 1
    assert sum(before.values()) < 40
    (tmp_path / "room").touch()
    records = run(tmp_path, todo, full)
    assert {r.status for r in records.values()} == {"done"}
    # A job that was running when the run stopped may be started again; a finished one never is.
    assert set(ran(tmp_path).values()) <= {1, 2}


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch waiting, locks or seconds that are taken from the wall clock."""
    jumps = itertools.count()
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + 86_400 * (-1) ** next(jumps))
    records = run(tmp_path, cells(6))
    monkeypatch.undo()
    assert {r.status for r in records.values()} == {"done"}
    assert all(0 <= r.seconds < 60 for r in records.values())


DRIVER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from mgdm_ray import environment
from mgdm_ray.runtime import engine
from tests.runtime import test_engine
environment.prepare(local=True)
with engine.cluster(None):
    print("ready", flush=True)
    sys.stdin.readline()
    records = test_engine.run(Path(sys.argv[1]), test_engine.shared_cells())
print(len(records), {r.status for r in records.values()}, flush=True)
"""


def shared_cells() -> dict[str, Job]:
    return {
        key: Job(job.kind, key, {"sleep": 0.2}, {}, "d", "net", "real", 0)
        for key, job in cells(40).items()
    }


def driver(folder: Path) -> subprocess.Popen[str]:
    root = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def together(folder: Path) -> list[subprocess.Popen[str]]:
    """Two drivers on one storage that begin at the same time."""
    drivers = [driver(folder), driver(folder)]
    for process in drivers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in drivers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return drivers


@pytest.mark.slow
def test_two_drivers_share_the_work(tmp_path: Path) -> None:
    """Would catch a job that both compute, one that neither does, and a driver that ends before
    the other's jobs are there."""
    drivers = together(tmp_path)
    said = [process.communicate(timeout=300)[0] for process in drivers]
    assert said == ["40 {'done'}\n"] * 2
    assert ran(tmp_path) == Counter(shared_cells().keys())


@pytest.mark.slow
def test_a_driver_finishes_what_a_dead_one_began(tmp_path: Path) -> None:
    """Would catch a lock that outlives its holder, for which the other waits without end."""
    dead, alive = together(tmp_path)
    while sum(ran(tmp_path).values()) < 8:
        time.sleep(0.05)
    dead.kill()
    assert alive.communicate(timeout=300)[0] == "40 {'done'}\n"
    counts = ran(tmp_path)
    assert set(counts) == set(shared_cells())
    # What the dead one's workers were at may be there twice: two, and the two they took next.
    assert sum(counts.values()) <= 40 + 4
    assert len(list((tmp_path / "artifacts").glob("*/*/done"))) == 40
