"""A tiny study that really ran, for what is taken away from it: once for all tests of a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray import sample, study
from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import fingerprint
from mgdm_ray.pipeline.plan import Job, Plan, make_plan
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


@dataclass(frozen=True)
class Finished:
    file: Path
    storage: Path

    @property
    def store(self) -> Store:
        return Store(self.storage)

    @property
    def plan(self) -> Plan:
        config = StudyConfig.model_validate(STUDY)
        return make_plan(config, {d.name: fingerprint(d) for d in config.datasets})

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


_made: list[Finished] = []


def finished_study(factory: pytest.TempPathFactory) -> Finished:
    if not _made:
        folder = factory.mktemp("take-away")
        found = Finished(folder / "study.yaml", folder / "runs")
        found.write(found.file)
        assert study.main([str(found.file), "--storage", str(found.storage)]) == 0
        _made.append(found)
    return _made[0]
