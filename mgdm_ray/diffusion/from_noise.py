"""An arm's images all the way from noise, of any labels: what the jobs do stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mgdm_ray.config import GUIDED_ARMS, GuidanceSetting, SampledArm, SamplingConfig
from mgdm_ray.diffusion.pipeline import Direction, Prediction, decode, encode, generate
from mgdm_ray.diffusion.published_faults import NO_FAULTS, Faults
from mgdm_ray.diffusion.schedule import NoiseSchedule

OnStage = Callable[[str, int, int], None]
"""Called after each batch with (stage, images done in it, images in all)."""


def sample_arm(
    arm: SampledArm,
    denoiser: nn.Module,
    guide: nn.Module | None,
    labels: Tensor,
    indices: Sequence[int],
    setting: GuidanceSetting | None,
    config: SamplingConfig,
    *,
    prediction: Prediction,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    seed: int,
    device: str = "cpu",
    faults: Faults = NO_FAULTS,
    noise_indices: Sequence[int] | None = None,
    on_stage: OnStage | None = None,
) -> Tensor:
    """Images float32 `[M, *shape]` of ``labels`` int64 `[M]`, as the study's jobs make them.

    Image ``indices[m]`` of ``seed`` is the study's image of that index, where its label is that of
    the study's, up to the round-off of other batches. ``config`` holds the scales of stage 1 and
    the grid; ``setting`` is stage 2's and matters for ``perturb`` and ``disturb`` only.
    ``noise_indices`` (default: ``indices``) are those that stage 1 draws its noise by: others only
    under the fault ``rank_seeds``. A decode leaves values a little outside [-1, 1].
    Raises ValueError where guidance is asked for without ``guide``, and NonFiniteSample.
    """
    common: dict[str, Any] = {
        "prediction": prediction,
        "schedule": schedule,
        "device": device,
        "faults": faults,
    }

    def told(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: on_stage(stage, done, total) if on_stage else None

    images = generate(
        denoiser,
        guide if config.classifier_scale else None,
        labels,
        indices if noise_indices is None else noise_indices,
        config,
        shape=shape,
        seed_parts=("generate", seed),
        on_batch=told("generate"),
        **common,
    )
    if arm == "generate":
        return images
    latents = encode(
        denoiser,
        images,
        labels,
        config,
        indices=indices,
        seed_parts=("encode", seed),
        on_batch=told("encode"),
        **common,
    )
    direction: Direction = "random" if arm == "perturb" else "gradient"
    return decode(
        denoiser,
        guide if arm in GUIDED_ARMS else None,
        latents,
        labels,
        indices,
        setting if arm in GUIDED_ARMS else None,
        config,
        direction=direction,
        seed_parts=("decode", seed),
        on_batch=told("decode"),
        **common,
    )


def seed_parts(arm: SampledArm, seed: int, index: int) -> dict[str, list[str | int]]:
    """What the noise of an image is drawn by: ``seeding.per_image_noise`` of these parts."""
    parts: dict[str, list[str | int]] = {"x_T": ["generate", seed, "x_T", index]}
    if arm == "perturb":
        parts["direction"] = ["decode", seed, "direction", index]
    return parts
