"""Job ``fit_downstream``: one cell of the study, evaluated on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.classifiers.pretrained import Source
from mgdm_ray.classifiers.weights import HUB, weights_file
from mgdm_ray.config import SyntheticConfig, Training
from mgdm_ray.data.groups import groups_of_test
from mgdm_ray.data.info import DatasetInfo
from mgdm_ray.data.load import Split, to_tensor
from mgdm_ray.data.mix import duplicate_indices, synthetic_labels, training_set
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.pipeline.tasks.base import (
    Context,
    JobError,
    Outcome,
    chosen_stage_one,
    info_of,
    open_split,
    save_json,
    step_progress,
    stored_record,
)
from mgdm_ray.pipeline.tasks.images import count_images, load_images

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job


def added_images(
    job: Job, context: Context, real: Split, num_classes: int
) -> tuple[tuple[torch.Tensor, torch.Tensor] | None, dict[str, Any]]:
    """Images and labels that the arm adds to the real training set, and their guidance setting."""
    if job.arm in ("real", "augment"):
        return None, {}
    if job.arm == "duplicate":
        wanted = SyntheticConfig.model_validate(job.inputs["synthetic"])
        labels = synthetic_labels(
            real.labels, num_classes, wanted.ratio, wanted.balance, per_class=wanted.per_class
        )
        labels = labels[: _used(job, real, len(labels))]
        seed = job.inputs.get("copies_seed", job.inputs["seed"])
        index = duplicate_indices(real.labels, labels, "duplicate", seed)
        return (to_tensor(real.images[index]), torch.from_numpy(labels)), {}
    if job.arm == "generate":
        key, kind = chosen_stage_one(job, context, "images"), "generate"
    else:
        key, kind = job.needs["images"], "decode"
    rows = range(_used(job, real, count_images(context, kind, key)))
    images, image_labels = load_images(context, kind, key, rows)
    setting = stored_record(context.store, kind, key).setting
    return (images, torch.from_numpy(image_labels)), setting


def _used(job: Job, real: Split, drawn: int) -> int:
    """How many of the drawn images are used: the first ones, in which classes are evenly mixed."""
    if "ratio" not in job.inputs:
        return drawn
    return min(drawn, max(1, round(float(job.inputs["ratio"]) * len(real))))


def fit_downstream(job: Job, context: Context, folder: Path) -> Outcome:
    """One cell: train on real plus the arm's images, then predict the test split."""
    assert job.network is not None
    info = info_of(job, context)
    real = open_split(job, context, "train")
    evaluated = {"val": open_split(job, context, "val"), "test": open_split(job, context, "test")}
    added, setting = added_images(job, context, real, info.num_classes)
    images, labels = training_set(real, added)
    config = Training.of(job.inputs, job.network, len(real))
    if job.arm == "augment":
        config = config.model_copy(update={"augment": "standard"})
    # The arm is not part of the seed: all arms of a cell start from the same weights.
    seed = ("cell", job.dataset, job.network, job.inputs["seed"])
    recipe = Recipe(
        config,
        info.num_classes,
        seed,
        class_weights=class_weights(config, real.labels, info.num_classes),
        device=context.device,
        micro_batches=2 if context.smaller else 1,
    )
    result = fit(
        network_for(job.network, config, info, images.shape[-1], context, *seed),
        images,
        labels,
        recipe,
        {name: to_pixels(split.images) for name, split in evaluated.items()},
        step_progress(context, config.steps),
        (to_pixels(evaluated["val"].images), evaluated["val"].labels),
    )
    save_json(folder / "history.json", result.history)
    metrics: dict[str, float] = {"train_images": float(len(labels))}
    if config.checkpoint == "best_validation":
        metrics["best_step"] = float(result.step)
    if context.smaller:
        metrics["micro_batches"] = 2.0  # batch norm saw halves of batches
    for name, split in evaluated.items():
        found = result.probabilities[name]
        tensors = {"probabilities": found, "labels": split.labels}
        if name == "test":
            dataset = context.datasets[job.dataset]
            tensors["groups"] = groups_of_test(dataset, context.data_dir).numbers
        save_file(tensors, folder / f"{name}_predictions.safetensors")
        scores = score(found, split.labels, info.task)
        metrics |= {f"val_{k}" if name == "val" else k: v for k, v in scores.items()}
    return {"metrics": metrics, "setting": setting, "split": "test"}


def fit_at_ratio(job: Job, context: Context, folder: Path) -> Outcome:
    """A cell with another number of added images: a point of a curve."""
    outcome = fit_downstream(job, context, folder)
    outcome["metrics"]["ratio"] = job.inputs["curve_ratio"]
    return outcome


def class_weights(config: Training, labels: np.ndarray, num_classes: int) -> torch.Tensor | None:
    """Inverse class frequencies of the real training set with mean 1 over its images, or None."""
    if not config.class_weighted:
        return None
    counts = np.bincount(labels, minlength=num_classes).clip(1)
    return torch.from_numpy(len(labels) / (num_classes * counts)).float()


def network_for(
    name: str,
    config: Training,
    info: DatasetInfo,
    size: int,
    context: Context,
    *seed_parts: str | int | float | bool,
) -> nn.Module:
    """``name`` for images of ``size`` pixels, with the weights of ``config.pretrained``."""
    source: Source | None = None
    if config.pretrained == HUB:
        source = "hub"
    elif config.pretrained is not None:
        if context.weights_folder is None:
            raise JobError("downstream.pretrained: no folder of weights is set in this context")
        source = weights_file(context.weights_folder, name)
    return build_network(
        name, info.num_classes, info.channels, size, *seed_parts, pretrained=source
    )
