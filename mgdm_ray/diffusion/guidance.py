"""Guidance: wrappers around the denoiser's eps. The samplers know nothing of them."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mgdm_ray.config import MEASUREMENTS as KNOWN_NAMES
from mgdm_ray.config import GuidanceSetting, require_known
from mgdm_ray.diffusion.ddim import EpsFn
from mgdm_ray.diffusion.schedule import NoiseSchedule

Measurement = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""M(logits float64 [N, K], x_t [N, C, H, W], t, labels int64 [N]) -> [N], one number per image.

Differentiable in logits and x_t; the value of an image must not depend on its batch mates.
"""

MEASUREMENTS: dict[str, Measurement] = {}


def register_measurement(name: str) -> Callable[[Measurement], Measurement]:
    """Decorator: makes a measurement known under ``name``; ValueError if the name is taken.

    A GuidanceSetting made afterwards may name it.
    """

    def register(measurement: Measurement) -> Measurement:
        if name in MEASUREMENTS:
            raise ValueError(f"measurement {name!r} is already registered")
        MEASUREMENTS[name] = measurement
        if name not in KNOWN_NAMES:
            KNOWN_NAMES.append(name)
        return measurement

    return register


@register_measurement("entropy")
def entropy(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """H(p) / log K, in [0, 1]: the same scale for every number of classes."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / torch.tensor(float(logits.shape[1])).log().item()


@register_measurement("margin")
def margin(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """-(p1 - p2), the two largest probabilities; in [-1, 0]."""
    top = logits.log_softmax(dim=1).topk(2, dim=1).values.exp()
    return top[:, 1] - top[:, 0]


@register_measurement("least_confidence")
def least_confidence(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """-max p, in [-1, -1/K]."""
    return -logits.log_softmax(dim=1).amax(dim=1).exp()


@register_measurement("energy")
def energy(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """-log sum exp(logits): high where the guide has seen little (Liu et al. 2020). Unbounded."""
    return -logits.logsumexp(dim=1)


def denoiser_eps(
    model: Callable[..., Tensor],
    labels: Tensor,
    schedule: NoiseSchedule,
    prediction: Literal["epsilon", "v"],
    *,
    null_label: int,
    guidance_scale: float = 1.0,
) -> EpsFn:
    """The model's eps under classifier-free guidance, eps_u + g (eps_c - eps_u).

    ``labels`` int64 `[N]` belong to the images the function will be called with. g = 1 costs one
    conditional and g = 0 one unconditional forward; any other g one forward of 2N images.
    """
    nobody = torch.full_like(labels, null_label)

    def predict(x_t: Tensor, t: int, conditions: Tensor) -> Tensor:
        timesteps = torch.full((len(x_t),), t, device=x_t.device)
        output = model(x_t, timesteps, class_labels=conditions)
        return output if prediction == "epsilon" else schedule.eps_from_v(x_t, t, output)

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        if guidance_scale == 1:
            return predict(x_t, t, labels)
        if guidance_scale == 0:
            return predict(x_t, t, nobody)
        both = predict(torch.cat([x_t, x_t]), t, torch.cat([labels, nobody]))
        eps_c, eps_u = both.chunk(2)
        # Ho & Salimans 2022, eq. 6 with g = 1 + w
        return eps_u + guidance_scale * (eps_c - eps_u)

    return eps_fn


def classifier_guided(
    eps_fn: EpsFn, guide: nn.Module, labels: Tensor, scale: float, schedule: NoiseSchedule
) -> EpsFn:
    """eps - sqrt(1 - alpha_bar_t) s grad log p(y | x_t): towards ``labels`` `[N]`.

    ``scale`` 0 returns ``eps_fn`` itself.
    """
    if scale == 0:
        return eps_fn

    def guided(x_t: Tensor, t: int) -> Tensor:
        _, sigma = schedule.coefficients(t, x_t)
        gradient = measurement_gradient(log_likelihood, guide, x_t, t, labels)
        # Dhariwal & Nichol 2021, algorithm 2
        return eps_fn(x_t, t) - sigma * scale * gradient

    return guided


def log_likelihood(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """log p(y | x_t) of each image's own label."""
    return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


def measurement_guided(
    eps_fn: EpsFn,
    guide: nn.Module,
    labels: Tensor,
    setting: GuidanceSetting,
    schedule: NoiseSchedule,
    noise: Tensor | None = None,
) -> EpsFn:
    """eps - sqrt(1 - alpha_bar_t) gamma grad M(x_t): ascends the measurement M.

    ``setting.gradient``: ``raw`` is that formula. ``normalised`` takes only the gradient's
    direction, image by image, and moves pred_x0 by gamma sqrt(1 - alpha_bar_t) (root mean square
    over pixels in [-1, 1]; a zero gradient stays zero). With alpha_bar = cos^2(a), a DDIM step
    from a to b then moves the sample by gamma sin(a - b): all steps together by at most
    gamma pi / 2, whatever their number, the schedule, the dataset or the image size (as long as
    the denoiser's v does not answer to the push; its answer comes on top).

    ``noise`` `[N, C, H, W]` replaces the direction of the whole term, image by image and at every
    t, and keeps its norm: the control for "any push of that size".
    ``setting.label_scale`` beta > 0 ascends M + beta log p(y | x_t) instead of M, in the same
    forward and backward pass of the guide: uncertain, but still of its class. ``setting.interval``
    holds the timesteps at which guidance acts; at others ``eps_fn`` alone is asked. gamma 0
    returns ``eps_fn`` itself.
    """
    if setting.uncertainty_scale == 0:
        return eps_fn
    first, last = setting.interval
    name = require_known(setting.measurement, "measurement", MEASUREMENTS)
    measurement = MEASUREMENTS[name]

    def target(logits: Tensor, x_t: Tensor, t: int, y: Tensor) -> Tensor:
        value = measurement(logits, x_t, t, y)
        if setting.label_scale:
            value = value + setting.label_scale * log_likelihood(logits, x_t, t, y)
        return value

    def guided(x_t: Tensor, t: int) -> Tensor:
        eps = eps_fn(x_t, t)
        if not first <= t <= last:
            return eps
        signal, sigma = schedule.coefficients(t, x_t)
        term = measurement_gradient(target, guide, x_t, t, labels)
        if setting.gradient == "normalised":
            # pred_x0 = (x_t - sigma eps) / signal: this eps term moves it by gamma sigma rms 1
            term = signal * unit(term) * math.sqrt(x_t[0].numel())
        else:
            term = sigma * term
        if noise is not None:
            term = unit(noise) * norm(term)
        return eps - setting.uncertainty_scale * term

    return guided


def measurement_gradient(
    measurement: Measurement, guide: nn.Module, x_t: Tensor, t: int, labels: Tensor
) -> Tensor:
    """grad of M with respect to x_t, `[N, C, H, W]`; every image's own, in one backward pass.

    The guide must be in eval mode: only then are images of one batch independent. Logits go to
    float64, because a float32 softmax of a confident guide is exactly 0 and 1: no gradient.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        timesteps = torch.full((len(x),), t, device=x.device)
        values = measurement(guide(x, timesteps).double(), x, t, labels)
        gradient: Tensor = torch.autograd.grad(values.sum(), x)[0]
    return gradient


def norm(images: Tensor) -> Tensor:
    """Euclidean norm of each image, `[N, 1, 1, 1]`."""
    dims = tuple(range(1, images.ndim))
    length: Tensor = torch.linalg.vector_norm(images, dim=dims, keepdim=True)
    return length


def unit(images: Tensor) -> Tensor:
    """Each image divided by its norm; an all-zero image stays zero.

    Divided by its largest pixel first: the squares of gradients below 1e-23 vanish in float32.
    """
    dims = tuple(range(1, images.ndim))
    largest = images.abs().amax(dim=dims, keepdim=True)
    scaled = images / torch.where(largest == 0, 1, largest)
    length = norm(scaled)
    return scaled / torch.where(length == 0, 1, length)


def _import_plugins() -> None:
    """Modules named in MGDM_PLUGINS (comma-separated): they register measurements of users.

    An environment variable and no key of the study file: a study file never runs code.
    """
    for name in os.environ.get("MGDM_PLUGINS", "").split(","):
        if name.strip():
            importlib.import_module(name.strip())


_import_plugins()  # the last statement: plugins import this module
