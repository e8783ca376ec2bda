"""Guides whose gradients are known in closed form, and one small real one."""

from __future__ import annotations

import math

import torch
from torch import nn

from mgdm_ray.config import GuidanceSetting, UNetConfig
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.unet import build_guide

SCHEDULE = make_schedule("linear")
BOUNDED = ("entropy", "margin", "least_confidence")
NAMES = (*BOUNDED, "energy")


class LinearGuide(nn.Module):
    """logits = pixels @ weight * size; ignores t."""

    def __init__(self, classes: int, pixels: int = 16, size: float = 1.0) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(classes)
        weight = size * torch.randn(pixels, classes, generator=numbers, dtype=torch.float64)
        self.weight = nn.Parameter(weight)

    def forward(self, x, _timesteps):
        return x.flatten(1) @ self.weight.to(x)


class MemberGuide(LinearGuide):
    """A linear guide with dropout on its pixels: four fixed masks."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        numbers = torch.Generator().manual_seed(7)
        masks = 2.0 * (torch.rand(4, 1, 16, generator=numbers) < 0.5)
        self.member_masks = torch.cat([torch.ones(1, 1, 16), masks]).double()

    def forward(self, x, _timesteps, masks=1):
        return (x.flatten(1) * masks) @ self.weight.to(x)


class QuadraticGuide(nn.Module):
    """True p(y=1 | x_t) if p(y=1 | x_0) = exp(-0.1 - (x_0 - c)^2 / 2 tau^2), x_0 ~ N(m, s^2)."""

    mean, spread, centre, tau = 0.3, 0.5, 0.9, 0.4

    def forward(self, x, timesteps):
        a = SCHEDULE.alpha_bar(int(timesteps[0]))
        total = a * self.spread**2 + 1 - a
        expected = self.mean + a**0.5 * self.spread**2 / total * (x - a**0.5 * self.mean)
        variance = self.spread**2 * (1 - a) / total + self.tau**2
        log_p = -((expected - self.centre) ** 2) / (2 * variance) - 0.1
        log_p = (log_p - 0.5 * math.log(variance / self.tau**2)).flatten(1)
        return torch.cat([torch.log(-torch.expm1(log_p)), log_p], dim=1)

    def eps(self, x, t):
        a = SCHEDULE.alpha_bar(t)
        return (1 - a) ** 0.5 * (x - a**0.5 * self.mean) / (a * self.spread**2 + 1 - a)

    def posterior(self) -> tuple[float, float]:
        precision = 1 / self.spread**2 + 1 / self.tau**2
        return (self.mean / self.spread**2 + self.centre / self.tau**2) / precision, precision**-0.5


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def setting(name: str, scale: float, gradient: str = "raw") -> GuidanceSetting:
    return GuidanceSetting(measurement=name, uncertainty_scale=scale, gradient=gradient)


def small_guide(dropout: float) -> nn.Module:
    shape = UNetConfig(channels=(16, 16), attention=(False, True))
    return build_guide(shape, 1, 3, "test", dropout=dropout).eval()
