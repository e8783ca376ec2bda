"""Guidance: wrappers around the denoiser's eps. The samplers know nothing of them."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mgdm_ray.config import MEASUREMENTS as KNOWN_NAMES
from mgdm_ray.config import MEMBER_MEASUREMENTS, GuidanceSetting, require_known
from mgdm_ray.diffusion.samplers import EpsFn
from mgdm_ray.diffusion.schedule import NoiseSchedule

Measurement = Callable[[Tensor, Tensor, int, Tensor], Tensor]
"""M(logits float64 [N, K], x_t [N, C, H, W], t, labels int64 [N]) -> [N], one number per image.

Registered with ``members`` it gets logits [S, N, K], one per dropout mask of the guide.
Differentiable in logits and x_t; an image's value must not depend on its batch mates.
"""

MEASUREMENTS: dict[str, Measurement] = {}


def register_measurement(
    name: str, *, members: bool = False
) -> Callable[[Measurement], Measurement]:
    """Decorator: register a measurement as ``name``; ValueError if the name is taken.

    ``members`` asks for the logits under each dropout mask of the guide (needs ``guide.dropout``).
    """

    def register(measurement: Measurement) -> Measurement:
        if name in MEASUREMENTS:
            raise ValueError(f"measurement {name!r} is already registered")
        MEASUREMENTS[name] = measurement
        if name not in KNOWN_NAMES:
            KNOWN_NAMES.append(name)
        if members and name not in MEMBER_MEASUREMENTS:
            MEMBER_MEASUREMENTS.append(name)
        return measurement

    return register


@register_measurement("entropy")
def entropy(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """H(p) / log K, in [0, 1] for every number of classes."""
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
    """-log sum exp(logits): high for images unlike the training data (Liu et al. 2020).
    Unbounded."""
    return -logits.logsumexp(dim=1)


@register_measurement("mutual_information", members=True)
def mutual_information(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """(H(mean p) - mean H(p)) / log K over the members, in [0, 1]; logits `[S, N, K]`.

    High where members disagree, not where all are undecided (BALD: Houlsby et al. 2011; by Monte
    Carlo dropout: Gal, Islam & Ghahramani 2017, section 3).
    """
    log_p = logits.log_softmax(dim=2)
    log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    # as mean KL(p_s || mean p), to avoid a difference of near equals
    divergence = (log_p.exp() * (log_p - log_mean)).sum(dim=2)
    return divergence.mean(dim=0) / math.log(logits.shape[2])


def denoiser_eps(
    model: Callable[..., Tensor],
    labels: Tensor,
    schedule: NoiseSchedule,
    prediction: Literal["epsilon", "v"],
    *,
    null_label: int,
    guidance_scale: float = 1.0,
    interval: tuple[int, int] = (0, 999),
) -> EpsFn:
    """eps under classifier-free guidance, eps_u + g (eps_c - eps_u); outside of ``interval`` eps_c.

    ``labels`` int64 `[N]` are those of the images it is called with. g = 0 and 1 cost one forward
    of N images, any other g one of 2N.
    """
    nobody = torch.full_like(labels, null_label)

    def predict(x_t: Tensor, t: int, conditions: Tensor) -> Tensor:
        timesteps = torch.full((len(x_t),), t, device=x_t.device)
        output = model(x_t, timesteps, class_labels=conditions)
        return output if prediction == "epsilon" else schedule.eps_from_v(x_t, t, output)

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        if guidance_scale == 1 or not interval[0] <= t <= interval[1]:
            return predict(x_t, t, labels)
        if guidance_scale == 0:
            return predict(x_t, t, nobody)
        both = predict(torch.cat([x_t, x_t]), t, torch.cat([labels, nobody]))
        eps_c, eps_u = both.chunk(2)
        # Ho & Salimans 2022, eq. 6 with g = 1 + w
        return eps_u + guidance_scale * (eps_c - eps_u)

    return eps_fn


def guided(
    eps_fn: EpsFn,
    guide: nn.Module,
    labels: Tensor,
    schedule: NoiseSchedule,
    *,
    classifier_scale: float = 0.0,
    setting: GuidanceSetting | None = None,
    noise: Tensor | None = None,
    strengths: Tensor | None = None,
) -> EpsFn:
    """eps under classifier guidance towards ``labels`` `[N]` and measurement guidance, together:

        eps - sqrt(1 - alpha_bar_t) (s grad log p(y | x_t) + gamma grad M(x_t))

    s is ``classifier_scale``, gamma ``setting.uncertainty_scale``; with both 0 ``eps_fn`` itself
    is returned. ``setting.label_scale`` beta > 0 ascends M + beta log p(y | x_t) instead of M;
    ``setting.gradient`` scales the gradient (see ``_scaled``), ``setting.over_t`` gamma, and
    outside ``setting.interval`` the measurement is off. ``noise`` `[N, C, H, W]` replaces the
    direction of the measurement term at every t and keeps its norm: the control. ``strengths``
    `[N]` replace gamma, image by image. A step costs one forward of ``eps_fn``, one of the guide
    and one backward; two where s and gamma are both on, unless gradients are raw.
    """
    towards = eps_fn
    if classifier_scale != 0:
        towards = _towards_labels(eps_fn, guide, labels, schedule, classifier_scale)
    if setting is None or (setting.uncertainty_scale == 0 and strengths is None):
        return towards
    name = require_known(setting.measurement, "measurement", MEASUREMENTS)
    first, last = setting.levels
    # The sum of raw terms is the gradient of one function, in which s is a weight beside beta.
    linear = setting.gradient == "raw" and noise is None and strengths is None

    def eps_of(x_t: Tensor, t: int) -> Tensor:
        if not first <= t <= last:
            return towards(x_t, t)
        eps = eps_fn(x_t, t)
        signal, sigma = schedule.coefficients(t, x_t)
        a = schedule.alpha_bar(t)
        share = math.sqrt({"constant": 1.0, "signal": a, "noise": 1 - a}[setting.over_t])
        beta = setting.label_scale
        if linear:
            beta += classifier_scale / (setting.uncertainty_scale * share)
        separate = classifier_scale != 0 and not linear
        term, *likelihood = _ascents(guide, x_t, t, labels, name, beta, separate)
        term = _scaled(term, setting, eps, signal, sigma)
        if noise is not None:
            term = unit(noise) * norm(term)
        gamma: Tensor | float = setting.uncertainty_scale
        if strengths is not None:
            gamma = strengths.to(term).reshape(-1, *[1] * (x_t.ndim - 1))
        result = eps - share * gamma * term
        for gradient in likelihood:
            result = result - sigma * classifier_scale * gradient
        return result

    return eps_of


def _ascents(
    guide: nn.Module, x_t: Tensor, t: int, labels: Tensor, name: str, beta: float, separate: bool
) -> list[Tensor]:
    """grad (M + beta log p(y | x_t)), M the measurement ``name``; and grad log p(y | x_t), if
    ``separate``."""

    def values(x: Tensor, logits: Tensor, asked: Tensor) -> list[Tensor]:
        value = MEASUREMENTS[name](asked, x, t, labels)
        if beta:
            value = value + beta * log_likelihood(logits, x, t, labels)
        return [value, log_likelihood(logits, x, t, labels)] if separate else [value]

    return gradients(values, guide, x_t, t, members=name in MEMBER_MEASUREMENTS)


def _scaled(
    gradient: Tensor, setting: GuidanceSetting, eps: Tensor, signal: Tensor, sigma: Tensor
) -> Tensor:
    """The eps term of ``gradient`` `[N, C, H, W]` for gamma = 1; a zero gradient stays zero.

    ``raw``: the published formula. ``normalised``: moves pred_x0 by sqrt(1 - alpha_bar_t), root
    mean square over pixels; with alpha_bar = cos^2(a) a DDIM step from a to b then moves the
    sample by gamma sin(a - b), all steps together by at most gamma pi / 2. ``relative``: as long
    as ``eps``; moves pred_x0 by sqrt(1 / alpha_bar_t - 1), up to 160 near pure noise.
    """
    if setting.gradient == "normalised":
        # pred_x0 = (x_t - sigma eps) / signal: this eps term moves it by gamma sigma rms 1
        return signal * unit(gradient) * math.sqrt(gradient[0].numel())
    if setting.gradient == "relative":
        return unit(gradient) * norm(eps)
    return sigma * gradient


def _towards_labels(
    eps_fn: EpsFn, guide: nn.Module, labels: Tensor, schedule: NoiseSchedule, scale: float
) -> EpsFn:
    """Classifier guidance alone."""

    def eps_of(x_t: Tensor, t: int) -> Tensor:
        _, sigma = schedule.coefficients(t, x_t)
        gradient = measurement_gradient(log_likelihood, guide, x_t, t, labels)
        # Dhariwal & Nichol 2021, algorithm 2
        return eps_fn(x_t, t) - sigma * scale * gradient

    return eps_of


def log_likelihood(logits: Tensor, x_t: Tensor, t: int, labels: Tensor) -> Tensor:  # noqa: ARG001
    """log p(y | x_t) of each image's own label."""
    return logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


def gradients(
    values: Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]],
    guide: nn.Module,
    x_t: Tensor,
    t: int,
    *,
    members: bool = False,
) -> list[Tensor]:
    """grad with respect to x_t, `[N, C, H, W]`, of each of ``values``, which are `[N]`.

    ``values`` gets (x_t, logits `[N, K]`, what a measurement is asked with: with ``members`` the
    logits `[S, N, K]` under each dropout mask, else the same logits). One forward of the guide and
    one backward per value. The guide must be in eval mode: only then are the images of a batch
    independent. ValueError if ``members`` are asked of a guide without dropout.
    """
    masks = getattr(guide, "member_masks", None)
    if members and masks is None:
        raise ValueError("this measurement needs a guide with dropout; set guide.dropout above 0")
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        timesteps = torch.full((len(x),), t, device=x.device)
        # float64: a float32 softmax of a confident guide is exactly 0 and 1, without gradient.
        if members:
            logits = guide(x, timesteps, masks).double()
            found = values(x, logits[0], logits[1:])
        else:
            logits = guide(x, timesteps).double()
            found = values(x, logits, logits)
        last = len(found) - 1
        return [
            torch.autograd.grad(value.sum(), x, retain_graph=index < last)[0]
            for index, value in enumerate(found)
        ]


def measurement_gradient(
    measurement: Measurement,
    guide: nn.Module,
    x_t: Tensor,
    t: int,
    labels: Tensor,
    *,
    members: bool = False,
) -> Tensor:
    """grad of M with respect to x_t, `[N, C, H, W]`; each image's own, in one backward pass."""

    def value(x: Tensor, _logits: Tensor, asked: Tensor) -> list[Tensor]:
        return [measurement(asked, x, t, labels)]

    return gradients(value, guide, x_t, t, members=members)[0]


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
    """Import the modules named in MGDM_PLUGINS (comma-separated), which register measurements.

    An environment variable, not a key: a study file never runs code.
    """
    for name in os.environ.get("MGDM_PLUGINS", "").split(","):
        if name.strip():
            importlib.import_module(name.strip())


_import_plugins()  # the last statement: plugins import this module
