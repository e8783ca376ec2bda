"""The faults of the published code on their way from the study file to the artefacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mgdm_ray.config import REFERENCE_FAULTS, StudyConfig
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import Context, run
from mgdm_ray.pipeline.tasks.images import read_rows
from mgdm_ray.storage.records import Record
from tests.conftest import ROOT, TINY

STAGES = ("fit_denoiser", "fit_guide", "generate", "encode", "decode")


def files(study: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """By kind (and arm): the images, latents or weights of every diffusion job, run without Ray."""
    config = StudyConfig.model_validate(study)
    plan = make_plan(config, {d.name: "x" for d in config.datasets})
    context = Context(str(folder), str(folder), {d.name: d for d in config.datasets})
    records: dict[str, Record] = {}
    found = {}
    for job in plan.jobs.values():
        if job.kind in STAGES:
            record = run(job, context)
            assert record.status == "done", record.reason
            records[job.key] = record
            found[" ".join(filter(None, (job.kind, job.arm)))] = payload(job, context)
    return found


def payload(job: Job, context: Context) -> np.ndarray:
    folder = context.store.folder(job.kind, job.key)
    if job.kind.startswith("fit"):
        weights = load_file(folder / "weights.safetensors")
        return np.concatenate([weights[name].ravel() for name in sorted(weights)])
    images, _labels = read_rows(folder)
    return images.numpy()


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    """Both arms of stage two, one of them guided, and no search. The labels are often dropped."""
    return {
        **{k: v for k, v in json.loads(json.dumps(TINY)).items() if k != "search"},
        "arms": ["roundtrip", "disturb"],
        "networks": ["squeezenet1_1"],
        "denoiser": {**TINY["denoiser"], "label_dropout": 0.5},
        "setting": {"uncertainty_scale": 0.3},
        # An untrained denoiser leaves [-1, 1] only where stage 1 was not clipped.
        "sampling": {**TINY["sampling"], "clip": False},
    }


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all: what a fault does not concern is computed once."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def sound(study: dict[str, Any], storage: Path) -> dict[str, np.ndarray]:
    return files(study, storage)


FIRST = {
    "guide_timesteps": "fit_guide",
    "alignment": "encode",
    "label_dropout": "fit_denoiser",
    "clip": "decode roundtrip",
    "uint8": "encode",
    "measurement": "decode disturb",
    "rank_seeds": "generate",
}


@pytest.mark.parametrize("fault", REFERENCE_FAULTS)
def test_every_fault_reaches_its_job(
    study: dict[str, Any], sound: dict[str, np.ndarray], storage: Path, fault: str
) -> None:
    """Would catch an option that is accepted, hashed into keys, and then ignored."""
    found = files({**study, "reference": [fault]}, storage)
    assert found.keys() == sound.keys()
    same = [name for name in found if np.array_equal(found[name], sound[name])]
    assert FIRST[fault] not in same
    assert "decode disturb" not in same, "the last of them all needs what is wrong"
    if fault == "rank_seeds":
        assert len(np.unique(found["generate"].round(3), axis=0)) < len(found["generate"]) / 2


def test_every_fault_is_explained() -> None:
    """Would catch an option of which docs/reference.md says nothing."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    _, table = text.split("| `reference` |", maxsplit=1)
    for fault in REFERENCE_FAULTS:
        assert f"\n| `{fault}` | " in table
