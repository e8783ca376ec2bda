"""A one-dimensional mixture of Gaussians with classes: every score and posterior in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mgdm_ray.diffusion.samplers import EpsFn, sample_second_order
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs

SCHEDULE = make_schedule("cosine")
GRID = torch.linspace(-8, 8, 16_001, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Component k: class ``classes[k]``, N(``means[k]``, ``sds[k]``^2), weight ``weights[k]``."""

    classes: tuple[int, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]
    weights: tuple[float, ...]

    def log_joint(self, x: Tensor, alpha_bar: float) -> Tensor:
        """log p_t(x, y) `[N, K]` of ``x`` `[N]`; alpha_bar = 1 is the data itself."""
        rows = []
        for label in sorted(set(self.classes)):
            parts = []
            for c, mean, sd, weight in zip(
                self.classes, self.means, self.sds, self.weights, strict=True
            ):
                if c == label:
                    variance = alpha_bar * sd**2 + 1 - alpha_bar
                    square = (x - math.sqrt(alpha_bar) * mean) ** 2
                    norm = math.log(weight) - 0.5 * math.log(2 * math.pi * variance)
                    parts.append(norm - square / (2 * variance))
            rows.append(torch.stack(parts).logsumexp(dim=0))
        return torch.stack(rows, dim=1)

    def eps(self, x_t: Tensor, t: int, label: int | None = None) -> Tensor:
        """The optimal denoiser, of one class or of all: -sqrt(1 - a) grad log p_t."""
        a = SCHEDULE.alpha_bar(t)
        with torch.enable_grad():
            x = x_t.detach().flatten().requires_grad_()
            joint = self.log_joint(x, a)
            log_p = joint.logsumexp(dim=1) if label is None else joint[:, label]
            [score] = torch.autograd.grad(log_p.sum(), x)
        return (-math.sqrt(1 - a) * score).reshape(x_t.shape)

    def guide(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The exact noisy classifier: logits log p_t(x, y)."""
        return self.log_joint(x_t.flatten(), SCHEDULE.alpha_bar(int(timesteps[0])))


TWO_CLASSES = Mixture(
    classes=(0, 0, 1, 1),
    means=(-2.2, -0.8, 0.9, 2.4),
    sds=(0.45, 0.5, 0.5, 0.4),
    weights=(0.3, 0.25, 0.25, 0.2),
)


def sampled(eps_fn: EpsFn, count: int = 2000, steps: int = 500) -> Tensor:
    """Quantiles `[count]` of what the sampler makes of N(0, 1).

    The flow of an ODE on a line keeps the order, so the quantiles of the noise become those of the
    samples: no random error.
    """
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x_T = math.sqrt(2) * torch.erfinv(2 * levels - 1)
    pairs = timestep_pairs(1000, steps)
    return sample_second_order(eps_fn, x_T.reshape(-1, 1, 1, 1), pairs, SCHEDULE).flatten()


def quantiles(log_density: Tensor, count: int = 2000) -> Tensor:
    """Quantiles `[count]` of a density known up to a factor on GRID."""
    density = (log_density - log_density.max()).exp()
    cdf = torch.cumsum(density, dim=0) / density.sum()
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return GRID[torch.searchsorted(cdf, levels)]


def distance(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two distributions given by their quantiles."""
    return float((a - b).abs().mean())
