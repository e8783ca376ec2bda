"""The judge: what it learns from, what it keeps, and how it reads that again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mgdm_ray.classifiers.features import View, look
from mgdm_ray.classifiers.fit import FitResult, Recipe, fit
from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import data_source, to_tensor
from mgdm_ray.data.pixels import as_float
from mgdm_ray.pipeline.plan import Job, make_plan
from mgdm_ray.pipeline.tasks import judge as module
from mgdm_ray.pipeline.tasks.base import Context, run
from mgdm_ray.pipeline.tasks.judge import JudgeView, load_judge
from tests.conftest import TINY

STUDY: dict[str, Any] = {
    **TINY,
    "image_size": 24,
    "arms": ["real", "duplicate"],
    "search": None,
    "judge": {"network": "mobilenet_v2", "steps": 3, "batch_size": 8, "learning_rate": 0.002},
}
CONFIG = StudyConfig.model_validate(STUDY)
DATASET = CONFIG.datasets[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Context, dict[str, Any]]:
    """The judge's job, its context, and what ``fit`` was given."""
    root = tmp_path_factory.mktemp("judge")
    context = Context(str(root), str(root), {DATASET.name: DATASET})
    plan = make_plan(CONFIG, {DATASET.name: "x"})
    [job] = [job for job in plan.jobs.values() if job.kind == "fit_judge"]
    given: dict[str, Any] = {}

    def spy(
        network: torch.nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        recipe: Recipe,
        **more: Any,
    ) -> FitResult:
        given.update(images=images, labels=labels, recipe=recipe)
        return fit(network, images, labels, recipe, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fit", spy)
        record = run(job, context)
    assert record.status == "done", record.reason
    given["record"] = record
    return job, context, given


def test_it_learns_from_real_training_images_alone(
    trained: tuple[Job, Context, dict[str, Any]],
) -> None:
    """Catches a judge that has seen what it will compare, or learnt without the study's recipe."""
    _, _, given = trained
    train = data_source(DATASET).load("train")
    assert torch.equal(as_float(given["images"]), to_tensor(train.images))
    assert given["labels"].tolist() == train.labels.tolist()
    recipe: Recipe = given["recipe"]
    assert recipe.config.augment == "judge"
    config = recipe.config
    assert (config.steps, config.batch_size, config.learning_rate) == (3, 8, 0.002)
    assert recipe.class_weights is not None
    counts = np.bincount(train.labels)
    mean = (recipe.class_weights.numpy() * counts).sum() / counts.sum()
    assert mean == pytest.approx(1)


def test_the_stored_judge_says_what_it_said(trained: tuple[Job, Context, dict[str, Any]]) -> None:
    """Catches weights, splits or labels that are mixed up between saving and loading."""
    job, context, given = trained
    network, seen = load_judge(context, job.key)
    assert not network.training
    assert set(seen) == {"train", "val", "test"}
    for name, view in seen.items():
        split = data_source(DATASET).load(name)  # type: ignore[arg-type]
        again = look(network, to_tensor(split.images), 2, "cpu")
        assert view.labels.tolist() == split.labels.tolist()
        np.testing.assert_array_equal(view.predicted, again.predicted)
        np.testing.assert_allclose(view.entropy, again.entropy, atol=1e-5)
        np.testing.assert_allclose(view.features, again.features, rtol=2e-3, atol=1e-3)
        assert len(view.near_distance) == (0 if name == "train" else len(split.labels))
    metrics, test = given["record"].metrics, seen["test"]
    assert metrics["accuracy"] == pytest.approx((test.predicted == test.labels).mean())
    assert {"val_balanced_accuracy", "val_chance_below", "balanced_accuracy"} <= set(metrics)
    assert given["record"].split == "test"


def test_files_of_the_artefact(trained: tuple[Job, Context, dict[str, Any]]) -> None:
    """Catches a file that is missing or has another type: assess and the report read them."""
    job, context, _ = trained
    folder = context.store.folder("fit_judge", job.key)
    wanted = {"weights.safetensors", "model.json", "history.json", "features.safetensors"}
    assert wanted <= {path.name for path in folder.iterdir()}
    tensors = load_file(folder / "features.safetensors")
    assert tensors["val/features"].dtype == np.float16
    assert tensors["val/near_distance"].dtype == np.float32
    assert tensors["test/labels"].dtype == np.int64


def view(count: int, start: int = 0, near: bool = True) -> JudgeView:
    values = np.arange(start, start + count, dtype=np.float32)
    answers = np.stack([values + 1, np.ones(count)], axis=1)
    seen = View(values[:, None] + 1e-4, answers / answers.sum(axis=1, keepdims=True))
    return JudgeView.of(
        seen, values.astype(np.int64), values if near else np.zeros(0, dtype=np.float32)
    )


def test_views_are_cut_and_joined_row_by_row() -> None:
    """Catches a field that keeps its order while the others move, and features that are rounded
    in a file but not in memory."""
    whole = view(5)
    joined = view(2).with_others(view(3, start=2))
    chosen = whole.where(np.array([False, True, False, True, True]))
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(vars(joined)[name], value)
        np.testing.assert_array_equal(vars(chosen)[name], value[[1, 3, 4]])
    assert len(view(3, near=False).where(np.array([0, 2])).near_distance) == 0
    again = JudgeView.from_tensors(whole.tensors())
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(vars(again)[name], value)
        assert vars(again)[name].dtype == value.dtype
