"""The two stages over any number of images: generate, and encode -> decode.

Every image has an index of its own; its noise is a function of ``seed_parts`` and that index, so
that neither batch size nor order nor the number of workers changes it (beyond float round-off of
the networks' batched arithmetic). Models are set to eval mode and their parameters frozen;
one that is not ``Prepared`` yet runs in ``config.precision``, uncompiled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mgdm_ray.config import GuidanceSetting, SamplingConfig
from mgdm_ray.diffusion.guidance import classifier_guided, denoiser_eps, measurement_guided
from mgdm_ray.diffusion.inference import Execution, Prepared, activation_bytes, fitting_batch_size
from mgdm_ray.diffusion.published_faults import NO_FAULTS, Faults, invert_misaligned, truncated
from mgdm_ray.diffusion.samplers import invert, sample, sample_second_order
from mgdm_ray.diffusion.schedule import NoiseSchedule, Pair, timestep_pairs
from mgdm_ray.diffusion.unet import null_label
from mgdm_ray.seeding import per_image_noise

log = logging.getLogger(__name__)

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
    device: str = "cpu",
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
    denoiser, guide = (
        _prepared(denoiser, config, device),
        guide and _prepared(guide, config, device, backward=True),
    )
    size = batch_size_for(config, shape, denoiser, guide, Execution(device=device))
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

    return _in_batches(one_batch, labels, indices, size, shape, on_batch)


def encode(
    denoiser: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: SamplingConfig,
    *,
    prediction: Prediction,
    schedule: NoiseSchedule,
    indices: Sequence[int] | None = None,
    seed_parts: SeedParts = ("encode",),
    device: str = "cpu",
    on_batch: OnBatch | None = None,
    faults: Faults = NO_FAULTS,
) -> Tensor:
    """Stage 2a: the latents x_T float32 `[M, C, H, W]` of ``images`` `[M, C, H, W]`.

    With ``config.strength`` below 1 they are x_t of the highest level up to there.

    Conditional on the label, without any guidance, clipped only with ``config.clip_stage_two``,
    deterministic: latents do not depend on what they will be decoded with. ``indices`` (default: 0,
    1, ...) and ``seed_parts`` matter only for the fault ``label_dropout``.
    """
    if "alignment" in faults.names and config.inversion_iterations:
        raise ValueError("the fault 'alignment' has no inversion_iterations")
    indices = range(len(images)) if indices is None else indices
    denoiser, shape = _prepared(denoiser, config, device), tuple(images.shape[1:])
    size = batch_size_for(config, shape, denoiser, None, Execution(device=device))
    pairs = _depth(config, schedule.num_train_timesteps)
    above = _level_above(pairs, config, schedule)

    def one_batch(rows: slice) -> Tensor:
        y = labels[rows].to(device)
        model = faults.denoiser(denoiser, indices[rows], *seed_parts, "encode")
        eps_fn = denoiser_eps(model, y, schedule, prediction, null_label=null_label(denoiser))
        x_0 = truncated(images[rows]) if "uint8" in faults.names else images[rows]
        x_0 = x_0.to(device)
        clip = config.clip_stage_two
        if "alignment" in faults.names:
            return invert_misaligned(eps_fn, x_0, pairs, schedule, above, clip)
        return invert(eps_fn, x_0, pairs, schedule, config.inversion_iterations, clip)

    return _in_batches(one_batch, labels, indices, size, shape, on_batch)


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
    device: str = "cpu",
    on_batch: OnBatch | None = None,
    faults: Faults = NO_FAULTS,
    strengths: Tensor | None = None,
) -> Tensor:
    """Stage 2b: images float32 `[M, C, H, W]` of ``latents``, under measurement guidance.

    ``direction="random"`` is its control: the same push at every step along one random direction
    per image.

    ``setting`` None is the mirror image of ``encode``; so is one with ``uncertainty_scale`` 0 and
    ``decode_guidance_scale`` 1. A guide is needed where ``uncertainty_scale`` is not 0, else
    ValueError. ``indices`` and ``seed_parts`` matter only for ``direction="random"`` and the fault
    ``label_dropout``. Without ``config.clip_stage_two`` nothing is clipped: values a little
    outside [-1, 1] are normal. ``strengths`` `[M]` gives every image its own gamma: latents are
    encoded once, and many settings share a batch.
    """
    guided = setting is not None and (setting.uncertainty_scale != 0 or strengths is not None)
    if guided and guide is None:
        raise ValueError("uncertainty_scale is not 0, but there is no guide")
    denoiser = _prepared(denoiser, config, device)
    guide = None if guide is None else _prepared(guide, config, device, backward=True)
    clip = config.clip_stage_two or "clip" in faults.names
    if setting is not None:
        setting = faults.setting(setting, null_label(denoiser))
    shape = tuple(latents.shape[1:])
    size = batch_size_for(config, shape, denoiser, guide, Execution(device=device))
    pairs = _depth(config, schedule.num_train_timesteps)

    def one_batch(rows: slice) -> Tensor:
        y = labels[rows].to(device)
        model = faults.denoiser(denoiser, indices[rows], *seed_parts, "decode")
        eps_fn = denoiser_eps(
            model,
            y,
            schedule,
            prediction,
            null_label=null_label(denoiser),
            guidance_scale=1.0 if setting is None else setting.decode_guidance_scale,
        )
        if setting is not None and guide is not None:
            # One direction for all steps, as a gradient has: new ones would cancel each other.
            noise = (
                per_image_noise(shape, indices[rows], *seed_parts, "direction").to(device)
                if direction == "random"
                else None
            )
            own = None if strengths is None else strengths[rows].to(device)
            eps_fn = measurement_guided(eps_fn, guide, y, setting, schedule, noise, own)
        return sample(eps_fn, latents[rows].to(device), pairs, schedule, clip)

    return _in_batches(one_batch, labels, indices, size, shape, on_batch)


def forwards_per_image(
    config: SamplingConfig, setting: GuidanceSetting, num_train_timesteps: int = 1000
) -> int:
    """Forwards of denoiser and guide together that one image takes from noise to decoded.

    N (f(g) + [s != 0]) + n (1 + i) + n f(g') + m: N steps of generate, n of encode and of decode
    (fewer with ``strength``), m of these within the setting's interval; i is
    ``inversion_iterations``, and f, classifier-free guidance, 1 for a scale of 0 or 1, else 2.
    The guide's backward passes are not counted.
    """
    steps = len(timestep_pairs(num_train_timesteps, config.num_inference_steps))
    levels = _depth(config, num_train_timesteps)
    first, last = setting.interval
    measured = sum(first <= t <= last for t, _ in levels) if setting.uncertainty_scale else 0
    generated = steps * (_per_step(config.guidance_scale) + (config.classifier_scale != 0))
    encoded = len(levels) * (1 + config.inversion_iterations)
    return generated + encoded + len(levels) * _per_step(setting.decode_guidance_scale) + measured


def _per_step(guidance_scale: float) -> int:
    return 1 if guidance_scale in (0, 1) else 2


def _depth(config: SamplingConfig, num_train_timesteps: int) -> list[Pair]:
    """The part of the grid that encode climbs and decode descends: up to ``strength`` T."""
    highest = config.strength * (num_train_timesteps - 1)
    pairs = timestep_pairs(num_train_timesteps, config.num_inference_steps)
    return [(t, t_prev) for t, t_prev in pairs if t <= highest]


def _prepared(
    model: nn.Module, config: SamplingConfig, device: str, *, backward: bool = False
) -> Prepared:
    if isinstance(model, Prepared):
        return model
    return Prepared(model, Execution(device, config.precision, "never"), backward=backward)


def _level_above(
    pairs: Sequence[Pair], config: SamplingConfig, schedule: NoiseSchedule
) -> int | None:
    """The timestep of the whole grid next above ``pairs``; None where they are the whole grid."""
    grid = timestep_pairs(schedule.num_train_timesteps, config.num_inference_steps)
    return grid[-len(pairs) - 1][0] if len(pairs) < len(grid) else None


def _in_batches(
    one_batch: Callable[[slice], Tensor],
    labels: Tensor,
    indices: Sequence[int],
    batch_size: int,
    shape: tuple[int, ...],
    on_batch: OnBatch | None,
) -> Tensor:
    """The batches' results joined on the CPU; ValueError on unequal lengths.

    A batch that does not fit into a GPU's memory is tried again at half the size, and so are the
    later ones.
    """
    total = len(labels)
    if len(indices) != total:
        raise ValueError(f"{total} labels, but {len(indices)} images or indices")
    result = torch.empty(total, *shape)
    start = 0
    while start < total:
        rows = slice(start, min(start + batch_size, total))
        try:
            part = one_batch(rows).cpu()
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            log.warning("out of memory: going on with batches of %d images", batch_size)
            torch.cuda.empty_cache()
            continue
        bad = ~torch.isfinite(part).flatten(1).all(dim=1)
        if bool(bad.any()):
            index = indices[start + int(bad.nonzero()[0])]
            raise NonFiniteSample(f"{int(bad.sum())} images are not finite, the first is {index}")
        result[rows], start = part, rows.stop
        if on_batch is not None:
            on_batch(start, total)
    return result


def batch_size_for(
    config: SamplingConfig,
    shape: tuple[int, ...],
    denoiser: nn.Module,
    guide: nn.Module | None,
    execution: Execution,
) -> int:
    """``config.batch_size``, or with ``auto`` as many images `[C, H, W]` as memory allows.

    The networks must be on ``execution.device``.
    """
    if config.batch_size != "auto":
        return config.batch_size
    x_t = torch.zeros(1, *shape, device=execution.device)
    label = torch.zeros(1, dtype=torch.int64, device=execution.device)
    needed = activation_bytes(denoiser, x_t, label, graph=False)
    if config.guidance_scale not in (0, 1):
        needed *= 2  # conditional and unconditional at once
    if guide is not None:
        needed = max(needed, activation_bytes(guide, x_t, None, graph=True))
    return fitting_batch_size(needed, execution.device, execution.memory_share)
