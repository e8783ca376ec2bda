"""A finished tiny study to export from, computed in this process without Ray."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgdm_ray import sample
from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks.base import Context, Outcome, run
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store
from tests.conftest import TINY

ARMS = ("generate", "roundtrip", "perturb", "disturb")
STUDY: dict[str, Any] = {
    **TINY,
    "name": "quickstart",  # as docs/take-away.md calls it
    "arms": list(ARMS),
    "networks": ["squeezenet1_1"],
    "judge": {"network": "alexnet", "steps": 2, "batch_size": 8},
    "guide": {**TINY["guide"], "dropout": 0.2},
    "search": {"trials": 2, "networks": ["squeezenet1_1"], "images": 4},
}
DATASET = "phantom-ultrasound"
IMAGES = 20
"""Of each of its arms; a multiple of nothing that matters."""


CLASSIFIERS = ("fit_downstream", "fit_at_ratio")


@dataclass(frozen=True)
class Finished:
    file: Path
    storage: Path
    plan: Plan

    @property
    def store(self) -> Store:
        return Store(self.storage)

    def job(self, kind: str, arm: str | None = None) -> Job:
        [found] = [j for j in self.plan.jobs.values() if j.kind == kind and arm in (None, j.arm)]
        return found

    def folder(self, kind: str, arm: str | None = None) -> Path:
        return self.store.folder(kind, self.job(kind, arm).key)

    def record(self, kind: str, arm: str | None = None) -> Record:
        return Record.from_dict(self.store.manifest(kind, self.job(kind, arm).key)["record"])

    def sample(self, *options: str | Path) -> int:
        return sample.main(["quickstart", "--storage", str(self.storage), *map(str, options)])

    def write(self, path: Path, **changes: Any) -> Path:
        """A study file that differs from this study's."""
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        return path


def finish(study: dict[str, Any], folder: Path) -> Finished:
    """Run the study's jobs that make and judge images; its search chooses a fixed setting."""
    file, storage = folder / "study.yaml", folder / "runs"
    config = StudyConfig.model_validate(study)
    resolved = storage / "studies" / config.name / "study.resolved.yaml"
    resolved.parent.mkdir(parents=True)
    for path in (file, resolved):
        path.write_text(yaml.safe_dump(study, sort_keys=False))
    plan = make_plan(config, {d.name: data_source(d).fingerprint() for d in config.datasets})
    batch, datasets = config.sampling.batch_size, {d.name: d for d in config.datasets}
    context = Context(str(storage), "", datasets, sampling_batch=batch)

    def search(*_: object) -> Outcome:
        scales = {"guidance_scale": 1.5, "classifier_scale": 0.0}
        chosen = config.setting.model_copy(update={"uncertainty_scale": 0.2})
        setting = {**scales, **chosen.model_dump(mode="json")}
        return {"setting": setting, "metrics": {"best_score": 0.625}}

    for job in plan.jobs.values():
        if job.kind not in CLASSIFIERS:
            record = run(job, context, {"search": search})
            assert record.status == "done", record.reason
    return Finished(file, storage, plan)


@functools.cache
def finished_study() -> Finished:
    """Once for all tests of a process."""
    folder = tempfile.TemporaryDirectory(prefix="mgdm-export-")
    _folders.append(folder)  # deleted when the process ends
    return finish(STUDY, Path(folder.name))


_folders: list[tempfile.TemporaryDirectory[str]] = []
