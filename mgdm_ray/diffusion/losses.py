"""The training losses of the denoiser and of the noisy classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgdm_ray.config import DenoiserConfig
from mgdm_ray.diffusion.batches import Draw
from mgdm_ray.diffusion.schedule import NoiseSchedule
from mgdm_ray.diffusion.unet import Conditions

MIN_SNR_GAMMA = 5.0


def denoiser_loss(
    model: nn.Module,
    x_0: Tensor,
    conditions: Conditions,
    draw: Draw,
    schedule: NoiseSchedule,
    config: DenoiserConfig,
) -> Tensor:
    """Scalar: mean over batch and pixels of w_t (target - prediction)^2.

    x_0 `[N, C, H, W]`; ``conditions``: labels or the null label, and changes; t, noise and masks of
    ``draw``. The target is eps or v (``config.prediction``), w_t ``loss_weight``.
    """
    t, noise = draw.t, draw.noise
    x_t = schedule.q_sample(x_0, t, noise)
    target = noise if config.prediction == "epsilon" else schedule.v_target(x_0, t, noise)
    masks = {} if draw.feature_masks is None else {"masks": draw.feature_masks}
    prediction = model(x_t, t, class_labels=conditions, **masks).float()
    per_sample = (prediction - target).square().flatten(1).mean(dim=1)
    loss: Tensor = (loss_weight(t, schedule, config) * per_sample).mean()
    return loss


def loss_weight(t: Tensor, schedule: NoiseSchedule, config: DenoiserConfig) -> Tensor:
    """w_t float32 `[N]`: 1; for ``mgdm`` 1 / sqrt(1 + snr_t); or ``min_snr``, both of gamma = 5.

    Hang et al. 2023 (arXiv 2303.09556), section 3.4: min(snr, 5) on the error of x_0, hence
    min(snr, 5) / snr on that of eps and min(snr, 5) / (snr + 1) on that of v. ``min_snr_soft``:
    5 snr / (5 + snr) instead of the minimum (Crowson et al. 2024, arXiv 2401.11605, section 3.4).
    """
    if config.loss_weight == "uniform":
        return torch.ones(t.shape, device=t.device)
    signal, sigma = schedule.coefficients(t, torch.empty(len(t), device=t.device))
    if config.loss_weight == "mgdm":
        # snr = alpha_bar / (1 - alpha_bar), hence 1 / sqrt(1 + snr) = sqrt(1 - alpha_bar)
        return sigma
    snr = (signal / sigma).square()
    limited = snr.clamp(max=MIN_SNR_GAMMA)
    if config.loss_weight == "min_snr_soft":
        limited = MIN_SNR_GAMMA * snr / (MIN_SNR_GAMMA + snr)
    return limited / snr if config.prediction == "epsilon" else limited / (snr + 1)


def guide_loss(
    model: nn.Module,
    x_0: Tensor,
    labels: Tensor,
    draw: Draw,
    schedule: NoiseSchedule,
    label_smoothing: float,
) -> Tensor:
    """Scalar: mean cross-entropy of p(y | x_t, t) of noised images; labels int64 `[N]`."""
    x_t, masks = schedule.q_sample(x_0, draw.t, draw.noise), draw.feature_masks
    logits = model(x_t, draw.t) if masks is None else model(x_t, draw.t, masks)
    return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
