"""One trial of a search: decode under a setting, train the proxy networks, score them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.config import GuidanceSetting, Training
from mgdm_ray.data.mix import training_set
from mgdm_ray.data.pixels import to_pixels
from mgdm_ray.diffusion.pipeline import forwards_per_image
from mgdm_ray.pipeline.job import search_seed
from mgdm_ray.pipeline.tasks.base import (
    Context,
    candidate_index,
    info_of,
    open_split,
    sampling_config,
)
from mgdm_ray.pipeline.tasks.downstream import class_weights, network_for
from mgdm_ray.pipeline.tasks.images import count_images
from mgdm_ray.pipeline.tasks.sampling import decoder

if TYPE_CHECKING:
    from mgdm_ray.pipeline.job import Job


class TrialScorer:
    """Scores guidance settings on validation data; loads data once, decodes once per setting."""

    def __init__(self, job: Job, context: Context) -> None:
        self.job, self.context = job, context
        self.info = info_of(job, context)
        self.train = open_split(job, context, "train")
        self.val = open_split(job, context, "val")

    def decode(self, setting: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        index = candidate_index(self.job.inputs["stage_one"], setting)
        key = self.job.needs[f"latents/{index}"]
        count = count_images(self.context, "encode", key)
        # Classes are evenly mixed: a beginning has the shares of the whole.
        count = min(count, self.job.inputs["images"] or count)
        decode = decoder(self.job, self.context, count, key, GuidanceSetting.of(setting))
        images, labels = decode(range(count))
        return images, torch.from_numpy(labels)

    def cost(self, setting: Mapping[str, Any]) -> float:
        """Forwards of denoiser and guide per image, stage 1 included."""
        scales = {name: setting[name] for name in ("guidance_scale", "classifier_scale")}
        config = sampling_config(self.job, **scales)
        return float(forwards_per_image(config, GuidanceSetting.of(setting)))

    def score(
        self, network: str, added: tuple[torch.Tensor, torch.Tensor], repeat: int = 0
    ) -> float:
        """Validation balanced accuracy of ``network`` trained on real plus added images.

        ``repeat`` is the seed of weights and batches, equal for every setting. The seeds of a job
        ``confirm`` are never those of a search, and do not depend on ``search.seed``.
        """
        images, labels = training_set(self.train, added)
        seed = (self.job.kind, search_seed(self.job), network, repeat)
        size = images.shape[-1]
        config = Training.of(self.job.inputs, network, len(self.train))
        model = network_for(network, config, self.info, size, self.context, *seed)
        classes = self.info.num_classes
        weights = class_weights(config, self.train.labels, classes)
        recipe = Recipe(config, classes, seed, class_weights=weights, device=self.context.device)
        result = fit(model, images, labels, recipe, {"val": to_pixels(self.val.images)})
        metrics = score(result.probabilities["val"], self.val.labels, self.info.task)
        return metrics["balanced_accuracy"]
