"""The two stages of guided sampling: generate, and encode -> decode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mgdm_ray.config import (
    GUIDED_ARMS,
    DenoiserConfig,
    GuidanceSetting,
    ReferenceFault,
    SampledArm,
    SamplingConfig,
)
from mgdm_ray.diffusion.guidance import denoiser_eps, guided
from mgdm_ray.diffusion.inference import Execution, Prepared, activation_bytes, fitting_batch_size
from mgdm_ray.diffusion.published_faults import Faults, invert_misaligned, truncated
from mgdm_ray.diffusion.samplers import EpsFn, invert, sample, sample_second_order
from mgdm_ray.diffusion.schedule import NoiseSchedule, Pair, timestep_pairs
from mgdm_ray.diffusion.unet import null_label
from mgdm_ray.seeding import per_image_noise

log = logging.getLogger(__name__)

SOLVERS = {"ddim": sample, "second_order": sample_second_order}
UNCOMPILED = Execution(compile="never")
OnBatch = Callable[[str, int, int], None]
"""Called after each batch with (stage, images done, images in all)."""


class NonFiniteSample(RuntimeError):
    """An image became NaN or infinite: the guidance is too strong or the model is broken."""


@dataclass(frozen=True)
class TrainedDenoiser:
    """A diffusion model with everything that sampling must know about its training."""

    model: nn.Module
    config: DenoiserConfig
    schedule: NoiseSchedule
    num_classes: int
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""


class Sampler:
    """Makes images with a denoiser and, where guidance is asked for, a guide.

    The noise of an image is a function of ``seed`` and the image's index: batch size, order and
    the number of workers change an image only by the round-off of batched arithmetic. ``config``
    holds the grid, the scales of stage 1 and the precision. The networks are set to eval mode and
    their parameters are frozen. ``faults`` are errors of the published code to reproduce.
    """

    def __init__(
        self,
        denoiser: TrainedDenoiser,
        guide: nn.Module | None,
        config: SamplingConfig,
        execution: Execution = UNCOMPILED,
        *,
        seed: int = 0,
        faults: Collection[ReferenceFault] = (),
        on_batch: OnBatch | None = None,
    ) -> None:
        execution = replace(execution, precision=config.precision)
        self.config, self.seed, self.on_batch = config, seed, on_batch
        self.trained, self.schedule, self.shape = denoiser, denoiser.schedule, denoiser.shape
        self.device = execution.device
        self.denoiser = Prepared(denoiser.model, execution)
        self.guide = None if guide is None else Prepared(guide, execution, backward=True)
        self.faults = Faults(frozenset(faults), denoiser.config.label_dropout)
        self.batch_size = batch_size_for(config, self.shape, self.denoiser, self.guide, execution)

    def expect(self, images: int) -> None:
        """Announce how many images a stage will make: compiling may pay."""
        steps = -(-images // self.batch_size) * self.config.num_inference_steps
        self.denoiser.calls = steps * (1 + self.config.inversion_iterations)
        if self.guide is not None:
            self.guide.calls = steps

    def make(
        self,
        arm: SampledArm,
        labels: Tensor,
        indices: Sequence[int],
        setting: GuidanceSetting | None = None,
        *,
        noise_indices: Sequence[int] | None = None,
    ) -> Tensor:
        """Images float32 `[M, C, H, W]` of ``arm``, from noise through all stages that it has.

        ``setting`` is that of stage 2, used by ``perturb`` and ``disturb`` only. Stage 1 draws
        noise by ``noise_indices`` (default: ``indices``); others only under ``rank_seeds``.
        """
        images = self.generate(labels, indices if noise_indices is None else noise_indices)
        if arm == "generate":
            return images
        latents = self.encode(images, labels, indices)
        setting = setting if arm in GUIDED_ARMS else None
        return self.decode(latents, labels, indices, setting, random=arm == "perturb")

    def generate(self, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """Stage 1: images float32 `[M, C, H, W]` on the CPU, of ``labels`` int64 `[M]`.

        In [-1, 1] with ``config.clip``. ValueError where ``config.classifier_scale`` needs a guide
        and there is none; NonFiniteSample.
        """
        config = self.config
        if config.classifier_scale != 0 and self.guide is None:
            raise ValueError("classifier_scale is not 0, but there is no guide")
        pairs = timestep_pairs(self.schedule.num_train_timesteps, config.num_inference_steps)
        solve = SOLVERS[config.solver]

        def one_batch(rows: slice, y: Tensor) -> Tensor:
            eps_fn = self._eps("generate", y, indices[rows], config.guidance_scale)
            if self.guide is not None:
                scale = config.classifier_scale
                eps_fn = guided(eps_fn, self.guide, y, self.schedule, classifier_scale=scale)
            x_T = self._noise("generate", indices[rows], "x_T")
            return solve(eps_fn, x_T, pairs, self.schedule, clip=config.clip)

        return self._in_batches("generate", one_batch, labels, indices)

    def encode(self, images: Tensor, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """Stage 2a: latents float32 `[M, C, H, W]` of ``images``, at ``config.strength`` of T.

        Conditional on the label and unguided, so that latents do not depend on how they will be
        decoded. With ``config.encode: stored`` the noise that stage 1 draws by ``indices``, which
        else matter only for the fault ``label_dropout``.
        """
        iterations, clip = self.config.inversion_iterations, self.config.clip_stage_two
        misaligned = "alignment" in self.faults.names
        if misaligned and iterations:
            raise ValueError("the fault 'alignment' has no inversion_iterations")
        pairs = _depth(self.config, self.schedule.num_train_timesteps)

        def one_batch(rows: slice, y: Tensor) -> Tensor:
            if self.config.encode == "stored":
                return self._noise("generate", indices[rows], "x_T")
            eps_fn = self._eps("encode", y, indices[rows])
            x_0 = truncated(images[rows]) if "uint8" in self.faults.names else images[rows]
            x_0 = x_0.to(self.device)
            if misaligned:
                return invert_misaligned(
                    eps_fn, x_0, pairs, self.schedule, self._level_above(pairs), clip
                )
            return invert(eps_fn, x_0, pairs, self.schedule, iterations, clip)

        return self._in_batches("encode", one_batch, labels, indices)

    def decode(
        self,
        latents: Tensor,
        labels: Tensor,
        indices: Sequence[int],
        setting: GuidanceSetting | None,
        *,
        random: bool = False,
        strengths: Tensor | None = None,
    ) -> Tensor:
        """Stage 2b: images float32 `[M, C, H, W]` of ``latents``, under measurement guidance.

        Without ``setting``, or with ``uncertainty_scale`` 0 and ``decode_guidance_scale`` 1, the
        mirror image of ``encode``; with ``config.encode: stored`` the images of ``generate``, for
        solver, ``guidance_scale`` and clipping are its own. ``random`` is the control: at every
        step the same push, along one random direction per image. ``strengths`` `[M]` replace the
        setting's gamma, image by image. Values a little outside [-1, 1] are normal without
        ``config.clip_stage_two``.
        ValueError where guidance needs a guide and there is none; NonFiniteSample.
        """
        ascends = setting is not None and (setting.uncertainty_scale != 0 or strengths is not None)
        if ascends and self.guide is None:
            raise ValueError("uncertainty_scale is not 0, but there is no guide")
        config, repeats = self.config, self.config.encode == "stored"
        clip = config.clip if repeats else config.clip_stage_two or "clip" in self.faults.names
        solve = SOLVERS[config.solver if repeats else "ddim"]
        pairs = _depth(self.config, self.schedule.num_train_timesteps)
        if setting is not None:
            setting = self.faults.setting(setting, self.trained.num_classes)

        def one_batch(rows: slice, y: Tensor) -> Tensor:
            scale = 1.0 if setting is None else setting.decode_guidance_scale
            scale = config.guidance_scale if repeats else scale
            eps_fn = self._eps("decode", y, indices[rows], scale)
            if setting is not None and self.guide is not None:
                # One direction for all steps, as a gradient has: new ones would cancel each other.
                noise = self._noise("decode", indices[rows], "direction") if random else None
                own = None if strengths is None else strengths[rows].to(self.device)
                eps_fn = guided(
                    eps_fn,
                    self.guide,
                    y,
                    self.schedule,
                    setting=setting,
                    noise=noise,
                    strengths=own,
                )
            return solve(eps_fn, latents[rows].to(self.device), pairs, self.schedule, clip)

        return self._in_batches("decode", one_batch, labels, indices)

    def _eps(
        self, stage: str, y: Tensor, indices: Sequence[int], guidance_scale: float = 1.0
    ) -> EpsFn:
        """The denoiser's eps for one batch of labels ``y``."""
        repeats = stage == "generate" or self.config.encode == "stored"
        return denoiser_eps(
            self.faults.denoiser(self.denoiser, indices, stage, self.seed, stage),
            y,
            self.schedule,
            self.trained.config.prediction,
            null_label=null_label(self.denoiser),
            guidance_scale=guidance_scale,
            interval=self.config.guidance_interval if repeats else (0, 999),
        )

    def _noise(self, stage: str, indices: Sequence[int], name: str) -> Tensor:
        return per_image_noise(self.shape, indices, stage, self.seed, name).to(self.device)

    def _level_above(self, pairs: Sequence[Pair]) -> int | None:
        """The timestep of the whole grid next above ``pairs``; None if they are the whole grid."""
        grid = timestep_pairs(self.schedule.num_train_timesteps, self.config.num_inference_steps)
        return grid[-len(pairs) - 1][0] if len(pairs) < len(grid) else None

    def _in_batches(
        self,
        stage: str,
        one_batch: Callable[[slice, Tensor], Tensor],
        labels: Tensor,
        indices: Sequence[int],
    ) -> Tensor:
        """The results of all batches, on the CPU; ValueError on unequal lengths.

        A batch that does not fit into a GPU's memory is tried again at half the size, and so are
        the later ones.
        """
        total, size = len(labels), self.batch_size
        if len(indices) != total:
            raise ValueError(f"{total} labels, but {len(indices)} images or indices")
        result = torch.empty(total, *self.shape)
        start = 0
        while start < total:
            rows = slice(start, min(start + size, total))
            try:
                part = one_batch(rows, labels[rows].to(self.device)).cpu()
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                log.warning("out of memory: continuing with batches of %d images", size)
                torch.cuda.empty_cache()
                continue
            bad = ~torch.isfinite(part).flatten(1).all(dim=1)
            if bool(bad.any()):
                index = indices[start + int(bad.nonzero()[0])]
                half = self.denoiser.precision == "float16"
                hint = ", or float16 overflows: set sampling.precision to float32" if half else ""
                raise NonFiniteSample(
                    f"{int(bad.sum())} images are not finite, the first is {index}: the guidance "
                    f"is too strong or the model is broken{hint}"
                )
            result[rows], start = part, rows.stop
            if self.on_batch is not None:
                self.on_batch(stage, start, total)
        return result


def seed_parts(arm: SampledArm, seed: int, index: int) -> dict[str, list[str | int]]:
    """What the noise of an image is drawn by: ``seeding.per_image_noise`` of these parts."""
    parts: dict[str, list[str | int]] = {"x_T": ["generate", seed, "x_T", index]}
    if arm == "perturb":
        parts["direction"] = ["decode", seed, "direction", index]
    return parts


def forwards_per_image(
    config: SamplingConfig, setting: GuidanceSetting, num_train_timesteps: int = 1000
) -> int:
    """Forwards of denoiser and guide together that one image takes from noise to decoded.

    N (1 + [s != 0]) + f + n (1 + i) + n (1 + [g' != 1]) + m, or 2 (N + f) + m where noise is
    stored: N steps of generate, f of them with classifier-free guidance, n of encode and of decode
    (fewer with ``strength``), m of these within the setting's interval; i is
    ``inversion_iterations``. Scales of 0 and 1 are free, and so are backward passes of the guide.
    """

    def twice(guidance_scale: float) -> bool:
        return guidance_scale not in (0, 1)

    levels = _depth(config, num_train_timesteps)
    first, last = setting.levels
    measured = sum(first <= t <= last for t, _ in levels) if setting.uncertainty_scale else 0
    stage_one = config.num_inference_steps
    if twice(config.guidance_scale):
        first, last = config.guidance_interval
        grid = timestep_pairs(num_train_timesteps, config.num_inference_steps)
        stage_one += sum(first <= t <= last for t, _ in grid)
    if config.encode == "stored":
        return 2 * stage_one + measured
    stage_one += config.num_inference_steps * (config.classifier_scale != 0)
    stage_two = 2 + config.inversion_iterations + twice(setting.decode_guidance_scale)
    return stage_one + len(levels) * stage_two + measured


def _depth(config: SamplingConfig, num_train_timesteps: int) -> list[Pair]:
    """The part of the grid that encode climbs and decode descends: up to ``strength`` T."""
    highest = config.strength * (num_train_timesteps - 1)
    pairs = timestep_pairs(num_train_timesteps, config.num_inference_steps)
    return [(t, t_prev) for t, t_prev in pairs if t <= highest]


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
