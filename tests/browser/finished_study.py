"""A finished study whose artefacts were written by hand: what a user has, without the training."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import base_record
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store
from tests.conftest import ROOT
from tests.study_example import SETTING, loss_history

ARMS = ("real", "augment", "duplicate", "generate", "roundtrip", "perturb", "disturb")
STUDY: dict[str, Any] = {
    "name": "browsed",
    "datasets": [
        {"name": "phantom-ultrasound", "phantom": {"train": 40, "val": 20, "test": 20}},
        {"name": "phantom-fundus", "phantom": {"train": 40, "val": 20, "test": 20}},
    ],
    "image_size": 16,
    "networks": ["squeezenet1_1", "alexnet"],
    "arms": list(ARMS),
    "seeds": 1,
    "search": {"trials": 4, "networks": ["squeezenet1_1"]},
    "downstream": {"augment": "none"},
}
LEVEL = {"phantom-ultrasound": 0.75, "phantom-fundus": 0.5}
GAIN = dict(zip(ARMS, (0.0, 0.011, 0.004, 0.023, 0.019, 0.016, 0.047), strict=True))


@dataclass(frozen=True)
class Finished:
    """A study after ``--report-only``."""

    folder: Path
    said: str
    """What the command printed."""
    cells: list[Record]

    def said_after(self, word: str) -> str:
        """The rest of the line that begins with ``word``."""
        [line] = [line for line in self.said.splitlines() if line.strip().startswith(word)]
        return line.partition(word)[2].strip()

    def mean(self, arm: str, dataset: str | None = None) -> float:
        """Balanced accuracy of an arm over its cells, of one dataset or of all."""
        of_arm = [r for r in self.cells if r.arm == arm and dataset in (None, r.dataset)]
        return float(np.mean([r.metrics["balanced_accuracy"] for r in of_arm]))


def finish_study(root: Path) -> Finished:
    """Fill a storage with an artefact per planned job, and let the command line close the study."""
    path, storage = root / "browsed.yaml", root / "runs"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    config = StudyConfig.model_validate(STUDY)
    plan = make_plan(config, {d.name: data_source(d).fingerprint() for d in config.datasets})
    store, rng = Store(storage), np.random.default_rng(5)
    records = [_put(store, job, rng) for job in plan.jobs.values()]
    command = [sys.executable, "-m", "mgdm_ray.study", str(path), "--storage", str(storage)]
    done = subprocess.run(
        [*command, "--report-only"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [record for record in records if record.is_cell]
    return Finished(storage / "studies" / "browsed", done.stdout, cells)


def _put(store: Store, job: Job, rng: np.random.Generator) -> Record:
    """Write a job's artefact with the files that report and MLflow read."""
    changes: dict[str, Any] = {"seconds": 9.0}
    files: dict[str, Any] = {}
    if job.kind == "fit_downstream":
        value = LEVEL[job.dataset] + GAIN[str(job.arm)] + rng.normal(0, 0.02)
        scores = {"balanced_accuracy": value, "accuracy": value + 0.02, "auroc": value + 0.08}
        changes |= {"split": "test", "metrics": scores}
        files["history.json"] = loss_history(20, 1.2, rng)
    elif job.kind == "search":
        rows = [_trial(number) for number in range(4)]
        best = {"best_score": rows[-1]["score"], "trials": 4.0}
        changes |= {"split": "val", "metrics": best, "setting": rows[-1]["setting"]}
        files["trials.json"] = rows
    elif job.kind in ("fit_denoiser", "fit_guide"):
        changes |= {"metrics": {"loss": 0.1}}
        files["history.json"] = loss_history(50, 1.0, rng)
    if job.kind in ("generate", "decode", "fit_denoiser"):
        name = "real.png" if job.kind == "fit_denoiser" else "grid.png"
        files[name] = rng.integers(0, 255, (64, 160), dtype=np.uint8)
    record = replace(base_record(job), **changes)
    with store.writing(job.kind, job.key) as folder:
        for name, content in files.items():
            if isinstance(content, np.ndarray):
                Image.fromarray(content).save(folder / name)
            else:
                (folder / name).write_text(json.dumps(content))
        provenance = {"inputs": job.inputs, "needs": job.needs}
        store.commit(job.kind, job.key, folder, asdict(record), provenance)
    return record


def _trial(number: int) -> dict[str, Any]:
    score = 0.6 + 0.01 * number
    return {
        "number": number,
        "setting": {**SETTING, "uncertainty_scale": 0.05 * (number + 1)},
        "seconds": 6.0,
        "status": "done",
        "reason": "",
        "score": score,
        "per_network": {"squeezenet1_1": score},
    }
