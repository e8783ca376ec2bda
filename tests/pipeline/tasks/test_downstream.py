"""Cells: equal treatment of the arms, other ratios, and predictions that suffice for any metric."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mgdm_ray.classifiers.fit import FitResult
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.config import NETWORK_RECIPES, StudyConfig, Training
from mgdm_ray.data.load import Split, data_source, to_tensor
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks import downstream
from mgdm_ray.pipeline.tasks.base import Context, base_record, run
from mgdm_ray.pipeline.tasks.downstream import added_images
from mgdm_ray.pipeline.tasks.images import save_shard
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store

STUDY: dict[str, Any] = {
    "name": "cells",
    "datasets": [
        {"name": "phantom-fundus", "phantom": {"train": 40, "val": 30, "test": 40, "imbalance": 3}}
    ],
    "image_size": 24,
    "networks": ["squeezenet1_1"],
    "arms": ["real", "augment", "duplicate", "generate", "roundtrip", "perturb", "disturb"],
    "seeds": 1,
    "denoiser": {"unet": {"channels": [16, 16], "attention": [False, False]}},
    "guide": {"unet": {"channels": [16, 16], "attention": [False, False]}},
    "synthetic": {"ratio": 0.5, "curve": {"ratios": [0.25, 2.0]}},
    "judge": None,
    "downstream": {"steps": 3, "batch_size": 8, "augment": "none"},
}


class Bench:
    """A plan whose synthetic images, noise of their own for each arm, lie in the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = StudyConfig.model_validate(STUDY)
        self.plan: Plan = make_plan(config, {d.name: "x" for d in config.datasets})
        self.datasets = {d.name: d for d in config.datasets}
        self.real: Split = data_source(config.datasets[0]).load("train")
        self.labels = synthetic_labels(self.real.labels, 5, 2.0, "proportional")
        for seed, job in enumerate(self.plan.jobs.values()):
            if job.kind in ("generate", "decode"):
                self.put(job, seed)

    @property
    def context(self) -> Context:
        return Context(str(self.root), str(self.root), self.datasets)

    def put(self, job: Job, seed: int) -> None:
        store = Store(self.root)
        noise = torch.rand(
            len(self.labels), 3, 24, 24, generator=torch.Generator().manual_seed(seed)
        )
        with store.writing(job.kind, job.key) as folder:
            save_shard(folder, range(len(noise)), noise * 2 - 1, self.labels)
            store.commit(job.kind, job.key, folder, asdict(base_record(job)), {})

    def jobs(self, kind: str) -> dict[str, Job]:
        """By arm; at another ratio by arm and ratio."""
        return {
            f"{job.arm} {job.detail}".strip(): job
            for job in self.plan.jobs.values()
            if job.kind == kind
        }

    def run(self, job: Job) -> Record:
        record = run(job, self.context)
        assert record.status == "done", record.reason
        return record

    def added(self, job: Job) -> tuple[torch.Tensor, np.ndarray]:
        added, _ = added_images(job, self.context, self.real, 5)
        assert added is not None
        return added[0], added[1].numpy()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("cells"))


def test_every_ratio_takes_the_first_of_the_same_images(bench: Bench) -> None:
    """Catches a curve whose points differ by another draw, or whose copies are of other classes.

    40 training images: 10, 20 and 80 added ones.
    """
    cells, others = bench.jobs("fit_downstream"), bench.jobs("fit_at_ratio")
    for arm in ("duplicate", "generate", "disturb"):
        few = bench.added(others[f"{arm} ratio 0.25"])
        usual = bench.added(cells[arm])
        many = bench.added(others[f"{arm} ratio 2"])
        assert [len(labels) for _, labels in (few, usual, many)] == [10, 20, 80]
        for images, labels in (few, usual, many):
            assert np.array_equal(labels, bench.labels[: len(labels)])
            if arm != "duplicate":  # copies are spread evenly over what is copied
                assert torch.equal(images, many[0][: len(labels)])


def test_shares_of_classes_stay_in_a_prefix(bench: Bench) -> None:
    """Catches a small ratio that lacks the rare classes."""
    want = np.bincount(bench.real.labels, minlength=5) / len(bench.real.labels)
    have = np.bincount(bench.labels[:20], minlength=5) / 20
    assert np.abs(have - want).max() <= 0.08


def test_arms_differ_in_their_images_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an arm with other initial weights, more steps, another schedule or batch order."""
    seen: dict[str, tuple[Any, ...]] = {}
    policies: dict[str, str] = {}
    arm = ""

    def look(network: torch.nn.Module, *rest: Any) -> FitResult:
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        _, _, recipe, evaluate, _, _ = rest
        policies[arm] = recipe.config.augment
        plain = recipe.config.model_copy(update={"augment": "none"})
        seen[arm] = (weights.double().sum().item(), replace(recipe, config=plain))
        classes = recipe.num_classes
        flat = {name: np.full((len(x), classes), 1 / classes) for name, x in evaluate.items()}
        return FitResult(flat, [])

    monkeypatch.setattr(downstream, "fit", look)
    for arm, job in bench.jobs("fit_downstream").items():  # noqa: B007 - read by look
        downstream.fit_downstream(job, bench.context, bench.root)
    assert set(seen) == set(STUDY["arms"])
    assert len({repr(row) for row in seen.values()}) == 1
    assert policies == {arm: "standard" if arm == "augment" else "none" for arm in STUDY["arms"]}
    rate = NETWORK_RECIPES["squeezenet1_1"].learning_rate
    given = Training(steps=3, batch_size=8, learning_rate=rate)
    assert seen["real"][1].config == given


def test_epochs_are_equal_steps_whatever_an_arm_adds(bench: Bench, tmp_path: Path) -> None:
    """Catches an epoch of the arm's images: an arm with more of them would train longer."""
    given = {"epochs": 1, "batch_size": 8, "augment": "standard", "checkpoint": "best_validation"}
    for arm, many in (("real", 40), ("duplicate", 60)):
        job = bench.jobs("fit_downstream")[arm]
        kept = {k: v for k, v in job.inputs["downstream"].items() if k != "steps"}
        inputs = {**job.inputs, "downstream": {**kept, **given}}
        folder = tmp_path / arm
        folder.mkdir()
        found = downstream.fit_downstream(replace(job, inputs=inputs), bench.context, folder)
        assert found["metrics"]["train_images"] == many
        assert len(json.loads((folder / "history.json").read_text())) == 40 / 8
        assert found["metrics"]["best_step"] in range(1, 6)


def test_stored_predictions_give_every_metric_again(bench: Bench) -> None:
    """Catches a metric that only a training could give: labels or digits that are not kept."""
    record = bench.run(bench.jobs("fit_downstream")["real"])
    folder = Store(bench.root).folder(record.kind, record.key)
    steps = json.loads((folder / "history.json").read_text())
    assert len(steps) == STUDY["downstream"]["steps"]
    again: dict[str, float] = {}
    for prefix, split in (("", "test"), ("val_", "val")):
        stored = load_file(folder / f"{split}_predictions.safetensors")
        found = score(stored["probabilities"], stored["labels"], "ordinal")
        assert ("groups" in stored) == (split == "test")
        again |= {prefix + name: value for name, value in found.items()}
    groups = load_file(folder / "test_predictions.safetensors")["groups"]
    assert groups.tolist() == list(range(len(groups))), "phantoms are strangers"
    assert again == {name: v for name, v in record.metrics.items() if name != "train_images"}
    for name in (
        "accuracy", "balanced_accuracy", "macro_f1", "auroc", "average_precision",
        "quadratic_kappa", "worst_class_recall", "ece", "brier",
    ):  # fmt: skip
        assert name in record.metrics


def test_a_cell_at_another_ratio_says_which(bench: Bench) -> None:
    """Catches a point of the curve that the report cannot place."""
    record = bench.run(bench.jobs("fit_at_ratio")["generate ratio 0.25"])
    assert record.metrics["ratio"] == 0.25
    assert record.metrics["train_images"] == len(to_tensor(bench.real.images)) + 10
    assert not record.is_cell
