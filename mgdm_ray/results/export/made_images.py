"""Images that the models of a finished study make under any setting, into a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.config import GUIDED_ARMS, DatasetConfig, InputError, SampledArm
from mgdm_ray.data.info import DatasetInfo, dataset_info
from mgdm_ray.data.load import load_split
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.plan import Job
from mgdm_ray.provenance import git_commit, versions
from mgdm_ray.results.export.finished import Chosen, FinishedStudy
from mgdm_ray.results.export.labelled_folder import SYNTHETIC, LabelledFolder

if TYPE_CHECKING:
    from mgdm_ray.diffusion.pipeline import OnBatch, Sampler

IMAGES_AT_A_TIME = 512
"""Held in memory between two writes. As the study's shards, so that batches are cut alike."""
ABOUT = (
    "These images are synthetic: they show no patients, but were made by a model that was trained "
    "on images of patients, and may resemble some of these. They are for research, not for "
    "diagnosis."
)
ABOUT_PHANTOMS = (
    "These images are synthetic: they show no patients, and were made by a model that was trained "
    "on images drawn by code. They are for research, not for diagnosis."
)


@dataclass(frozen=True)
class MadeImages:
    """All that they depend on."""

    study: FinishedStudy
    dataset: DatasetConfig
    info: DatasetInfo
    arm: SampledArm
    chosen: Chosen
    denoiser: Job
    guide: Job | None
    seed: int
    first: int
    """Index of the first image."""
    labels: NDArray[np.int64]
    """By index: those before ``first`` too."""

    @staticmethod
    def of(
        study: FinishedStudy,
        dataset: DatasetConfig,
        arm: SampledArm,
        chosen: Chosen,
        labels: NDArray[np.int64],
        *,
        first: int,
        seed: int | None,
    ) -> MadeImages:
        """Raises InputError where the study has not finished, or never trains, what they need."""
        models = [study.model(kind, dataset.name) for kind in ("fit_denoiser", "fit_guide")]
        needed = arm in GUIDED_ARMS or chosen.sampling.classifier_scale != 0
        for model, name, wanted in zip(models, ("denoiser", "guide"), (True, needed), strict=True):
            if wanted and model is None:
                raise InputError(
                    f"study {study.config.name} trains no {name} for {dataset.name}, which arm "
                    f"{arm} with this setting needs: its arms are {', '.join(study.config.arms)}; "
                    f"add {arm} to them and run it"
                )
        denoiser, guide = models
        assert denoiser is not None
        seed = study.config.seed if seed is None else seed
        info = dataset_info(dataset, study.config.data_dir)
        guide = guide if needed else None
        return MadeImages(study, dataset, info, arm, chosen, denoiser, guide, seed, first, labels)

    @property
    def indices(self) -> range:
        return range(self.first, len(self.labels))

    def facts(self) -> dict[str, str]:
        """What stands in the metadata of every image."""
        return {
            **SYNTHETIC,
            "generator": f"mgdm-ray {versions()['mgdm-ray']}",
            "study": self.study.config.name,
            "dataset": self.dataset.name,
            "arm": self.arm,
            "setting": json.dumps(self.chosen.values(), sort_keys=True),
            "denoiser": self.denoiser.key,
            "guide": self.guide.key if self.guide else "",
            "licence": self.info.licence,
            "citation": self.info.citation,
        }

    def manifest(self) -> dict[str, Any]:
        judged, refused = self._judged()
        return {
            **self.facts(),
            "synthetic": True,
            "Comment": ABOUT_PHANTOMS if self.dataset.phantom else ABOUT,
            "versions": versions(),
            "git_commit": git_commit(),
            "size": self.dataset.size,
            "channels": self.info.channels,
            "setting": self.chosen.values(),
            "setting_is": self.chosen.origin,
            "sampling": self.chosen.sampling.model_dump(mode="json"),
            "reference": list(self.study.config.reference),
            "seed": self.seed,
            "first_index": self.first,
            "judged_images_of_the_study": judged,
            "refused_by_the_limits_of_the_study": refused,
        }

    def _judged(self) -> tuple[dict[str, float] | None, str]:
        """What the study's judge measured of its own images of this arm, and why its limits refuse
        them; None and "" where it has not, or where several networks have images of their own."""
        jobs = self.study.jobs("assess", self.dataset.name, self.arm)
        if len(jobs) != 1 or not self.study.store.is_done("assess", jobs[0].key):
            return None, ""
        record = self.study.record(jobs[0])
        return record.metrics, refusal(record, self.study.config.limits)


def mixed_labels(
    study: FinishedStudy, dataset: DatasetConfig, num_classes: int, mix: str, count: int
) -> NDArray[np.int64]:
    """Labels `[count]` by index, none of which depends on ``count``.

    ``study``: those of the study's own images; ``training``: in the shares of the training set;
    both are one evenly mixed sequence over and over. ``balanced``: one class after the other.
    """
    if mix == "balanced":
        return np.arange(count, dtype=np.int64) % num_classes
    real = load_split(dataset, "train", study.config.data_dir).labels
    if mix == "training":
        return np.resize(synthetic_labels(real, num_classes, 1.0, "proportional"), count)
    wanted = study.config.synthetic
    own = synthetic_labels(
        real, num_classes, wanted.largest, wanted.balance, per_class=wanted.per_class
    )
    return np.resize(own, count)


def make_images(
    wanted: MadeImages,
    folder: LabelledFolder,
    device: str,
    batch: int | None,
    on_stage: OnBatch | None = None,
) -> None:
    """Make them and write them, a part at a time. Raises NonFiniteSample."""
    import torch

    from mgdm_ray.data.load import to_uint8
    from mgdm_ray.diffusion.pipeline import seed_parts
    from mgdm_ray.diffusion.published_faults import rank_duplicates

    sampler = _sampler(wanted, device, batch, on_stage)
    labels, arm = torch.from_numpy(wanted.labels), wanted.arm
    noise: Sequence[int] = range(len(labels))
    if "rank_seeds" in wanted.study.config.reference:
        noise = rank_duplicates(labels)
    size = max(sampler.batch_size, IMAGES_AT_A_TIME // sampler.batch_size * sampler.batch_size)
    for start in range(wanted.first, len(labels), size):
        rows = range(start, min(start + size, len(labels)))
        part = slice(rows.start, rows.stop)
        images = sampler.make(
            arm, labels[part], rows, wanted.chosen.setting, noise_indices=noise[part]
        )
        seeds = [seed_parts(arm, wanted.seed, index) for index in rows]
        folder.add(to_uint8(images), labels[part].tolist(), rows, seeds)


def _sampler(
    wanted: MadeImages, device: str, batch: int | None, on_stage: OnBatch | None
) -> Sampler:
    from mgdm_ray.diffusion.inference import Execution
    from mgdm_ray.diffusion.pipeline import Sampler
    from mgdm_ray.pipeline.tasks.base import Context
    from mgdm_ray.pipeline.tasks.models import load_denoiser, load_guide

    context = Context(wanted.study.store.location, "", {}, device=device)
    config = wanted.chosen.sampling
    if batch is not None:
        config = config.model_copy(update={"batch_size": batch})
    return Sampler(
        load_denoiser(context, wanted.denoiser.key),
        load_guide(context, wanted.guide.key) if wanted.guide else None,
        config,
        Execution(device, compile="never"),
        seed=wanted.seed,
        faults=wanted.study.config.reference,
        on_batch=on_stage,
    )
