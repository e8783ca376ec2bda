"""Jobs ``generate``, ``encode`` and ``decode``: the two stages of guided sampling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mgdm_ray.config import GuidanceSetting, SamplingConfig, SyntheticConfig
from mgdm_ray.data.mix import synthetic_labels
from mgdm_ray.diffusion.reference import Faults, rank_duplicates
from mgdm_ray.diffusion.two_stage import Direction
from mgdm_ray.diffusion.two_stage import decode as decode_images
from mgdm_ray.diffusion.two_stage import encode as encode_images
from mgdm_ray.diffusion.two_stage import generate as generate_images
from mgdm_ray.jobs.base import Context, Outcome, info_of, open_split, stored_record
from mgdm_ray.jobs.choice import best_setting, chosen_stage_one
from mgdm_ray.jobs.images import draw_grid, load_images, save_images
from mgdm_ray.jobs.models import Denoiser, load_denoiser, load_guide

if TYPE_CHECKING:
    from mgdm_ray.plan import Job


def _sampling(job: Job, context: Context, denoiser: Denoiser, what: str) -> dict[str, Any]:
    """The arguments that all three stages share."""
    fields = SamplingConfig.model_fields
    faults = frozenset(job.inputs.get("reference", ()))
    given = {name: value for name, value in job.inputs.items() if name in fields}
    return {
        "config": SamplingConfig(batch_size=context.sampling_batch, **given),
        "prediction": denoiser.config.prediction,
        "schedule": denoiser.schedule,
        "device": context.device,
        "on_batch": lambda done, total: context.progress(done, total, what),
        "faults": Faults(faults, denoiser.config.label_dropout),
    }


def generate(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1: labelled images from noise."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    guide = load_guide(context, job.needs["guide"]) if "guide" in job.needs else None
    wanted = SyntheticConfig.model_validate(job.inputs["synthetic"])
    train_labels = open_split(job, context, "train").labels
    labels = synthetic_labels(train_labels, denoiser.num_classes, wanted.ratio, wanted.balance)
    duplicated = "rank_seeds" in job.inputs.get("reference", ())
    images = generate_images(
        denoiser.model,
        guide,
        torch.from_numpy(labels),
        rank_duplicates(torch.from_numpy(labels)) if duplicated else range(len(labels)),
        shape=denoiser.shape,
        seed_parts=("generate", job.inputs["seed"]),
        **_sampling(job, context, denoiser, "images"),
    )
    save_images(folder, images, labels)
    draw_grid(folder / "grid.png", images, labels, denoiser.num_classes)
    scales = {k: job.inputs[k] for k in ("guidance_scale", "classifier_scale")}
    return {"setting": scales, "metrics": {"images": float(len(labels))}}


def encode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 1 images to latents x_T, unguided."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    images, labels = load_images(context, "generate", job.needs["images"])
    latents = encode_images(
        denoiser.model,
        images,
        torch.from_numpy(labels),
        seed_parts=("encode", job.inputs.get("seed", 0)),
        **_sampling(job, context, denoiser, "latents"),
    )
    save_images(folder, latents, labels)
    source = stored_record(context.store, "generate", job.needs["images"])
    spread = float(latents.std())
    return {
        "setting": source.setting,
        "metrics": {"latent_std": spread, "images": float(len(labels))},
    }


def decode(job: Job, context: Context, folder: Path) -> Outcome:
    """Stage 2: latents back to images, under measurement guidance or one of its controls."""
    best = best_setting(job, context)
    latents_key = chosen_stage_one(job, context, "latents", best)
    setting = None
    if job.arm != "roundtrip":
        chosen = best or job.inputs["setting"]
        fields = GuidanceSetting.model_fields
        setting = GuidanceSetting.model_validate({k: v for k, v in chosen.items() if k in fields})
    images, labels = decode_latents(
        job,
        context,
        latents_key,
        setting,
        direction="random" if job.arm == "perturb" else "gradient",
    )
    save_images(folder, images, labels)
    stage_one = stored_record(context.store, "encode", latents_key).setting
    draw_grid(folder / "grid.png", images, labels, info_of(job, context).num_classes)
    source, _ = load_images(context, "generate", _source(context, latents_key))
    change = float((images - source).pow(2).mean().sqrt())
    return {
        "setting": {**stage_one, **(setting.model_dump(mode="json") if setting else {})},
        "metrics": {"rms_change": change, "images": float(len(labels))},
    }


def _source(context: Context, latents_key: str) -> str:
    """The generate job whose images were encoded into these latents."""
    return str(context.store.manifest("encode", latents_key)["needs"]["images"])


def decode_latents(
    job: Job,
    context: Context,
    latents_key: str,
    setting: GuidanceSetting | None,
    *,
    direction: Direction = "gradient",
    count: int | None = None,
) -> tuple[torch.Tensor, np.ndarray]:
    """(images, labels) of the first ``count`` latents, decoded under ``setting``."""
    denoiser = load_denoiser(context, job.needs["denoiser"])
    guide = load_guide(context, job.needs["guide"]) if setting else None
    latents, labels = load_images(context, "encode", latents_key)
    labels = labels[:count]  # classes are evenly mixed: a beginning has the shares of the whole
    images = decode_images(
        denoiser.model,
        guide,
        latents[:count],
        torch.from_numpy(labels),
        range(len(labels)),
        setting,
        direction=direction,
        seed_parts=("decode", job.inputs["seed"]),
        **_sampling(job, context, denoiser, "images"),
    )
    return images, labels
