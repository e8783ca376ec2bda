"""Whole guided chains against the distributions that they should reach."""

from __future__ import annotations

import pytest
import torch

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.diffusion import guidance
from mgdm_ray.diffusion.guidance import MEASUREMENTS, denoiser_eps, register_measurement
from mgdm_ray.diffusion.samplers import sample
from mgdm_ray.diffusion.schedule import timestep_pairs
from tests.diffusion.conftest import classifier_guided, measurement_guided
from tests.diffusion.guides import BOUNDED, SCHEDULE, QuadraticGuide, images, setting


@pytest.mark.parametrize(("scale", "batches"), [(0, [2]), (1, [2]), (2.5, [4])])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_classifier_free_guidance(scale, batches, prediction):
    """Catches a swapped chunk, w for g = 1 + w, a wasted forward and eps mixed with v."""
    seen: list[int] = []

    def model(x_t, timesteps, class_labels):
        seen.append(len(x_t))
        assert timesteps.tolist() == [600] * len(x_t)
        return x_t * (1 + class_labels.reshape(-1, 1, 1, 1))

    x, labels = images(2), torch.tensor([0, 2])
    eps_fn = denoiser_eps(model, labels, SCHEDULE, prediction, null_label=5, guidance_scale=scale)
    conditional = x * (1 + labels.reshape(-1, 1, 1, 1))
    unconditional = x * 6
    if prediction == "v":
        conditional, unconditional = (
            SCHEDULE.eps_from_v(x, 600, v) for v in (conditional, unconditional)
        )
    expected = (1 - scale) * unconditional + scale * conditional
    torch.testing.assert_close(eps_fn(x, 600), expected)
    assert seen == batches


def test_classifier_free_guidance_within_an_interval(gaussian, gaussian_denoiser):
    """Catches an interval that is turned round or open at its ends, a level outside of it without
    its label, and a second forward there."""
    labels, x = torch.tensor([0, 1]), torch.randn(2, 1, 1, 3).double()
    model = gaussian_denoiser(gaussian, SCHEDULE, [0.5, -0.5, 0.0])

    def eps_of(scale, **given):
        return denoiser_eps(
            model, labels, SCHEDULE, "epsilon", null_label=2, guidance_scale=scale, **given
        )

    within = eps_of(3.0, interval=(100, 700))
    for t in (0, 99, 100, 700, 701, 999):
        model.calls.clear()
        found, inside = within(x, t), 100 <= t <= 700
        assert model.calls == [(t, [0, 1, 2, 2] if inside else [0, 1])]
        torch.testing.assert_close(found, eps_of(3.0 if inside else 1.0)(x, t))


def test_classifier_guidance_samples_the_posterior():
    """Gaussian prior x Gaussian likelihood: catches any wrong factor in classifier guidance.

    At scale 1 the guided score is exactly the score of p(x_t | y), so that sampling must give the
    posterior's mean and standard deviation.
    """
    guide, pairs = QuadraticGuide(), timestep_pairs(1000, 1000)
    x_T = torch.tensor([-1.0, 0.0, 1.0]).double().reshape(-1, 1, 1, 1)
    guided = classifier_guided(guide.eps, guide, torch.ones(3).long(), 1.0, SCHEDULE)
    low, middle, high = sample(guided, x_T, pairs, SCHEDULE).flatten().tolist()
    mean, spread = guide.posterior()
    assert middle == pytest.approx(mean, abs=5e-3)
    assert (high - low) / 2 == pytest.approx(spread, rel=1e-2)
    free = sample(guide.eps, x_T, pairs, SCHEDULE).flatten().tolist()
    assert free[1] == pytest.approx(guide.mean, abs=5e-3)


def test_measurement_guidance_samples_the_tilted_density(monkeypatch):
    """A user's own M = log p(y | x_t) must do, at gamma = 1 and raw, what the classifier does.

    Catches a measurement path that differs from the classifier path in sign or size.
    """
    monkeypatch.setattr(guidance, "MEASUREMENTS", dict(MEASUREMENTS))

    @register_measurement("log_likelihood")
    def log_likelihood(logits, _x_t, _t, labels):
        return logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]

    guide, labels = QuadraticGuide(), torch.ones(3).long()
    own = GuidanceSetting.model_construct(
        measurement="log_likelihood", uncertainty_scale=1.0, gradient="raw"
    )
    x = torch.tensor([-1.0, 0.2, 1.0]).double().reshape(-1, 1, 1, 1)
    by_measurement = measurement_guided(guide.eps, guide, labels, own, SCHEDULE)
    by_classifier = classifier_guided(guide.eps, guide, labels, 1.0, SCHEDULE)
    for t in (0, 300, 999):
        torch.testing.assert_close(by_measurement(x, t), by_classifier(x, t))


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("gradient", ["raw", "normalised"])
def test_guided_samples_are_less_certain(name, gradient):
    """Catches descent instead of ascent: a boundary at 0 must attract, the more the stronger."""
    prior, pairs = QuadraticGuide(), timestep_pairs(1000, 200)

    def guide(x, _timesteps):
        return torch.cat([torch.zeros(len(x), 1), 2 * x.flatten(1)], dim=1)

    x_T = torch.tensor([0.2, 0.8, 1.4]).double().reshape(-1, 1, 1, 1)
    distances = []
    for scale in (0, 0.1, 0.3):
        chosen = setting(name, scale * (1 if gradient == "normalised" else 10), gradient)
        eps_fn = measurement_guided(prior.eps, guide, torch.zeros(3).long(), chosen, SCHEDULE)
        distances.append(float(sample(eps_fn, x_T, pairs, SCHEDULE).abs().mean()))
    assert distances[0] > distances[1] > distances[2], distances
