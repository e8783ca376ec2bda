"""Images of unusual studies: published faults, topped-up classes, settings from the study file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mgdm_ray.config import REFERENCE_FAULTS, InputError
from mgdm_ray.data.load import to_uint8
from mgdm_ray.pipeline.tasks.base import ACCURACY_FILE
from mgdm_ray.pipeline.tasks.guide_levels import informed_levels
from mgdm_ray.pipeline.tasks.images import read_rows
from mgdm_ray.results.export.finished import FinishedStudy
from mgdm_ray.results.export.made_images import MadeImages, Mix, Request, mixed_labels
from tests.conftest import TINY
from tests.results.export.example import finish
from tests.test_sample import pixels_of

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


@pytest.fixture(scope="module", params=STUDIES)
def study(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> FinishedStudy:
    done = finish({**BASE, **STUDIES[request.param]}, tmp_path_factory.mktemp("study"))
    return FinishedStudy.open(str(done.file), str(done.storage))


def made(study: FinishedStudy, folder: Path, request: Request) -> dict[int, np.ndarray]:
    MadeImages(study, study.dataset(None), request).write(folder)
    return pixels_of(folder)


@pytest.mark.parametrize("arm", ["generate", "roundtrip", "disturb", "perturb"])
def test_the_study_s_own_images_come_out(study: FinishedStudy, tmp_path: Path, arm: Any) -> None:
    """Would catch any option of sampling, any fault of the published code, or the labels of a
    study that do not reach the images: bit-equal to the artefact."""
    kind = "generate" if arm == "generate" else "decode"
    [job] = study.jobs(kind, "phantom-ultrasound", None if kind == "generate" else arm)
    images, _ = read_rows(study.store.folder(kind, job.key))
    found = made(study, tmp_path / "made", Request(len(images), arm))
    own = to_uint8(images)[..., 0]
    np.testing.assert_array_equal(np.stack([found[i] for i in range(len(own))]), own)
    part = made(study, tmp_path / "part", Request(4, arm, first=5))
    for index, image in part.items():
        assert np.abs(image.astype(int) - own[index]).max() <= 1


def test_labels_do_not_depend_on_their_number(study: FinishedStudy) -> None:
    """Would catch an image whose label changes with how many are asked for."""
    dataset = study.dataset(None)
    for mix in get_args(Mix):
        few, many = (mixed_labels(study, dataset, mix, count) for count in (7, 500))
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
    guide = study.model("fit_guide", name)
    assert guide is not None
    curve = json.loads((study.store.folder("fit_guide", guide.key) / ACCURACY_FILE).read_text())
    auto = ["interval=auto"]
    if max(curve["balanced_accuracy"]) > curve["chance_below"]:
        found = study.choose(name, "disturb", changes=auto).setting
        assert found is not None
        assert found.interval == informed_levels(curve)
    else:
        with pytest.raises(InputError, match=r"--set interval: .*guide\.steps"):
            study.choose(name, "disturb", changes=auto)
    with pytest.raises(InputError, match=r"mutual_information.*guide\.dropout"):
        study.choose(name, "disturb", changes=["measurement=mutual_information"])
    with pytest.raises(InputError, match=r"--set setting\.interval|--set interval"):
        study.choose(name, "disturb", changes=["interval=[500, 10]"])
    with pytest.raises(InputError, match="uncertainty_scale"):
        study.choose(name, "disturb", changes=["uncertainty_scale"])
