"""The deterministic DDIM sampler and its mirror image. Guidance is in the eps function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgdm_ray.diffusion.schedule import NoiseSchedule, Pair

EpsFn = Callable[[Tensor, int], Tensor]
"""(x_t [N, C, H, W], training timestep) -> pred_eps [N, C, H, W]."""


def ddim_step(
    x: Tensor, eps: Tensor, alpha_bar_from: float, alpha_bar_to: float, clip: bool = False
) -> Tensor:
    """One DDIM step with eta = 0 between any two noise levels, in either direction.

    ``clip`` limits pred_x0 to [-1, 1] and takes the eps that belongs to the limited pred_x0 (as
    guided-diffusion does; diffusers calls it ``use_clipped_model_output``); it needs
    alpha_bar_from < 1.
    """
    if clip:
        signal, sigma = math.sqrt(alpha_bar_from), math.sqrt(1 - alpha_bar_from)
        pred_x0 = ((x - sigma * eps) / signal).clamp(-1, 1)
        eps = (x - signal * pred_x0) / sigma
        return math.sqrt(alpha_bar_to) * pred_x0 + math.sqrt(1 - alpha_bar_to) * eps
    # Song et al. 2021, eq. 12 with sigma_t = 0, x_0 eliminated:
    # x_to = r x + (sqrt(1 - alpha_bar_to) - r sqrt(1 - alpha_bar_from)) eps
    ratio = math.sqrt(alpha_bar_to / alpha_bar_from)
    return ratio * x + (math.sqrt(1 - alpha_bar_to) - ratio * math.sqrt(1 - alpha_bar_from)) * eps


@torch.no_grad()
def sample(
    eps_fn: EpsFn, x_T: Tensor, pairs: Sequence[Pair], schedule: NoiseSchedule, clip: bool = False
) -> Tensor:
    """x_T -> x_0 along the descending ``pairs`` of (t, t_prev)."""
    x = x_T
    for t, t_prev in pairs:
        eps = eps_fn(x, t)
        x = ddim_step(x, eps, schedule.alpha_bar(t), schedule.alpha_bar(t_prev), clip)
    return x


@torch.no_grad()
def invert(eps_fn: EpsFn, x_0: Tensor, pairs: Sequence[Pair], schedule: NoiseSchedule) -> Tensor:
    """x_0 -> x_T through the same levels as ``sample``, backwards (DDIM, section 4.3).

    eps is evaluated where the step starts; the clean image has no timestep of its own and uses
    t = 0. Steps and levels mirror ``sample`` exactly: what is lost in a round trip is only that
    eps is evaluated at the other end of each step, an error that falls with the step size.
    """
    x = x_0
    for t, t_prev in reversed(pairs):
        eps = eps_fn(x, max(t_prev, 0))
        x = ddim_step(x, eps, schedule.alpha_bar(t_prev), schedule.alpha_bar(t))
    return x
