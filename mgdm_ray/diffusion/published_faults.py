"""Faults of the paper's published code, reproduced on request (docs/reference.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mgdm_ray.config import GuidanceSetting, ReferenceFault
from mgdm_ray.diffusion.samplers import EpsFn, ddim_step
from mgdm_ray.diffusion.schedule import NoiseSchedule, Pair, timestep_pairs
from mgdm_ray.diffusion.unet import null_label
from mgdm_ray.seeding import derive_seed

RANKS = 4
"""Workers with one seed that ``rank_seeds`` assumes."""
DROPOUT_BATCH = 64
"""Images that lose their label together at sampling."""


@dataclass(frozen=True)
class Faults:
    """Faults that the stages of sampling reproduce; none by default."""

    names: frozenset[ReferenceFault] = frozenset()
    label_dropout: float = 0.0
    """Rate of training, which the fault ``label_dropout`` keeps at sampling."""

    def denoiser(
        self, model: nn.Module, indices: Sequence[int], *seed_parts: str | int | float | bool
    ) -> Callable[..., Tensor]:
        """``model`` for one batch, the images ``indices``; with ``label_dropout`` it loses labels.

        The published denoiser draws one number per batch and step. Here the batch of image i is
        i // DROPOUT_BATCH, so that an image does not depend on ``sampling.batch_size``.
        """
        if "label_dropout" not in self.names:
            return model
        batches = [index // DROPOUT_BATCH for index in indices]

        def forgetful(x_t: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
            t = int(timesteps[0])
            lost = {
                batch: np.random.default_rng(
                    derive_seed(*seed_parts, "label dropout", batch, t)
                ).random()
                < self.label_dropout
                for batch in set(batches)
            }
            mask = torch.tensor([lost[batch] for batch in batches], device=x_t.device)
            mask = mask.repeat(len(x_t) // len(mask))  # 2 N with classifier-free guidance
            labels = torch.where(mask, null_label(model), class_labels)
            predicted: Tensor = model(x_t, timesteps, class_labels=labels)
            return predicted

        return forgetful

    def setting(self, chosen: GuidanceSetting, num_classes: int) -> GuidanceSetting:
        """``chosen``; with ``measurement`` as published: raw gradients, entropies in nats.

        H(p) = log K (H(p) / log K): gamma log K, and beta / log K keeps the weight of the label.
        """
        if "measurement" not in self.names:
            return chosen
        divided = chosen.measurement in ("entropy", "mutual_information")
        scale = math.log(num_classes) if divided else 1.0
        changes = {
            "gradient": "raw",
            "uncertainty_scale": chosen.uncertainty_scale * scale,
            "label_scale": chosen.label_scale / scale,
        }
        return chosen.model_copy(update=changes)


NO_FAULTS = Faults()


def respaced(schedule: NoiseSchedule, num_inference_steps: int) -> NoiseSchedule:
    """``schedule`` at the timesteps of the sampling grid alone, renumbered 0 .. N - 1.

    A guide trained on it knows level k of the grid by the number k, and is asked about grid[k] with
    the number grid[k]: the fault ``guide_timesteps``.
    """
    pairs = timestep_pairs(schedule.num_train_timesteps, num_inference_steps)
    levels = schedule.alphas_cumprod[[t for t, _ in reversed(pairs)]]
    before = torch.cat([torch.ones(1, dtype=torch.float64), levels[:-1]])
    # alpha_bar_k = product of (1 - beta_i) for i <= k
    return NoiseSchedule(1 - levels / before)


@torch.no_grad()
def invert_misaligned(
    eps_fn: EpsFn,
    x_0: Tensor,
    pairs: Sequence[Pair],
    schedule: NoiseSchedule,
    end: int | None = None,
    clip: bool = False,
) -> Tensor:
    """x_0 -> latent as published (``ddim_reverse_sample``), one level above ``samplers.invert``.

    Each step goes from level t to the next one up, the last one to the level ``end``, or without
    one to alpha_bar = 0, where the latent is pred_eps.
    """
    x = x_0
    upwards = [t for t, _ in reversed(pairs)]
    levels = [schedule.alpha_bar(t) for t in upwards]
    levels.append(0.0 if end is None else schedule.alpha_bar(end))
    for t, low, high in zip(upwards, levels[:-1], levels[1:], strict=True):
        x = ddim_step(x, eps_fn(x, t), low, high, clip)
    return x


def truncated(images: Tensor) -> Tensor:
    """``images`` truncated, not rounded, to uint8 and back: half a grey level darker on average."""
    levels = ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return levels.to(images.dtype) / 127.5 - 1


def rank_duplicates(labels: Tensor, ranks: int = RANKS) -> list[int]:
    """The index whose noise each image gets if ``ranks`` workers have one seed.

    Within a class, every ``ranks`` images in a row share the noise of the first of them.
    """
    first: dict[int, int] = {}
    seen: dict[int, int] = {}
    indices = []
    for index, label in enumerate(labels.tolist()):
        count = seen.get(label, 0)
        if count % ranks == 0:
            first[label] = index
        seen[label] = count + 1
        indices.append(first[label])
    return indices
