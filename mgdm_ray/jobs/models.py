"""The trained models: loading a denoiser or a guide from its artefact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from mgdm_ray.config import DenoiserConfig, GuideConfig
from mgdm_ray.diffusion.schedule import NoiseSchedule, make_schedule
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.jobs.base import WEIGHTS, Context, artefact


@dataclass(frozen=True)
class Denoiser:
    model: torch.nn.Module
    config: DenoiserConfig
    schedule: NoiseSchedule
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(context: Context, key: str) -> Denoiser:
    """The trained denoiser (EMA weights) of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_denoiser", key)
    facts = json.loads((folder / "model.json").read_text())
    config = DenoiserConfig.model_validate(facts["config"])
    channels, height, width = facts["shape"]
    model = build_denoiser(config.unet, channels, facts["num_classes"], 0)
    _with_weights(model, folder, context.device)
    schedule = make_schedule(config.schedule)
    return Denoiser(model, config, schedule, facts["num_classes"], (channels, height, width))


def load_guide(context: Context, key: str) -> torch.nn.Module:
    """The trained noisy classifier of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_guide", key)
    facts = json.loads((folder / "model.json").read_text())
    config = GuideConfig.model_validate(facts["config"])
    channels, classes = facts["shape"][0], facts["num_classes"]
    model = build_guide(config.unet, channels, classes, 0, dropout=config.dropout)
    return _with_weights(model, folder, context.device)


def _with_weights(model: torch.nn.Module, folder: Path, device: str) -> torch.nn.Module:
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.to(device).eval().requires_grad_(False)
