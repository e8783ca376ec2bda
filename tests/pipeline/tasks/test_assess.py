"""Judge and assessment on images whose answer is known: copies, new drawings, wrong labels."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from mgdm_ray.config import DatasetConfig, StudyConfig
from mgdm_ray.data.load import Split, data_source, to_tensor
from mgdm_ray.pipeline.job import Job
from mgdm_ray.pipeline.plan import Plan, make_plan
from mgdm_ray.pipeline.tasks.assess import _class_weights
from mgdm_ray.pipeline.tasks.base import Context, base_record, run
from mgdm_ray.pipeline.tasks.images import save_shard
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store

PHANTOM = {"train": 80, "val": 60, "test": 100, "difficulty": 0.1}
STUDY: dict[str, Any] = {
    "name": "judged",
    "datasets": [{"name": "phantom-ultrasound", "phantom": PHANTOM}],
    "image_size": 24,
    "networks": ["alexnet"],
    "arms": ["real", "duplicate", "generate"],
    "denoiser": {"unet": {"channels": [16, 16], "attention": [False, False]}},
    "guide": {"unet": {"channels": [16, 16], "attention": [False, False]}},
    "judge": {"network": "googlenet", "steps": 30, "batch_size": 16},
}


def fresh(seed: int = 1) -> tuple[torch.Tensor, np.ndarray]:
    """New drawings, as a perfect generator would make them."""
    config = DatasetConfig.model_validate(
        {"name": "phantom-ultrasound", "size": 24, "phantom": {**PHANTOM, "seed": seed}}
    )
    split = data_source(config).load("train")
    return to_tensor(split.images), split.labels


class Bench:
    """A plan whose stage-1 images are put into the store by hand, and a judge trained once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = StudyConfig.model_validate(STUDY)
        self.plan: Plan = make_plan(config, {d.name: "x" for d in config.datasets})
        self.real: Split = data_source(config.datasets[0]).load("train")
        self.datasets = {d.name: d for d in config.datasets}
        self.judge = self.run(self.job("fit_judge"), root)

    def job(self, kind: str, arm: str | None = None) -> Job:
        found = [j for j in self.plan.jobs.values() if (j.kind, j.arm) == (kind, arm)]
        [job] = [j for j in found if j.seed is None]  # of the first draw
        return job

    def run(self, job: Job, storage: Path) -> Record:
        record = run(job, Context(str(storage), str(storage), self.datasets))
        assert record.status == "done", record.reason
        return record

    def assess(
        self, storage: Path, images: torch.Tensor | None = None, labels: np.ndarray | None = None
    ) -> tuple[Record, dict[str, Any], Path]:
        """Of ``images`` as the arm generate, or of the arm duplicate."""
        store = Store(storage)
        judge = self.job("fit_judge")
        (storage / "artifacts").mkdir(parents=True)
        (storage / "artifacts" / "fit_judge").symlink_to(self.root / "artifacts" / "fit_judge")
        assert store.is_done("fit_judge", judge.key)
        if images is not None and labels is not None:
            made = self.job("generate")
            with store.writing("generate", made.key) as folder:
                save_shard(folder, range(len(images)), images, labels)
                store.commit("generate", made.key, folder, asdict(base_record(made)), {})
        job = self.job("assess", "duplicate" if images is None else "generate")
        record = self.run(job, storage)
        folder = store.folder("assess", job.key)
        return record, json.loads((folder / "assessment.json").read_text()), folder


@pytest.fixture(autouse=True)
def _no_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("judge"))


def test_the_judge_learns_and_keeps_its_view_of_all_splits(bench: Bench) -> None:
    """Would catch a judge that saw more than the training split, knows nothing, or whose files do
    not fit together."""
    metrics = bench.judge.metrics
    assert metrics["val_balanced_accuracy"] > metrics["val_chance_below"]
    assert 0 <= metrics["balanced_accuracy"] <= 1
    folder = bench.root / "artifacts" / "fit_judge" / bench.job("fit_judge").key
    tensors = load_file(folder / "features.safetensors")
    for split, count in (("train", 80), ("val", 60), ("test", 100)):
        assert tensors[f"{split}/features"].shape == (count, 1024)
        entropy = tensors[f"{split}/entropy"]
        assert ((entropy >= 0) & (entropy <= math.log(2) + 1e-6)).all()
        wrong = (tensors[f"{split}/predicted"] != tensors[f"{split}/labels"]).mean()
        if split == "test":
            assert wrong == pytest.approx(1 - metrics["accuracy"])
    assert json.loads((folder / "model.json").read_text())["network"] == "googlenet"
    assert len(json.loads((folder / "history.json").read_text())) == 30


def test_duplicates_are_copies_all_of_them(bench: Bench, tmp_path: Path) -> None:
    """The positive control: would catch a measure that misses even exact copies."""
    record, found, folder = bench.assess(tmp_path / "runs")
    assert record.arm == "duplicate"
    assert record.metrics["copy_rate"] == 1
    assert record.metrics["near_distance"] == 0
    assert record.metrics["copy_rate_real"] < 0.2
    assert record.metrics["near_distance_real"] > 0.3
    assert record.metrics["precision"] == 1
    assert record.metrics["fd"] < record.metrics["fd_real"]
    tensors = load_file(folder / "features.safetensors")
    pairs = [(row["image"], row["train"]) for row in found["copies"]["closest"]]
    labels = tensors["labels"]
    assert all(labels[image] == bench.real.labels[train] for image, train in pairs)


def test_the_artefact_is_what_the_report_reads(bench: Bench, tmp_path: Path) -> None:
    """Would catch a name, shape or type that differs from what is agreed, a number that is not
    finite, and pictures that cannot be opened."""
    images, labels = fresh()
    record, found, folder = bench.assess(tmp_path / "runs", images, labels)
    names = {
        "fd", "fd_real", "kid", "kid_real", "precision", "recall", "density", "coverage",
        "flip_rate", "flip_rate_real", "entropy_mean", "entropy_real", "copy_rate",
        "copy_rate_real", "near_distance", "near_distance_real", "images",
    }  # fmt: skip
    assert names <= set(record.metrics)
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert (found["arm"], found["overall"]) == ("generate", record.metrics)
    assert found["inception"] == "no weights at hand"
    assert found["real"]["fd_real"] == record.metrics["fd_real"]
    assert [row["label"] for row in found["classes"]] == [0, 1]
    assert sum(row["images"] for row in found["classes"]) == record.metrics["images"] == 80
    flips = sum(row["images"] * row["flip_rate"] for row in found["classes"]) / 80
    assert flips == pytest.approx(record.metrics["flip_rate"])
    bins = found["entropy_bins"]
    assert bins["edges"][0] == 0
    assert bins["edges"][-1] == pytest.approx(math.log(2))
    assert sum(bins["synthetic"]) == pytest.approx(1) == sum(bins["real"])
    tensors = load_file(folder / "features.safetensors")
    assert {name: (str(t.dtype), t.shape) for name, t in tensors.items()} == {
        "features": ("float16", (80, 1024)),
        "entropy": ("float32", (80,)),
        "labels": ("int64", (80,)),
        "predicted": ("int64", (80,)),
        "near_distance": ("float32", (80,)),
    }
    closest = found["copies"]["closest"]
    assert len(closest) == 20
    assert closest[0]["distance"] == pytest.approx(float(tensors["near_distance"].min()))
    for name in ("closest.png", "entropy.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 400


def test_new_drawings_pass_for_real_ones(bench: Bench, tmp_path: Path) -> None:
    """Would catch a yardstick that measures something else than what stands beside it: drawings of
    another seed are from the distribution that the held-out images are from."""
    images, labels = fresh()
    metrics = bench.assess(tmp_path / "runs", images, labels)[0].metrics
    assert metrics["copy_rate"] < 0.2
    assert metrics["fd"] == pytest.approx(metrics["fd_real"], rel=0.5)
    for name in ("flip_rate", "near_distance"):
        assert metrics[name] == pytest.approx(metrics[f"{name}_real"], abs=0.15)
    assert metrics["entropy_mean"] == pytest.approx(metrics["entropy_real"], abs=0.15)


def test_wrong_labels_and_noise_are_seen(bench: Bench, tmp_path: Path) -> None:
    """Would catch flips that are counted against something else than the label, and distances
    that call noise real."""
    images, labels = fresh()
    right = bench.assess(tmp_path / "right", images, labels)[0].metrics
    wrong = bench.assess(tmp_path / "wrong", images, 1 - labels)[0].metrics
    assert wrong["flip_rate"] == pytest.approx(1 - right["flip_rate"])
    assert wrong["fd"] == pytest.approx(right["fd"], rel=0.2)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bad = bench.assess(tmp_path / "noise", noise, labels)[0].metrics
    assert bad["fd"] > 3 * right["fd"]
    assert bad["kid"] > right["kid"]
    assert bad["precision"] < 0.5
    assert bad["copy_rate"] < 0.1


def test_a_class_with_few_images_has_no_distances(bench: Bench, tmp_path: Path) -> None:
    """Would catch a crash, or NaN, where a class has hardly any images."""
    images, labels = fresh()
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:3]])
    _, found, _ = bench.assess(tmp_path / "runs", images[few], labels[few])
    rare = found["classes"][1]
    assert rare["images"] == 3
    assert rare["fd"] is rare["coverage"] is None
    assert rare["flip_rate"] is not None
    assert found["classes"][0]["fd"] is not None
    only = bench.assess(tmp_path / "one", images[:1], labels[:1])
    assert "fd" not in only[0].metrics
    assert only[1]["classes"][1 - labels[0]]["flip_rate"] is None


def test_the_yardstick_mixes_classes_as_the_images_do() -> None:
    """Would catch label flips that are nothing but more images of the class the judge knows least:
    of held-out images [0, 0, 0, 1] an arm with as many of each class counts the last one three
    times as much; a class that no real image has is left out."""
    held = np.array([0, 0, 0, 1])
    weights = _class_weights(np.array([0, 1, 1, 0]), held)
    assert weights == pytest.approx(np.array([1 / 6, 1 / 6, 1 / 6, 1 / 2]))
    assert _class_weights(np.array([0, 2, 2]), held) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert _class_weights(np.array([2]), held) is None
