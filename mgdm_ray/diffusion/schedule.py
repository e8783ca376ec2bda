"""The noise schedule, the conversions between x_0, eps and v, and the grid of timesteps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

ScheduleName = Literal["linear", "cosine"]
Pair = tuple[int, int]

FINAL_ALPHA_BAR = 4.0e-5
"""The last alphas_cumprod: of ``linear`` (rounded) and, by construction, of ``cosine``."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) for t = 0 .. T-1.

    ``betas`` float64 `[T]` in (0, 1). Coefficients are computed in float64 on the CPU, rounded to
    the images' dtype and kept on their device. ``t`` is one int or int64 `[N]`, on the CPU or
    beside the images; x_0, x_t, noise, eps and v are `[N, ...]`.
    """

    betas: Tensor
    alphas_cumprod: Tensor = field(init=False)
    _tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.betas.dtype != torch.float64 or self.betas.ndim != 1 or len(self.betas) < 2:
            found = f"{self.betas.dtype} {tuple(self.betas.shape)}"
            raise ValueError(f"betas must be float64 [T], T at least 2; got {found}")
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise ValueError("betas must lie in (0, 1)")
        object.__setattr__(self, "alphas_cumprod", torch.cumprod(1 - self.betas, dim=0))

    @property
    def num_train_timesteps(self) -> int:
        return len(self.betas)

    def alpha_bar(self, t: int) -> float:
        """alpha_bar_t; ``t = -1`` is the clean image, alpha_bar = 1. ValueError out of range."""
        if t == -1:
            return 1.0
        if not 0 <= t < self.num_train_timesteps:
            raise ValueError(f"timestep {t} is not in -1 .. {self.num_train_timesteps - 1}")
        return float(self.alphas_cumprod[t])

    def coefficients(self, t: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply ``like`` `[N, ...]`.

        ValueError for a ``t`` out of range; one on a GPU is not read back to be checked.
        """
        count, signal, noise = self.num_train_timesteps, *self._on(like)
        if isinstance(t, int):
            outside = not 0 <= t < count
        else:
            outside = t.device.type == "cpu" and bool(((t < 0) | (t >= count)).any())
        if outside:
            raise ValueError(f"timesteps must be in 0 .. {count - 1}; got {t}")
        # A view for one t: nothing is copied to a GPU.
        rows = slice(t, t + 1) if isinstance(t, int) else t.to(like.device).reshape(-1)
        shape = (-1, *[1] * (like.ndim - 1))
        return signal[rows].reshape(shape), noise[rows].reshape(shape)

    def _on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of all timesteps, as ``like``."""
        place = like.device, like.dtype
        if place not in self._tables:
            signal, noise = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
            self._tables[place] = signal.to(*place), noise.to(*place)
        return self._tables[place]

    def q_sample(self, x_0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_t of the clean ``x_0`` under ``noise``."""
        signal, sigma = self.coefficients(t, x_0)
        # Ho et al. 2020, eq. 4: x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps
        return signal * x_0 + sigma * noise

    def pred_x0_from_eps(self, x_t: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        signal, sigma = self.coefficients(t, x_t)
        return (x_t - sigma * eps) / signal

    def v_target(self, x_0: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """What a v-predicting network learns."""
        signal, sigma = self.coefficients(t, x_0)
        # Salimans & Ho 2022, section 4: v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
        return signal * noise - sigma * x_0

    def eps_from_v(self, x_t: Tensor, t: Tensor | int, v: Tensor) -> Tensor:
        signal, sigma = self.coefficients(t, x_t)
        # (x_t, v) is (x_0, eps) rotated: eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
        return signal * v + sigma * x_t

    def x0_from_v(self, x_t: Tensor, t: Tensor | int, v: Tensor) -> Tensor:
        signal, sigma = self.coefficients(t, x_t)
        # x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v
        return signal * x_t - sigma * v


def make_schedule(name: ScheduleName, num_train_timesteps: int = 1000) -> NoiseSchedule:
    """The schedule called ``name``; ValueError for any other name.

    ``linear``: betas evenly from 1e-4 to 0.02 (Ho et al. 2020). ``cosine``: Nichol & Dhariwal 2021,
    eq. 17, with the angle stopped so that the last alpha_bar is 4.0e-5 like linear's, not 2e-9:
    guidance in eps form divides by sqrt(alpha_bar).
    """
    if num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps must be at least 2; got {num_train_timesteps}")
    if name == "linear":
        return NoiseSchedule(torch.linspace(1e-4, 0.02, num_train_timesteps, dtype=torch.float64))
    if name == "cosine":
        alpha_bar = _cosine_alpha_bar(num_train_timesteps)
        return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])
    raise ValueError(f"unknown schedule {name!r}; known: linear, cosine")


def _cosine_alpha_bar(num_train_timesteps: int) -> Tensor:
    """alpha_bar at the times 0, 1/T, ..., 1: float64 `[T + 1]` from 1 to FINAL_ALPHA_BAR."""
    offset = 0.008
    start = offset / (1 + offset)
    # The end angle solves cos^2(angle) / cos^2(start * angle) = FINAL_ALPHA_BAR.
    angle = math.pi / 2
    for _ in range(20):
        angle = math.acos(math.sqrt(FINAL_ALPHA_BAR) * math.cos(start * angle))
    time = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
    # eq. 17: alpha_bar(time) = f(time) / f(0), f(time) = cos^2((time + s) / (1 + s) * angle)
    f = torch.cos((time + offset) / (1 + offset) * angle).square()
    return f / f[0]


def timestep_pairs(num_train_timesteps: int, num_inference_steps: int) -> list[Pair]:
    """Evenly spaced (t, t_prev), strictly descending from (T-1, ...) to (0, -1), the clean image.

    ``num_inference_steps`` = len(result) in [2, T]. Integer arithmetic, equal on all machines.
    """
    last, gaps = num_train_timesteps - 1, num_inference_steps - 1
    if not 2 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be in [2, {num_train_timesteps}]; got {num_inference_steps}"
        )
    # floor(i * last / gaps + 1/2)
    grid = [(2 * i * last + gaps) // (2 * gaps) for i in range(gaps, -1, -1)]
    return list(zip(grid, [*grid[1:], -1], strict=True))
