"""Which distribution a guided process reaches: on a mixture where all is known in closed form.

``docs/method.md`` states what is verified here.
"""

from __future__ import annotations

import math

import pytest
import torch

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.diffusion.guidance import MEASUREMENTS
from tests.diffusion.conftest import classifier_guided, measurement_guided
from tests.diffusion.mixture import GRID, SCHEDULE, TWO_CLASSES, distance, quantiles, sampled

LABELS = torch.ones(2000, dtype=torch.int64)
JOINT = TWO_CLASSES.log_joint(GRID, 1.0)
LOG_P, LOG_POSTERIOR = JOINT.logsumexp(dim=1), JOINT.log_softmax(dim=1)[:, 1]


def unconditional(x, t):
    return TWO_CLASSES.eps(x, t)


def conditional(x, t):
    return TWO_CLASSES.eps(x, t, 1)


def test_unguided_sampling_reaches_the_mixture():
    """Catches a mixture, a quantile or a sampler that is wrong: all else here rests on them."""
    assert distance(sampled(unconditional), quantiles(LOG_P)) < 0.005
    assert distance(sampled(conditional), quantiles(JOINT[:, 1])) < 0.02


def test_classifier_guidance_of_scale_one_reaches_the_class():
    """Bayes: grad log p(y | x_t) is consistent over t, so that p(x) p(y | x) is reached exactly."""
    guided = classifier_guided(unconditional, TWO_CLASSES.guide, LABELS, 1.0, SCHEDULE)
    target = quantiles(LOG_P + LOG_POSTERIOR)
    assert distance(target, quantiles(LOG_P)) > 1.5  # far from where it started
    assert distance(sampled(guided), target) < 0.02


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_classifier_free_guidance_is_classifier_guidance_by_the_exact_classifier(scale):
    """eps_u + s (eps_c - eps_u) = eps_u - sigma s grad log p(y | x_t): the same process."""
    by_classifier = classifier_guided(unconditional, TWO_CLASSES.guide, LABELS, scale, SCHEDULE)

    def free(x, t):
        return unconditional(x, t) + scale * (conditional(x, t) - unconditional(x, t))

    torch.testing.assert_close(sampled(by_classifier), sampled(free), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_stronger_classifier_guidance_overshoots(scale):
    """p(y | x_t)^s is not consistent for s > 1: samples leave p(x) p(y | x)^s for the far side of
    the class. Catches documentation that promises the tilted distribution."""
    guided = classifier_guided(unconditional, TWO_CLASSES.guide, LABELS, scale, SCHEDULE)
    samples, target = sampled(guided), quantiles(LOG_P + scale * LOG_POSTERIOR)
    assert distance(samples, target) > 0.3
    assert float(samples.mean()) > float(target.mean())


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_consistent_measurement_guidance_reaches_the_tilted_distribution(gamma):
    """Guided by h_t(x) = log E[exp(gamma M(x_0)) | x_t = x] in place of gamma M(x_t),
    the process reaches p(x) exp(gamma M(x)). Guided by M(x_t) it does not, by the error stated."""
    coarse = GRID[::20]
    tilt = gamma * MEASUREMENTS["entropy"](TWO_CLASSES.log_joint(coarse, 1.0), coarse, 0, LABELS)
    log_tilted = TWO_CLASSES.log_joint(coarse, 1.0)[:, 1] + tilt

    def eps_of_tilted(x_t, t):
        """eps - sigma grad h_t by quadrature: p_t exp(h_t) is the tilted distribution, noised."""
        a = SCHEDULE.alpha_bar(t)
        with torch.enable_grad():
            x = x_t.detach().flatten().requires_grad_()
            square = (x[:, None] - math.sqrt(a) * coarse) ** 2 / (2 * (1 - a))
            log_p = torch.logsumexp(log_tilted - square, dim=1)
            [score] = torch.autograd.grad(log_p.sum(), x)
        return (-math.sqrt(1 - a) * score).reshape(x_t.shape)

    fine = gamma * MEASUREMENTS["entropy"](JOINT, GRID, 0, LABELS)
    target = quantiles(JOINT[:, 1] + fine, 100)
    assert distance(sampled(eps_of_tilted, 100, steps=250), target) < 0.05

    setting = GuidanceSetting(measurement="entropy", uncertainty_scale=gamma, gradient="raw")
    guided = measurement_guided(conditional, TWO_CLASSES.guide, LABELS, setting, SCHEDULE)
    assert distance(sampled(guided, 100, steps=250), target) > 0.2


def test_measurement_guidance_moves_towards_uncertainty():
    """Catches a sign: the share of samples of which the classifier is unsure rises with gamma."""
    shares = []
    for gamma in (0.0, 1.0, 2.0, 4.0):
        setting = GuidanceSetting(measurement="entropy", uncertainty_scale=gamma, gradient="raw")
        guided = measurement_guided(conditional, TWO_CLASSES.guide, LABELS, setting, SCHEDULE)
        logits = TWO_CLASSES.log_joint(sampled(guided), 1.0)
        unsure = MEASUREMENTS["entropy"](logits, logits, 0, LABELS) > 0.5
        shares.append(float(unsure.double().mean()))
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.5
