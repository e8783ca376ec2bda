"""The two stages over any number of images: generate, and encode -> decode.

Every image has an index of its own; its noise is a function of ``seed_parts`` and that index, so
that neither batch size nor order nor the number of workers changes it (beyond float round-off of
the networks' batched arithmetic). Models are set to eval mode and their parameters frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mgdm_ray.config import GuidanceSetting, SamplingConfig
from mgdm_ray.diffusion.ddim import invert, sample, sample_second_order
from mgdm_ray.diffusion.guidance import (
    classifier_guided,
    denoiser_eps,
    measurement_guided,
)
from mgdm_ray.diffusion.reference import NO_FAULTS, Faults, invert_misaligned, truncated
from mgdm_ray.diffusion.schedule import NoiseSchedule, Pair, timestep_pairs
from mgdm_ray.diffusion.unet import null_label
from mgdm_ray.seeding import per_image_noise

Prediction = Literal["epsilon", "v"]
Direction = Literal["gradient", "random"]
SeedParts = Sequence[str | int | float | bool]
OnBatch = Callable[[int, int], None]
"""Called after each batch with (images done, images in all)."""


class NonFiniteSample(RuntimeError):
    """Sampling left the finite numbers: the guidance is too strong or the model is broken."""


def generate(
    denoiser: nn.Module,
    guide: nn.Module | None,
    labels: Tensor,
    indices: Sequence[int],
    config: SamplingConfig,
    *,
    prediction: Prediction,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    seed_parts: SeedParts,
    device: str | torch.device = "cpu",
    on_batch: OnBatch | None = None,
    faults: Faults = NO_FAULTS,
) -> Tensor:
    """Stage 1: images float32 `[M, *shape]` on the CPU, of ``labels`` int64 `[M]`.

    ``shape`` is (C, H, W). Guidance is ``config.guidance_scale`` (classifier-free) and
    ``config.classifier_scale`` (needs ``guide``, else ValueError). With ``config.clip`` the
    images are in [-1, 1].
    """
    if config.classifier_scale != 0 and guide is None:
        raise ValueError("classifier_scale is not 0, but there is no guide")
    if guide is not None:
        freeze(guide, device)
    freeze(denoiser, device)
    pairs = timestep_pairs(schedule.num_train_timesteps, config.num_inference_steps)
    solve = {"ddim": sample, "second_order": sample_second_order}[config.solver]

    def one_batch(rows: slice) -> Tensor:
        y = labels[rows].to(device)
        eps_fn = denoiser_eps(
            faults.denoiser(denoiser, indices[rows], *seed_parts, "generate"),
            y,
            schedule,
            prediction,
            null_label=null_label(denoiser),
            guidance_scale=config.guidance_scale,
        )
        if guide is not None:
            eps_fn = classifier_guided(eps_fn, guide, y, config.classifier_scale, schedule)
        x_T = per_image_noise(shape, indices[rows], *seed_parts, "x_T").to(device)
        return solve(eps_fn, x_T, pairs, schedule, clip=config.clip)

    return _in_batches(one_batch, labels, indices, config.batch_size, shape, on_batch)


def encode(
    denoiser: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: SamplingConfig,
    *,
    prediction: Prediction,
    schedule: NoiseSchedule,
    seed_parts: SeedParts = ("encode",),
    device: str | torch.device = "cpu",
    on_batch: OnBatch | None = None,
    faults: Faults = NO_FAULTS,
) -> Tensor:
    """Stage 2a: the latents x_T float32 `[M, C, H, W]` of ``images`` `[M, C, H, W]`.

    With ``config.strength`` below 1 they are x_t of the highest level up to there.

    Conditional on the label, without any guidance, clipped only with ``config.clip_stage_two``,
    deterministic: latents do not depend on what they will be decoded with. ``seed_parts`` matter
    only for the fault ``label_dropout``.
    """
    if "alignment" in faults.names and config.inversion_iterations:
        raise ValueError("the fault 'alignment' has no inversion_iterations")
    freeze(denoiser, device)
    pairs = _depth(config, schedule)
    above = _level_above(pairs, config, schedule)

    def one_batch(rows: slice) -> Tensor:
        y = labels[rows].to(device)
        model = faults.denoiser(denoiser, range(len(images))[rows], *seed_parts, "encode")
        eps_fn = denoiser_eps(model, y, schedule, prediction, null_label=null_label(denoiser))
        x_0 = truncated(images[rows]) if "uint8" in faults.names else images[rows]
        x_0 = x_0.to(device)
        clip = config.clip_stage_two
        if "alignment" in faults.names:
            return invert_misaligned(eps_fn, x_0, pairs, schedule, above, clip)
        return invert(eps_fn, x_0, pairs, schedule, config.inversion_iterations, clip)

    shape = tuple(images.shape[1:])
    return _in_batches(one_batch, labels, range(len(images)), config.batch_size, shape, on_batch)


def decode(
    denoiser: nn.Module,
    guide: nn.Module | None,
    latents: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    setting: GuidanceSetting | None,
    config: SamplingConfig,
    *,
    prediction: Prediction,
    schedule: NoiseSchedule,
    direction: Direction = "gradient",
    seed_parts: SeedParts = ("decode",),
    device: str | torch.device = "cpu",
    on_batch: OnBatch | None = None,
    faults: Faults = NO_FAULTS,
) -> Tensor:
    """Stage 2b: images float32 `[M, C, H, W]` of ``latents``, under measurement guidance.

    ``direction="random"`` is its control: the same push at every step along one random direction
    per image.

    ``setting`` None or with ``uncertainty_scale`` 0 is the mirror image of ``encode`` and needs no
    guide; otherwise ValueError without one. ``indices`` and ``seed_parts`` matter only for
    ``direction="random"`` and the fault ``label_dropout``. Without ``config.clip_stage_two``
    nothing is clipped: values a little outside [-1, 1] are normal.
    """
    guided = setting is not None and setting.uncertainty_scale != 0
    if guided and guide is None:
        raise ValueError("uncertainty_scale is not 0, but there is no guide")
    if guide is not None:
        freeze(guide, device)
    freeze(denoiser, device)
    pairs = _depth(config, schedule)
    clip = config.clip_stage_two or "clip" in faults.names
    if setting is not None:
        setting = faults.setting(setting, null_label(denoiser))
    shape = tuple(latents.shape[1:])

    def one_batch(rows: slice) -> Tensor:
        y = labels[rows].to(device)
        model = faults.denoiser(denoiser, indices[rows], *seed_parts, "decode")
        eps_fn = denoiser_eps(model, y, schedule, prediction, null_label=null_label(denoiser))
        if setting is not None and guide is not None:
            # One direction for all steps, as a gradient has: new ones would cancel each other.
            noise = (
                per_image_noise(shape, indices[rows], *seed_parts, "direction").to(device)
                if direction == "random"
                else None
            )
            eps_fn = measurement_guided(eps_fn, guide, y, setting, schedule, noise)
        return sample(eps_fn, latents[rows].to(device), pairs, schedule, clip)

    return _in_batches(one_batch, labels, indices, config.batch_size, shape, on_batch)


def _depth(config: SamplingConfig, schedule: NoiseSchedule) -> list[Pair]:
    """The part of the grid that encode climbs and decode descends: up to ``strength`` T."""
    highest = config.strength * (schedule.num_train_timesteps - 1)
    pairs = timestep_pairs(schedule.num_train_timesteps, config.num_inference_steps)
    return [(t, t_prev) for t, t_prev in pairs if t <= highest]


def _level_above(
    pairs: Sequence[Pair], config: SamplingConfig, schedule: NoiseSchedule
) -> int | None:
    """The timestep of the whole grid next above ``pairs``; None where they are the whole grid."""
    grid = timestep_pairs(schedule.num_train_timesteps, config.num_inference_steps)
    return grid[-len(pairs) - 1][0] if len(pairs) < len(grid) else None


def freeze(model: nn.Module, device: str | torch.device) -> None:
    """Eval mode, no gradients for parameters (the backward pass is cheaper), on ``device``."""
    model.to(device).eval().requires_grad_(False)


def _in_batches(
    one_batch: Callable[[slice], Tensor],
    labels: Tensor,
    indices: Sequence[int],
    batch_size: int,
    shape: tuple[int, ...],
    on_batch: OnBatch | None,
) -> Tensor:
    """The batches' results joined on the CPU; ValueError on unequal lengths."""
    total = len(labels)
    if len(indices) != total:
        raise ValueError(f"{total} labels, but {len(indices)} images or indices")
    parts: list[Tensor] = []
    for rows in _slices(total, batch_size):
        part = one_batch(rows).cpu()
        bad = ~torch.isfinite(part).flatten(1).all(dim=1)
        if bool(bad.any()):
            index = indices[rows.start + int(bad.nonzero()[0])]
            raise NonFiniteSample(f"{int(bad.sum())} images are not finite, the first is {index}")
        parts.append(part)
        if on_batch is not None:
            on_batch(rows.stop, total)
    return torch.cat(parts) if parts else torch.empty(0, *shape)


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
