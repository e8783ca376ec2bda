"""Images of studies that are unlike the usual one: with the faults of the published code, with
classes topped up, and with settings from the study file; their jobs run without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mgdm_ray.config import REFERENCE_FAULTS, InputError, StudyConfig
from mgdm_ray.data.load import fingerprint, to_uint8
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.tasks.base import Context, run
from mgdm_ray.pipeline.tasks.images import read_rows
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.labelled_folder import LabelledFolder
from mgdm_ray.results.export.made_images import MadeImages, make_images, mixed_labels
from tests.conftest import TINY
from tests.test_sample import pixels_of

STAGES = ("fit_denoiser", "fit_guide", "generate", "encode", "decode")
BASE: dict[str, Any] = {
    **{k: v for k, v in json.loads(json.dumps(TINY)).items() if k != "search"},
    "arms": ["generate", "roundtrip", "disturb", "perturb"],
    "networks": ["squeezenet1_1"],
    "denoiser": {**TINY["denoiser"], "label_dropout": 0.5},
    "setting": {"uncertainty_scale": 0.3, "measurement": "margin"},
}
STUDIES: dict[str, dict[str, Any]] = {
    "as published": {
        "reference": list(REFERENCE_FAULTS),
        "sampling": {**TINY["sampling"], "clip": False},
    },
    "topped up": {
        "synthetic": {"balance": "top_up", "per_class": 27},
        "sampling": {
            "num_inference_steps": 4,
            "batch_size": 5,
            "strength": 0.8,
            "inversion_iterations": 1,
            "classifier_scale": 1.5,
            "guidance_scale": 0,
            "solver": "second_order",
            "clip_stage_two": True,
        },
        "seed": 3,
    },
}


def finish(study: dict[str, Any], folder: Path) -> FinishedStudy:
    """Run the study's jobs that make images."""
    file, storage = folder / "study.yaml", folder / "runs"
    file.write_text(yaml.safe_dump(study))
    config = StudyConfig.model_validate(study)
    plan = make_plan(config, {d.name: fingerprint(d) for d in config.datasets})
    batch = config.sampling.batch_size
    context = Context(str(storage), "", {d.name: d for d in config.datasets}, sampling_batch=batch)
    for job in plan.jobs.values():
        if job.kind in STAGES:
            record = run(job, context)
            assert record.status == "done", record.reason
    return FinishedStudy.open(str(file), str(storage))


@pytest.fixture(scope="module", params=STUDIES)
def study(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FinishedStudy:
    return finish({**BASE, **STUDIES[request.param]}, tmp_path_factory.mktemp("study"))


def made(
    study: FinishedStudy, arm: Any, number: int, folder: Path, first: int = 0
) -> dict[int, np.ndarray]:
    dataset = study.dataset(None)
    labels = mixed_labels(study, dataset, 2, "study", first + number)
    chosen = study.choose(dataset.name, arm)
    wanted = MadeImages.of(study, dataset, arm, chosen, labels, first=first, seed=None)
    folder.mkdir()
    make_images(wanted, LabelledFolder(folder, wanted.info.classes, wanted.facts()), "cpu", None)
    return pixels_of(folder)


@pytest.mark.parametrize("arm", ["generate", "roundtrip", "disturb", "perturb"])
def test_the_study_s_own_images_come_out(study: FinishedStudy, tmp_path: Path, arm: str) -> None:
    """Would catch any option of sampling, any fault of the published code, or the labels of a
    study that do not reach the images: bit-equal to the artefact."""
    kind = "generate" if arm == "generate" else "decode"
    [job] = study.jobs(kind, "phantom-ultrasound", None if kind == "generate" else arm)
    images, _ = read_rows(study.store.folder(kind, job.key))
    found = made(study, arm, len(images), tmp_path / "made")
    own = to_uint8(images)[..., 0]
    np.testing.assert_array_equal(np.stack([found[i] for i in range(len(own))]), own)
    part = made(study, arm, 4, tmp_path / "part", first=5)
    for index, image in part.items():
        assert np.abs(image.astype(int) - own[index]).max() <= 1


def test_labels_do_not_depend_on_their_number(study: FinishedStudy) -> None:
    """Would catch an image whose label changes with how many are asked for."""
    dataset = study.dataset(None)
    for mix in ("study", "training", "balanced"):
        few, many = (mixed_labels(study, dataset, 2, mix, count) for count in (7, 500))
        np.testing.assert_array_equal(many[:7], few)
        assert set(many) == {0, 1}
        assert abs(np.mean(many) - 0.5) < 0.02


def test_what_a_study_lacks_is_named(study: FinishedStudy) -> None:
    """Would catch a study without search that waits for one, and changes that fit no arm."""
    name = study.dataset(None).name
    assert study.search(name, None) is None
    assert study.choose(name, "disturb").origin == "the study's"
    assert study.choose(name, "disturb").setting == study.config.setting
    assert study.choose(name, "roundtrip").setting is None
    changed = study.choose(name, "disturb", changes=["interval=[10, 500]", "label_scale=1"])
    assert changed.setting is not None
    assert changed.setting.interval == (10, 500)
    with pytest.raises(InputError, match=r"mutual_information.*guide\.dropout"):
        study.choose(name, "disturb", changes=["measurement=mutual_information"])
    with pytest.raises(InputError, match="first timestep is after the last"):
        study.choose(name, "disturb", changes=["interval=[500, 10]"])
    with pytest.raises(InputError, match="give it as key"):
        study.choose(name, "disturb", changes=["uncertainty_scale"])
