"""Job ``fit_judge``: an independent classifier, trained on real training images only.

It neither guides nor is evaluated. It opens the test split: as a part of the baseline of held-out
images, for the report and for ``limits``, by which sets of synthetic images are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights

from mgdm_ray.classifiers.features import View, look
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import JudgeConfig, Training
from mgdm_ray.data.load import to_tensor
from mgdm_ray.data.npz import SplitName
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.evaluation.chance import chance_limit
from mgdm_ray.evaluation.fidelity.memorisation import nearest
from mgdm_ray.pipeline.job import FEATURES
from mgdm_ray.pipeline.tasks.base import (
    WEIGHTS,
    Context,
    Outcome,
    artefact,
    info_of,
    open_split,
    save_json,
    step_progress,
)
from mgdm_ray.pipeline.tasks.downstream import class_weights

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job


@dataclass(frozen=True)
class JudgeView:
    """Features and answers of the judge for N images."""

    features: NDArray[np.float64]
    """`[N, D]`, rounded to float16, in memory as in files."""
    entropy: NDArray[np.float32]
    """`[N]` of the judge's answer, nats."""
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    near_distance: NDArray[np.float32]
    """`[N]` to the nearest training image, see fidelity.memorisation; empty for training images."""

    @staticmethod
    def of(view: View, labels: NDArray[np.int64], near: NDArray[np.float32]) -> JudgeView:
        features = view.features.astype(np.float16).astype(np.float64)
        return JudgeView(features, view.entropy, labels, view.predicted, near)

    @staticmethod
    def from_tensors(tensors: dict[str, Any]) -> JudgeView:
        return JudgeView(**{**tensors, "features": tensors["features"].astype(np.float64)})

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As they are stored."""
        return {**vars(self), "features": self.features.astype(np.float16)}

    def where(self, chosen: NDArray[Any]) -> JudgeView:
        """The images at these indices, or of this mask."""
        near = self.near_distance[chosen] if len(self.near_distance) else self.near_distance
        return JudgeView(
            self.features[chosen],
            self.entropy[chosen],
            self.labels[chosen],
            self.predicted[chosen],
            near,
        )

    def with_others(self, other: JudgeView) -> JudgeView:
        return JudgeView(
            *(np.concatenate([a, vars(other)[name]]) for name, a in vars(self).items())
        )


def fit_judge(job: Job, context: Context, folder: Path) -> Outcome:
    """Train on the real training split alone; keep weights and the view of all three splits.

    The loss is weighted by inverse class frequency: else every image of a rare class would count
    as a label flip. Images are augmented: without it the features tell training images from all
    others (phantom-fundus, 100 steps: FD of test images 105 instead of 4).
    """
    judge = JudgeConfig.model_validate(job.inputs["judge"])
    info, size = info_of(job, context), job.inputs["dataset"]["size"]
    train = open_split(job, context, "train")
    given = judge.model_dump(include={"steps", "batch_size", "learning_rate"})
    config = Training(**given, class_weighted=True, augment="judge")
    seed = ("judge", job.dataset, judge.network, job.inputs["seed"])
    network = build_network(judge.network, info.num_classes, info.channels, size, *seed)
    recipe = Recipe(
        config,
        info.num_classes,
        seed,
        class_weights=class_weights(config, train.labels, info.num_classes),
        device=context.device,
    )
    images, labels = to_pixels(train.images), torch.from_numpy(train.labels)
    progress = step_progress(context, config.steps)
    result = fit(network, images, labels, recipe, on_step=progress)
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    save_weights(weights, folder / WEIGHTS)
    facts = {"network": judge.network, "num_classes": info.num_classes, "channels": info.channels}
    save_json(folder / "model.json", {**facts, "size": size})
    save_json(folder / "history.json", result.history)
    return {"metrics": _look_at_splits(job, context, folder, network), "split": "test"}


def _look_at_splits(
    job: Job, context: Context, folder: Path, network: torch.nn.Module
) -> dict[str, float]:
    """Write ``features.safetensors``; the judge's scores on validation and test images."""
    info = info_of(job, context)
    tensors: dict[str, NDArray[Any]] = {}
    metrics: dict[str, float] = {}
    known = to_tensor(open_split(job, context, "train").images)
    names: tuple[SplitName, ...] = ("train", "val", "test")
    for name in names:
        split = open_split(job, context, name)
        images = to_tensor(split.images)
        view = look(network, images, info.num_classes, context.device)
        near = np.zeros(0, dtype=np.float32)
        if name == "val":
            metrics["val_chance_below"] = chance_limit(split.labels)
        if name != "train":
            near = nearest(images.numpy(), known.numpy()).distance
            scores = score(view.probabilities, split.labels, info.task)
            prefix = "" if name == "test" else f"{name}_"
            metrics |= {prefix + metric: value for metric, value in scores.items()}
        for field, values in JudgeView.of(view, split.labels, near).tensors().items():
            tensors[f"{name}/{field}"] = values
    save_file(tensors, folder / FEATURES)
    return metrics


def load_judge(context: Context, key: str) -> tuple[torch.nn.Module, dict[str, JudgeView]]:
    """The trained judge of the job ``key``, and its view of train, val and test."""
    folder = artefact(context, "fit_judge", key)
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    network = build_network(
        facts["network"], facts["num_classes"], facts["channels"], facts["size"], 0
    )
    network.load_state_dict(load_weights(folder / WEIGHTS))
    tensors = load_file(folder / FEATURES)
    seen: dict[str, dict[str, NDArray[Any]]] = {}
    for name, values in tensors.items():
        split, field = name.split("/")
        seen.setdefault(split, {})[field] = values
    return network.eval(), {split: JudgeView.from_tensors(row) for split, row in seen.items()}
