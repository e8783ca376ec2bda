"""Loading a denoiser or a guide from its artefact, or from files like it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mgdm_ray.config import DenoiserConfig, GuideConfig, InputError
from mgdm_ray.diffusion.pipeline import TrainedDenoiser
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.pipeline.tasks.base import WEIGHTS, Context, artefact

LARGEST = 4096
"""Largest plausible number of channels, classes and pixels along a side."""
MOST_LEVELS = 8

Config = TypeVar("Config", DenoiserConfig, GuideConfig)


@dataclass(frozen=True)
class TrainedGuide:
    model: torch.nn.Module
    config: GuideConfig
    num_classes: int
    shape: tuple[int, int, int]


def load_denoiser(context: Context, key: str) -> TrainedDenoiser:
    """The trained denoiser (EMA weights) of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_denoiser", key)
    facts = json.loads((folder / "model.json").read_text())
    return denoiser_from(facts, folder / WEIGHTS, context.device)


def load_guide(context: Context, key: str) -> torch.nn.Module:
    """The trained noisy classifier of the job ``key``, in eval mode without gradients."""
    folder = artefact(context, "fit_guide", key)
    facts = json.loads((folder / "model.json").read_text())
    return guide_from(facts, folder / WEIGHTS, context.device).model


def denoiser_from(facts: Mapping[str, Any], weights: Path, device: str = "cpu") -> TrainedDenoiser:
    """The denoiser that ``facts`` (``config``, ``shape``, ``num_classes``) describe.

    InputError where they are wrong, or ``weights`` (safetensors) do not fit.
    """
    config, shape, classes = _described(DenoiserConfig, facts, weights)
    told = config.augment > 0
    model = _with_weights(
        lambda: build_denoiser(config.unet, shape[0], classes, 0, augment=told), weights, device
    )
    return TrainedDenoiser(model, config, make_schedule(config.schedule), classes, shape)


def guide_from(facts: Mapping[str, Any], weights: Path, device: str = "cpu") -> TrainedGuide:
    """As ``denoiser_from``, of a guide."""
    config, shape, classes = _described(GuideConfig, facts, weights)

    def build() -> torch.nn.Module:
        # The masks are drawn on the CPU and not saved.
        dropout = 0.0 if torch.get_default_device().type == "meta" else config.dropout
        return build_guide(config.unet, shape[0], classes, 0, dropout=dropout)

    return TrainedGuide(_with_weights(build, weights, device), config, classes, shape)


def _described(
    kind: type[Config], facts: Mapping[str, Any], weights: Path
) -> tuple[Config, tuple[int, int, int], int]:
    try:
        config = kind.model_validate(facts["config"])
        channels, height, width = (int(side) for side in facts["shape"])
        classes = int(facts["num_classes"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(
            f"{weights.parent}: the description of {weights.name} is invalid "
            f"({type(error).__name__}: {error}); copy the whole folder again"
        ) from error
    largest = max(*config.unet.channels, height, width, classes)
    smallest = min(height, width, classes)
    if channels not in (1, 3) or smallest < 1 or largest > LARGEST:
        raise InputError(
            f"{weights.parent}: implausible model dimensions: {classes} classes, images of "
            f"{channels} x {height} x {width}, {list(config.unet.channels)} channels; allowed: 1 "
            f"or 3 image channels and at most {LARGEST} of the others"
        )
    if len(config.unet.channels) > MOST_LEVELS or config.unet.num_res_blocks > MOST_LEVELS:
        raise InputError(
            f"{weights.parent}: at most {MOST_LEVELS} levels of {MOST_LEVELS} blocks are allowed"
        )
    return config, (channels, height, width), classes


def _with_weights(build: Callable[[], torch.nn.Module], weights: Path, device: str) -> Any:
    """The network with ``weights``, in eval mode and frozen; shapes are compared before
    allocation."""
    with torch.device("meta"):
        wanted = {name: list(value.shape) for name, value in build().state_dict().items()}
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{weights}: missing or not a safetensors file ({error}); copy or export it again"
        ) from error
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"{weights}: tensor {name!r} has shape {found.get(name)}, the described network "
                f"has {wanted.get(name)}: weights and description are of different models; copy or "
                "export both again"
            )
    model = build()
    model.load_state_dict(load_file(weights))
    return model.to(device).eval().requires_grad_(False)
