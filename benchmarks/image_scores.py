"""What synthetic images of a dataset are worth, beside held-out real ones, for benchmarks/recipes.

An independent judge, FD, coverage, flips and copies, and the accuracy score: networks trained on
synthetic images alone. All on the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.learning import dataset
from mgdm_ray.classifiers.features import look
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import DownstreamConfig, Training
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.load import Split, data_source, to_tensor
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.evaluation.fidelity.distances import frechet_distance, manifold_scores
from mgdm_ray.evaluation.fidelity.memorisation import is_independent, nearest, threshold_of
from mgdm_ray.pipeline.tasks.downstream import class_weights

JUDGE, SCORED = "resnet18", "googlenet"


@dataclass(frozen=True)
class Data:
    """A dataset, and what real images reach on it."""

    name: str
    info: DatasetInfo
    real: Split
    held: Split
    """Validation."""


def load(name: str, folder: Path, train_size: int) -> Data:
    config = dataset(name, folder)
    config = config.model_copy(update={"train_size": train_size})
    source = data_source(config, str(folder))
    return Data(name, dataset_info(config, folder), source.load("train"), source.load("val"))


@dataclass(frozen=True)
class Judged:
    """An independent judge of a dataset, and the numbers of held-out real images."""

    network: nn.Module
    train: NDArray[np.float64]
    held: NDArray[np.float64]
    flips: float
    threshold: float
    score: dict[str, float]
    """Of networks trained on real images."""


def fitted(
    name: str, images: Tensor, labels: Tensor, data: Data, given: Mapping[str, Any], seed: int
) -> tuple[nn.Module, NDArray[np.float64]]:
    """A network, and its probabilities of the held-out images."""
    info, parts = data.info, ("recipes", data.name, name, seed)
    network = build_network(name, info.num_classes, info.channels, images.shape[-1], *parts)
    config = Training(**{"learning_rate": 1e-3, "batch_size": 32, **given})
    weights = class_weights(config, labels.numpy(), info.num_classes)
    how = Recipe(config, info.num_classes, parts, class_weights=weights)
    found = fit(network, images, labels, how, {"val": to_pixels(data.held.images)})
    return network, found.probabilities["val"]


def accuracy_score(
    images: Tensor, labels: NDArray[np.int64], data: Data, seeds: int
) -> dict[str, float]:
    """Means over seeds of networks trained on ``images`` only, of held-out real images."""
    given = DownstreamConfig.model_validate({"steps": 100}).inputs(SCORED)
    training = Training.of({"downstream": given}, SCORED, len(images)).model_dump()
    training |= {"class_weighted": True}
    rows = []
    for seed in range(seeds):
        y = torch.from_numpy(labels)
        _, found = fitted(SCORED, images, y, data, training, seed)
        rows.append(score(found, data.held.labels, data.info.task))
    return {k: float(np.mean([r[k] for r in rows])) for k in ("balanced_accuracy", "auroc")}


def judged(data: Data, seeds: int, folder: Path) -> Judged:
    place = folder / "real" / f"{data.name}-{len(data.real)}-{seeds}.json"
    images, labels = to_pixels(data.real.images), torch.from_numpy(data.real.labels)
    given = {"steps": 150, "class_weighted": True, "augment": "judge"}
    weights = place.with_suffix(".safetensors")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not weights.exists():
        network, _ = fitted(JUDGE, images, labels, data, given, 0)
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, weights)
    size = images.shape[-1]
    network = build_network(JUDGE, data.info.num_classes, data.info.channels, size, 0)
    network.load_state_dict(load_file(weights))
    network.eval()
    known = look(network, to_tensor(data.real.images), data.info.num_classes, "cpu")
    held = look(network, to_tensor(data.held.images), data.info.num_classes, "cpu")
    if not place.exists():
        real = to_tensor(data.real.images).numpy()
        near = nearest(to_tensor(data.held.images).numpy(), real).distance
        found = {
            "score": accuracy_score(images, data.real.labels, data, seeds),
            "threshold": threshold_of(near),
            "leaked": float(1 - is_independent(near).mean()),
        }
        place.write_text(json.dumps(found))
    found = json.loads(place.read_text())
    flips = weighted_flips(held.predicted, data.held.labels, data.real.labels)
    return Judged(network, known.features, held.features, flips, found["threshold"], found["score"])


def weighted_flips(predicted: Any, labels: Any, wanted: Any) -> float:
    """Share of wrong answers, the classes mixed as in ``wanted``."""
    classes = np.unique(labels)
    share = np.array([(wanted == c).sum() for c in classes], dtype=float)
    wrong = [float((predicted[labels == c] != c).mean()) for c in classes]
    return float(share @ np.array(wrong) / share.sum())


def measured(
    images: Tensor, labels: NDArray[np.int64], data: Data, judge: Judged
) -> dict[str, float]:
    """FD and coverage of as many images as are held out, the mean of disjoint parts."""
    view = look(judge.network, images, data.info.num_classes, "cpu")
    count = len(judge.held)
    order = np.random.default_rng(0).permutation(len(images))
    parts = [order[i : i + count] for i in range(0, len(order) - count + 1, count)][:4]
    parts = parts or [order]
    fd = [frechet_distance(judge.train, view.features[p]) for p in parts]
    cover = [manifold_scores(judge.train, view.features[p])["coverage"] for p in parts]
    near = nearest(images.numpy(), to_tensor(data.real.images).numpy()).distance
    held = judge.held[: len(parts[0])]
    fd_real = frechet_distance(judge.train, held)
    return {
        "fd": float(np.mean(fd)),
        "fd_real": fd_real,
        "coverage": float(np.mean(cover)),
        "coverage_real": manifold_scores(judge.train, held)["coverage"],
        "flips": float((view.predicted != labels).mean()),
        "flips_real": judge.flips,
        "copies": float((near < judge.threshold).mean()),
    }
