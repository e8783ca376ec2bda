"""Analytic stand-ins for networks: their optimum is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mgdm_ray.config import DenoiserConfig, GuidanceSetting, SamplingConfig
from mgdm_ray.diffusion.guidance import guided
from mgdm_ray.diffusion.pipeline import Sampler, TrainedDenoiser
from mgdm_ray.diffusion.samplers import EpsFn
from mgdm_ray.diffusion.schedule import NoiseSchedule


@dataclass
class Gaussian:
    """Data N(mean [D], covariance [D, D]) in float64, seen as images `[N, 1, 1, D]`."""

    mean: Tensor
    covariance: Tensor

    def eps(self, schedule: NoiseSchedule, x_t: Tensor, t: int) -> Tensor:
        """The optimal denoiser: -sqrt(1-a) grad log N(x_t; sqrt(a) mean, a cov + (1-a) I)."""
        a = schedule.alpha_bar(t)
        size = len(self.mean)
        noisy = a * self.covariance + (1 - a) * torch.eye(size, dtype=torch.float64)
        flat = x_t.double().reshape(-1, size) - a**0.5 * self.mean
        return ((1 - a) ** 0.5 * torch.linalg.solve(noisy, flat.T).T).reshape(x_t.shape).to(x_t)

    def affine(self, mapping) -> tuple[Tensor, Tensor]:
        """(matrix [D, D], offset [D]) of a map of images that is affine, read off exactly."""
        size = len(self.mean)
        probes = torch.cat([torch.zeros(1, size), torch.eye(size)]).double()
        out = mapping(probes.reshape(-1, 1, 1, size)).reshape(-1, size)
        return (out[1:] - out[0]).T, out[0]


class GaussianDenoiser(nn.Module):
    """``Gaussian`` as a network: class k has its mean moved by ``shifts[k]``; the last is null."""

    def __init__(self, gaussian: Gaussian, schedule: NoiseSchedule, shifts: list[float]) -> None:
        super().__init__()
        self.gaussian, self.schedule, self.shifts = gaussian, schedule, shifts
        self.num_class_embeds = len(shifts)
        self.calls: list[tuple[int, list[int]]] = []

    def forward(self, x_t: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        self.calls.append((int(timesteps[0]), class_labels.tolist()))
        t = int(timesteps[0])
        rows = []
        for image, label in zip(x_t, class_labels.tolist(), strict=True):
            shifted = Gaussian(self.gaussian.mean + self.shifts[label], self.gaussian.covariance)
            rows.append(shifted.eps(self.schedule, image[None], t))
        return torch.cat(rows)


@pytest.fixture
def gaussian() -> Gaussian:
    """Correlated, with unequal variances and a mean that is not 0."""
    root = torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.3, 0.0], [-0.3, 0.1, 0.8]], dtype=torch.float64)
    return Gaussian(torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64), root @ root.T)


@pytest.fixture
def gaussian_denoiser() -> type[GaussianDenoiser]:
    return GaussianDenoiser


def classifier_guided(
    eps_fn: EpsFn, guide: nn.Module, labels: Tensor, scale: float, schedule: NoiseSchedule
) -> EpsFn:
    """``guided`` by the classifier alone."""
    return guided(eps_fn, guide, labels, schedule, classifier_scale=scale)


def measurement_guided(
    eps_fn: EpsFn,
    guide: nn.Module,
    labels: Tensor,
    setting: GuidanceSetting,
    schedule: NoiseSchedule,
    noise: Tensor | None = None,
) -> EpsFn:
    """``guided`` by a measurement alone."""
    return guided(eps_fn, guide, labels, schedule, setting=setting, noise=noise)


def sampler(
    networks: tuple[nn.Module, nn.Module | None],
    config: SamplingConfig,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int] = (1, 8, 8),
    prediction: str = "v",
    label_dropout: float = 0.0,
    **options,
) -> Sampler:
    """A Sampler of bare networks, (denoiser, guide)."""
    denoiser, guide = networks
    facts = DenoiserConfig(prediction=prediction, label_dropout=label_dropout)
    classes = denoiser.num_class_embeds - 1
    trained = TrainedDenoiser(denoiser, facts, schedule, classes, shape)
    return Sampler(trained, guide, config, **options)


def give_every_weight_influence(*networks: nn.Module, seed: int = 0) -> None:
    """Random numbers for weights that start at zero, so that every input has an influence."""
    numbers = torch.Generator().manual_seed(seed)
    for network in networks:
        for parameter in network.parameters():
            if not bool(parameter.any()):
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=numbers)
