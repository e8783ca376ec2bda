"""Job ``assess``: fidelity, label flips and copies of an arm's images, class by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mgdm_ray.classifiers.features import inception_features, look
from mgdm_ray.data.load import Split, to_tensor
from mgdm_ray.evaluation.fidelity.distances import (
    NEIGHBOURS,
    frechet_distance,
    kernel_distance,
    manifold_scores,
)
from mgdm_ray.evaluation.fidelity.memorisation import Nearest, is_independent, nearest, threshold_of
from mgdm_ray.pipeline.job import FEATURES
from mgdm_ray.pipeline.tasks.base import Context, Outcome, info_of, open_split, save_json
from mgdm_ray.pipeline.tasks.downstream import added_images
from mgdm_ray.pipeline.tasks.images import draw_closest, draw_entropy
from mgdm_ray.pipeline.tasks.judge import JudgeView, load_judge
from mgdm_ray.seeding import derive_seed

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job

BINS = 20
CLOSEST = 20
"""Pairs that are listed and drawn."""
INCEPTION_IMAGES = 1000
"""Largest number of images for Inception: 299 px take long on a CPU."""

Numbers = dict[str, float | None]


def assess(job: Job, context: Context, folder: Path) -> Outcome:
    """Compare the arm's images with real ones; write numbers, features and two pictures.

    Numbers with suffix ``_real`` are the baseline on held-out real images (validation and test).
    """
    info = info_of(job, context)
    real = open_split(job, context, "train")
    added, setting = added_images(job, context, real, info.num_classes)
    assert added is not None  # plan.assess leaves out arms that add nothing
    images, labels = added[0].clamp(-1, 1), added[1].numpy()
    network, seen = load_judge(context, job.needs["judge"])
    context.progress(1, 3, "judge")
    near = nearest(images.numpy(), to_tensor(real.images).numpy())
    view = look(network, images, info.num_classes, context.device)
    arm = JudgeView.of(view, labels, near.distance)
    context.progress(2, 3, "distances")

    compared = Compared.of(arm, seen)
    held, threshold = compared.held, compared.threshold
    rng = np.random.default_rng(derive_seed("assess", job.inputs["seed"]))
    overall = _describe(compared, rng)
    overall["leaked_real"] = float(1 - is_independent(held.near_distance).mean())
    overall |= _inception(job, context, images, real, rng)
    classes = []
    for label in range(info.num_classes):
        row = _describe(compared.of_class(label), rng)
        classes.append({"label": label, **row, "images": int((arm.labels == label).sum())})
    closest = _closest(near, labels)
    draw_closest(folder / "closest.png", images, real, closest, threshold)
    draw_entropy(folder / "entropy.png", images, arm.labels, arm.entropy, info.num_classes)
    save_file(arm.tensors(), folder / FEATURES)
    metrics = {name: value for name, value in overall.items() if value is not None}
    found = {
        "arm": job.arm,
        "classes": classes,
        "overall": overall,
        "real": {name: value for name, value in overall.items() if name.endswith("_real")},
        "entropy_bins": _entropy_bins(arm, held, info.num_classes),
        "copies": {"threshold": threshold, "closest": closest},
    }
    if "fd_inception" not in overall:
        found["inception"] = "no weights at hand"
    save_json(folder / "assessment.json", found)
    return {"metrics": metrics, "setting": setting, "split": "test"}


@dataclass(frozen=True)
class Compared:
    """An arm's images, and the real ones that they are compared with."""

    arm: JudgeView
    train: JudgeView
    held: JudgeView
    """Held-out: validation and test."""
    from_test: NDArray[np.bool_]
    """`[H]`: the test images among ``held``."""
    threshold: float
    """Below this distance an image counts as a copy; set on the validation split."""

    @staticmethod
    def of(arm: JudgeView, seen: Mapping[str, JudgeView]) -> Compared:
        held = seen["val"].with_others(seen["test"])
        from_test = np.arange(len(held.labels)) >= len(seen["val"].labels)
        return Compared(
            arm, seen["train"], held, from_test, threshold_of(seen["val"].near_distance)
        )

    def of_class(self, label: int) -> Compared:
        arm, train, held = (
            view.where(view.labels == label) for view in (self.arm, self.train, self.held)
        )
        return Compared(arm, train, held, self.from_test[self.held.labels == label], self.threshold)


def _describe(compared: Compared, rng: np.random.Generator) -> Numbers:
    """The numbers of one set of images, or of one class of it; None where there are too few.

    ``fd``, ``kid`` and PRDC are against ``train``. ``flip_rate``: how often the judge's class
    differs from the label; ``entropy_mean``: its mean predictive entropy in nats; both ``_real``
    numbers have the classes mixed as in ``arm``. ``copy_rate``: the share nearer than
    ``threshold``, which the validation split has set; ``_real`` on test images (``from_test`` [H]).
    Nearness of real images leaves out those that are in the training set.
    """
    arm, held, threshold = compared.arm, compared.held, compared.threshold
    numbers: Numbers = {"images": float(len(arm.labels)), **_against_train(compared, rng)}
    weights = _class_weights(arm.labels, held.labels)
    kept = is_independent(held.near_distance)
    for name, mine, real in (
        ("flip_rate", arm.predicted != arm.labels, held.predicted != held.labels),
        ("entropy_mean", arm.entropy, held.entropy),
    ):
        numbers[name] = _mean(mine)
        real_name = name.replace("_mean", "") + "_real"
        numbers[real_name] = None if weights is None else float(weights @ real)
    numbers["copy_rate"] = _mean(arm.near_distance < threshold)
    numbers["copy_rate_real"] = _mean(held.near_distance[kept & compared.from_test] < threshold)
    numbers["near_distance"] = _median(arm.near_distance)
    numbers["near_distance_real"] = _median(held.near_distance[kept])
    return numbers


def _against_train(compared: Compared, rng: np.random.Generator) -> Numbers:
    """FD, KID and PRDC of ``arm`` and of ``held`` against ``train``, of ``compared`` images each.

    All depend on the number of images (FD is biased upward for few): the larger set is subsampled.
    None where there are too few.
    """
    arm, held, train = compared.arm, compared.held, compared.train
    most = len(arm.labels)
    if len(held.labels) > NEIGHBOURS:
        most = min(most, len(held.labels))
    numbers: Numbers = {"compared": float(most)}
    for suffix, one in (("", arm), ("_real", held)):
        enough = min(len(one.labels), most, len(train.labels)) > NEIGHBOURS
        if not enough:
            names = ("fd", "kid", "precision", "recall", "density", "coverage")
            numbers |= dict.fromkeys([name + suffix for name in names])
            continue
        part = one.features[rng.choice(len(one.labels), most, replace=False)]
        numbers["fd" + suffix] = frechet_distance(train.features, part)
        numbers["kid" + suffix] = kernel_distance(train.features, part, rng)
        scores = manifold_scores(train.features, part)
        numbers |= {name + suffix: value for name, value in scores.items()}
    return numbers


def _class_weights(
    wanted: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Weights `[len(labels)]` with sum 1 that mix the classes of ``labels`` as in ``wanted``.

    Classes that ``labels`` lacks are left out; None where they share no class.
    """
    classes = int(max(wanted.max(initial=0), labels.max(initial=0))) + 1
    have = np.bincount(labels, minlength=classes)
    share = np.bincount(wanted, minlength=classes) * (have > 0)
    if not share.any():
        return None
    weights: NDArray[np.float64] = (share / share.sum() / np.maximum(have, 1))[labels]
    return weights


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: NDArray[Any]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _entropy_bins(arm: JudgeView, held: JudgeView, num_classes: int) -> dict[str, list[float]]:
    """Shares of synthetic and held-out images (classes mixed alike) between the edges."""
    edges = np.linspace(0, math.log(num_classes), BINS + 1)

    def shares(entropy: NDArray[Any], weights: NDArray[np.float64] | None) -> list[float]:
        counts, _ = np.histogram(entropy.clip(0, edges[-1]), edges, weights=weights)
        return [float(count) for count in counts / max(counts.sum(), 1e-12)]

    weights = _class_weights(arm.labels, held.labels)
    return {
        "edges": [float(edge) for edge in edges],
        "synthetic": shares(arm.entropy, None),
        "real": shares(held.entropy, weights),
    }


def _closest(near: Nearest, labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [
        {
            "image": int(i),
            "train": int(near.train[i]),
            "mirrored": bool(near.mirrored[i]),
            "distance": float(near.distance[i]),
            "label": int(labels[i]),
        }
        for i in np.argsort(near.distance, kind="stable")[:CLOSEST]
    ]


def _inception(
    job: Job, context: Context, images: torch.Tensor, real: Split, rng: np.random.Generator
) -> Mapping[str, float]:
    """``fd_inception`` and ``fd_inception_real`` of equally many images; empty without weights."""
    held = torch.cat([to_tensor(open_split(job, context, s).images) for s in ("val", "test")])
    count = min(len(images), len(held), INCEPTION_IMAGES)
    train = to_tensor(real.images)
    if count < 2:
        return {}

    def some(x: torch.Tensor, most: int) -> torch.Tensor:
        return x[torch.from_numpy(rng.choice(len(x), min(most, len(x)), replace=False))]

    sets = [some(train, INCEPTION_IMAGES), some(images, count), some(held, count)]
    features = inception_features(sets, context.device)
    if features is None:
        return {}
    return {
        "fd_inception": frechet_distance(features[0], features[1]),
        "fd_inception_real": frechet_distance(features[0], features[2]),
    }
