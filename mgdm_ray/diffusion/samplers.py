"""Deterministic samplers and the mirror image of DDIM. Guidance is in the eps function."""

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

    ``clip`` limits pred_x0 to [-1, 1] and takes the eps of the limited pred_x0 (as
    guided-diffusion; in diffusers ``use_clipped_model_output``); it needs alpha_bar_from < 1.
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
def sample_second_order(
    eps_fn: EpsFn, x_T: Tensor, pairs: Sequence[Pair], schedule: NoiseSchedule, clip: bool = False
) -> Tensor:
    """As ``sample``, with a second-order error at the same number of forwards.

    With alpha_bar = cos^2(phi) the probability flow is dx/dphi = v, and a DDIM step rotates (x, v).
    This is the two-step Adams-Bashforth method for what the rotation leaves out: v is extrapolated
    to the middle of the step from its deviation from the last step's prediction.
    """
    x, last = x_T, None
    for t, t_prev in pairs:
        phi, to = _angle(schedule.alpha_bar(t)), _angle(schedule.alpha_bar(t_prev))
        v = (eps_fn(x, t) - math.sin(phi) * x) / math.cos(phi)
        if clip:
            v = _clipped(x, v, phi)
        step, ahead = phi - to, v
        if last is not None and t_prev >= 0:  # the last step ends at pred_x0, which may be clipped
            last_x, last_v, last_step = last
            predicted = math.cos(last_step) * last_v + math.sin(last_step) * last_x
            ahead = v + step / (2 * last_step) * (v - predicted)
        last = (x, v, step)
        x = math.cos(step) * x - math.sin(step) * ahead
    return x


def _angle(alpha_bar: float) -> float:
    """phi in [0, pi/2] with cos(phi) = sqrt(alpha_bar), exact near 0 as acos is not."""
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def _clipped(x: Tensor, v: Tensor, phi: float) -> Tensor:
    """The v whose pred_x0 is that of ``v``, limited to [-1, 1]."""
    pred_x0 = (math.cos(phi) * x - math.sin(phi) * v).clamp(-1, 1)
    return (math.cos(phi) * x - pred_x0) / math.sin(phi)


@torch.no_grad()
def invert(
    eps_fn: EpsFn,
    x_0: Tensor,
    pairs: Sequence[Pair],
    schedule: NoiseSchedule,
    iterations: int = 0,
    clip: bool = False,
) -> Tensor:
    """x_0 -> x_T through the same levels as ``sample``, backwards (DDIM, section 4.3).

    eps is evaluated where a step starts (t = 0 for the clean image): the error of a round trip
    falls with the step size. ``iterations`` > 0 evaluates it that many times more at the end of the
    step: a fixed-point iteration for the x_t from which ``sample`` steps to x_(t_prev) exactly
    (AIDI, Pan et al. 2023). It runs in v, where an iteration multiplies the error by tan(angle of
    the step) dv/dx; in eps it would not converge near pure noise. ``clip`` as in ``sample``, except
    for the first step, whose image has no pred_x0.
    """
    x = x_0
    for pair in reversed(pairs):
        x = _invert_step(eps_fn, x, pair, schedule, iterations, clip)
    return x


def _invert_step(
    eps_fn: EpsFn, x: Tensor, pair: Pair, schedule: NoiseSchedule, iterations: int, clip: bool
) -> Tensor:
    """From x at t_prev to the x_t that ``ddim_step`` brings back to it."""
    t, t_prev = pair
    low, high = schedule.alpha_bar(t_prev), schedule.alpha_bar(t)
    phi, step = _angle(high), _angle(high) - _angle(low)

    def origin(x_t: Tensor) -> Tensor:
        v = (eps_fn(x_t, t) - math.sin(phi) * x_t) / math.cos(phi)
        if clip:
            v = _clipped(x_t, v, phi)
        # x_(t_prev) = cos(step) x_t - sin(step) v, solved for x_t
        return (x + math.sin(step) * v) / math.cos(step)

    start = ddim_step(x, eps_fn(x, max(t_prev, 0)), low, high, clip and t_prev >= 0)
    return _solve(origin, start, iterations)


def _solve(mapping: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """x with mapping(x) = x, of images `[N, ...]`, after ``iterations`` calls of ``mapping``.

    x <- mapping(x) as long as an image's residual ||mapping(x) - x|| falls. Then the image returns
    to its best point and takes the share of mapping(x) - x that its last two residuals suggest
    (spectral residual method, La Cruz, Martinez & Raydan 2006), at most half the last share after a
    failure; a negative share where mapping is steeper than 1. Without any improvement it keeps its
    start.
    """
    guess, best, target = start, start, start
    least = torch.full(start.shape[:1], math.inf, dtype=start.dtype, device=start.device)
    share = torch.ones_like(least)
    tame = torch.ones_like(least, dtype=torch.bool)
    for _ in range(iterations):
        image = mapping(guess)
        change, last = (image - guess).flatten(1), (target - best).flatten(1)
        residual = torch.linalg.vector_norm(change, dim=1)
        # NaN has not fallen, but a NaN in the first residual must reach the result.
        fallen = (residual < least) | torch.isinf(least)
        tame &= fallen
        # eq. 5: the zero of a residual that is linear along the last step
        slope = change - last
        spectral = -share * (last * slope).sum(dim=1) / slope.square().sum(dim=1)
        limit = torch.where(fallen, 1.0, share.abs() / 2)
        spectral = torch.nan_to_num(spectral, nan=0.0).clamp(-limit, limit)
        share = torch.where(tame, share, spectral)
        here = fallen.reshape(-1, *[1] * (start.ndim - 1))
        least = torch.where(fallen, residual, least)
        best, target = torch.where(here, guess, best), torch.where(here, image, target)
        guess = torch.lerp(best, target, share.reshape(here.shape))
    return guess
