"""One tiny finished study, computed once per test run; tests that change it take a copy.

It has a search, a judge and every arm but those that need more real images.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks.base import Context, run
from mgdm_ray.storage.records import Record, read_records
from mgdm_ray.storage.store import Store
from tests.conftest import ROOT, TINY

NAME = "finished"
DATASET = "phantom-ultrasound"
MADE = ("generate", "roundtrip", "perturb", "disturb")
"""Arms whose images are made."""
IMAGES = 20
"""Of each of them."""
STUDY: dict[str, Any] = {
    **TINY,
    "name": NAME,
    "arms": ["real", "duplicate", *MADE],
    "judge": {"network": "resnet18", "steps": 2, "batch_size": 8},
    "guide": {**TINY["guide"], "dropout": 0.2},
}
JOBS = 8 + 2 * 6 + 1 + 5
"""Models, search, latents and samples; cells; the judge and the arms it assesses."""
TRIALS = 3


def plan_of(study: dict[str, Any]) -> Plan:
    """The plan of a study whose datasets are here."""
    config = StudyConfig.model_validate(study)
    return make_plan(config, {d.name: data_source(d).fingerprint() for d in config.datasets})


@functools.cache
def plan() -> Plan:
    return plan_of(STUDY)


@dataclass(frozen=True)
class Finished:
    """The study's file and storage, and what the command that ran it printed."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / "study.yaml"

    @property
    def storage(self) -> Path:
        return self.root / "runs"

    @property
    def study_folder(self) -> Path:
        return self.storage / "studies" / NAME

    @property
    def store(self) -> Store:
        return Store(self.storage)

    @property
    def plan(self) -> Plan:
        return plan()

    @property
    def records(self) -> list[Record]:
        return read_records(self.study_folder / "records.jsonl")

    @property
    def first(self) -> dict[str, Any]:
        """`returncode`, `stdout` and `stderr` of the run."""
        loaded: dict[str, Any] = json.loads((self.root / "first.json").read_text())
        return loaded

    def job(self, kind: str, arm: str | None = None) -> Job:
        [found] = [j for j in self.plan.jobs.values() if j.kind == kind and arm in (None, j.arm)]
        return found

    def folder(self, kind: str, arm: str | None = None) -> Path:
        return self.store.folder(kind, self.job(kind, arm).key)

    def record(self, kind: str, arm: str | None = None) -> Record:
        return Record.from_dict(self.store.manifest(kind, self.job(kind, arm).key)["record"])

    def write(self, path: Path, **changes: Any) -> Path:
        """A study file that differs from this study's by `changes`."""
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return path

    def copy(self, root: Path, without: tuple[str, ...] = ()) -> Finished:
        """The same below `root`: artefacts as hard links, the rest as files.

        A test that damages an artefact replaces its file; it never writes into it.
        """

        def link_artefact(source: str, target: str) -> None:
            (os.link if "/artifacts/" in source else shutil.copy2)(source, target)

        skip = shutil.ignore_patterns("lock", "claims", *without)
        copy = functools.partial(shutil.copytree, copy_function=link_artefact, ignore=skip)
        copy(self.root, root, dirs_exist_ok=True)
        return Finished(root)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of a test run at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share.

    MGDM_TEST_SHARED names one that outlives the run: CI's two runs compute the study once.
    """
    if shared := os.environ.get("MGDM_TEST_SHARED"):
        Path(shared).mkdir(parents=True, exist_ok=True)
        return Path(shared)
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def finish(factory: pytest.TempPathFactory) -> Finished:
    """The study, computed by whoever asks first: what needs no search here, the rest on Ray.

    Each job would cost Ray a process that imports torch. tests/test_study_runs.py computes
    the same jobs on Ray and wants the same numbers.
    """
    root = common_folder(factory) / "finished"
    root.mkdir(exist_ok=True)
    made = Finished(root)
    with locked(root / "lock"):
        if not (root / "first.json").exists():
            made.write(made.file)
            compute_here(StudyConfig.model_validate(STUDY), plan(), made.storage)
            done = run_study(made.file, made.storage)
            said = {n: getattr(done, n) for n in ("returncode", "stdout", "stderr")}
            (root / "first.json").write_text(json.dumps(said))
    assert made.first["returncode"] == 0, made.first["stdout"] + made.first["stderr"]
    return made


def compute_here(
    config: StudyConfig, plan: Plan, storage: Path, data_dir: str | None = None
) -> None:
    """All jobs that need no search, in this process."""
    context = Context(
        str(storage),
        str(storage / "studies" / config.name),
        {d.name: d for d in config.datasets},
        data_dir,
        sampling_batch=config.sampling.batch_size,
    )
    later: set[str] = set()
    for key, job in plan.jobs.items():
        if job.kind == "search" or later.intersection(job.needs.values()):
            later.add(key)
            continue
        record = run(job, context)
        assert record.status == "done", f"{job.label}: {record.reason}"


def run_study(
    study: Path, storage: Path, *options: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "mgdm_ray.study", str(study), "--storage", str(storage)]
    return subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
