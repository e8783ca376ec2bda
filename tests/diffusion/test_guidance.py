"""One guided step against its formula: strength, direction, interval, batches and cost."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from mgdm_ray.config import UNetConfig
from mgdm_ray.diffusion import guidance
from mgdm_ray.diffusion.guidance import MEASUREMENTS, denoiser_eps, guided, measurement_gradient
from mgdm_ray.diffusion.samplers import sample
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs
from mgdm_ray.diffusion.unet import build_guide
from tests.diffusion.conftest import classifier_guided, measurement_guided
from tests.diffusion.guides import NAMES, SCHEDULE, LinearGuide, images, setting, small_guide


def test_scale_zero_is_the_same_function():
    """Catches 0 * gradient, which is not bit-equal and costs a backward pass."""

    def eps_fn(x, _t):
        return x

    guide, labels = LinearGuide(2), torch.zeros(2).long()
    assert classifier_guided(eps_fn, guide, labels, 0, SCHEDULE) is eps_fn
    for gradient in ("raw", "normalised"):
        off = setting("entropy", 0, gradient)
        assert measurement_guided(eps_fn, guide, labels, off, SCHEDULE) is eps_fn


@pytest.mark.parametrize("t", [0, 400, 999])
def test_raw_guidance_is_the_published_formula(t):
    """Catches a lost sqrt(1 - alpha_bar), a wrong sign or a gradient of the mean over the batch."""
    guide, x, labels = LinearGuide(3), images(4), torch.zeros(4).long()
    guided = measurement_guided(
        lambda x, _t: 2 * x, guide, labels, setting("entropy", 0.7), SCHEDULE
    )
    gradient = measurement_gradient(MEASUREMENTS["entropy"], guide, x, t, labels)
    expected = 2 * x - math.sqrt(1 - SCHEDULE.alpha_bar(t)) * 0.7 * gradient
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-12, atol=1e-12)


def test_margin_is_least_confidence_at_twice_the_scale_for_two_classes():
    """p1 - p2 = 2 max p - 1. Catches either measurement drifting from its definition."""
    guide, x, labels = LinearGuide(2), images(6), torch.zeros(6).long()

    def eps(name: str, scale: float, gradient: str) -> torch.Tensor:
        chosen = setting(name, scale, gradient)
        return measurement_guided(lambda x, _t: x, guide, labels, chosen, SCHEDULE)(x, 500)

    torch.testing.assert_close(eps("margin", 0.3, "raw"), eps("least_confidence", 0.6, "raw"))
    # normalised: only directions count, and for two classes all three point the same way
    torch.testing.assert_close(eps("margin", 0.3, "normalised"), eps("entropy", 0.3, "normalised"))


@pytest.mark.parametrize("name", NAMES)
def test_normalised_guidance_moves_pred_x0_by_gamma(name):
    """Catches a norm over the whole batch, and a push that depends on the size of eps."""
    x = images(5) * torch.tensor([0.1, 1, 5, 20, 100]).reshape(-1, 1, 1, 1)
    guide, labels = LinearGuide(4, size=0.01), torch.zeros(5).long()
    normalised = measurement_guided(
        lambda x, _t: x, guide, labels, setting(name, 0.25, "normalised"), SCHEDULE
    )
    push = (x - normalised(x, 300)).flatten(1)
    moved = SCHEDULE.pred_x0_from_eps(x, 300, normalised(x, 300))
    moved = (moved - SCHEDULE.pred_x0_from_eps(x, 300, x)).flatten(1)
    gradient = measurement_gradient(MEASUREMENTS[name], guide, x, 300, labels).flatten(1)
    rms = 0.25 * math.sqrt(1 - SCHEDULE.alpha_bar(300))
    torch.testing.assert_close(moved.square().mean(dim=1).sqrt(), torch.full((5,), rms).double())
    along = nn.functional.cosine_similarity(push, gradient)
    torch.testing.assert_close(along, torch.ones(5).double())


def test_relative_guidance_has_the_norm_of_eps():
    """Catches a norm over the batch, of x_t, or with the factor of another mode."""
    x = images(5) * torch.tensor([0.1, 1, 5, 20, 100]).reshape(-1, 1, 1, 1)
    guide, labels = LinearGuide(4, size=0.01), torch.zeros(5).long()
    for t in (0, 500, 999):
        chosen = setting("entropy", 0.25, "relative")
        eps = measurement_guided(lambda x, _t: 3 * x, guide, labels, chosen, SCHEDULE)(x, t)
        push = (3 * x - eps).flatten(1)
        torch.testing.assert_close(push.norm(dim=1), 0.25 * (3 * x).flatten(1).norm(dim=1))
        gradient = measurement_gradient(MEASUREMENTS["entropy"], guide, x, t, labels).flatten(1)
        along = nn.functional.cosine_similarity(push, gradient)
        torch.testing.assert_close(along, torch.ones(5).double())


@pytest.mark.parametrize("gradient", ["raw", "normalised", "relative"])
def test_gamma_follows_its_schedule_over_t(gradient):
    """Catches signal and noise exchanged, alpha_bar for its root, and a factor on all of eps."""
    guide, x, labels = LinearGuide(3), images(4), torch.zeros(4).long()

    def push(over_t, t):
        chosen = setting("entropy", 0.7, gradient).model_copy(update={"over_t": over_t})
        return x - measurement_guided(lambda x, _t: x, guide, labels, chosen, SCHEDULE)(x, t)

    for t in (0, 300, 999):
        a = SCHEDULE.alpha_bar(t)
        factors = {"signal": a**0.5, "noise": (1 - a) ** 0.5}
        for over_t, factor in factors.items():
            expected = factor * push("constant", t)
            torch.testing.assert_close(push(over_t, t), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 25, 200])
def test_all_steps_together_move_a_sample_by_at_most_gamma_half_pi(schedule, steps):
    """Catches a strength that means something else for every schedule and number of steps."""
    table, pairs = make_schedule(schedule), timestep_pairs(1000, steps)

    def no_velocity(x, t):
        return table.eps_from_v(x, t, torch.zeros_like(x))

    chosen, labels = setting("entropy", 0.2, "normalised"), torch.zeros(1).long()
    guided = measurement_guided(
        no_velocity, LinearGuide(2, size=1e-3), labels, chosen, table, images(1)
    )
    x_T = images(1, seed=9)
    moved = sample(guided, x_T, pairs, table) - sample(no_velocity, x_T, pairs, table)
    # With v fixed, x_to = cos(a - b) x - sin(a - b) v: an earlier push only shrinks.
    angles = [math.acos(math.sqrt(table.alpha_bar(t))) for t, _ in pairs] + [0.0]
    total = 0.0
    for a, b in itertools.pairwise(angles):
        total = total * math.cos(a - b) + 0.2 * math.sin(a - b)
    assert float(moved.square().mean().sqrt()) == pytest.approx(total, rel=1e-6)
    assert 0.1 < total <= 0.2 * math.pi / 2


def test_tiny_gradients_are_scaled_and_zero_stays_zero():
    """Catches 0 / 0 = NaN, and float32 norms that underflow to 0 for gradients near 1e-30."""
    tiny = torch.zeros(2, 1, 2, 2)
    tiny[0] = torch.tensor([[3e-30, 4e-30], [0, 0]])
    scaled = guidance.unit(tiny)
    torch.testing.assert_close(scaled[0].flatten(), torch.tensor([0.6, 0.8, 0, 0]))
    assert torch.equal(scaled[1], torch.zeros(1, 2, 2))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(flat[1].weight)
    x = images(2, dtype=torch.float32)
    guided = measurement_guided(
        lambda x, _t: x,
        lambda x, _t: flat(x),
        torch.zeros(2).long(),
        setting("entropy", 1, "normalised"),
        SCHEDULE,
    )
    assert torch.equal(guided(x, 10), x)


@pytest.mark.parametrize("gradient", ["raw", "normalised"])
def test_random_direction_has_the_norm_of_the_guidance(gradient):
    """Catches a control that is weaker or stronger than what it controls for."""
    guide, x, labels = LinearGuide(3), images(4), torch.zeros(4).long()
    chosen = setting("margin", 0.4, gradient)

    def push(noise=None):
        guided = measurement_guided(lambda x, _t: x, guide, labels, chosen, SCHEDULE, noise)
        return (x - guided(x, 700)).flatten(1)

    real, control = push(), push(images(4, seed=700))
    torch.testing.assert_close(control.norm(dim=1), real.norm(dim=1))
    torch.testing.assert_close(
        nn.functional.cosine_similarity(control, images(4, seed=700).flatten(1)),
        torch.ones(4).double(),
    )


def test_label_scale_adds_the_label_in_one_pass():
    """Catches a label term of the wrong sign or weight, and a second pass of the guide for it."""
    calls = []
    linear, x, labels = LinearGuide(3), images(4), torch.tensor([0, 1, 2, 1])

    def guide(x_t, t):
        calls.append(1)
        return linear(x_t, t)

    chosen = setting("entropy", 0.7).model_copy(update={"label_scale": 2.0})
    eps = measurement_guided(lambda x, _t: x, guide, labels, chosen, SCHEDULE)(x, 300)
    assert len(calls) == 1
    parts = measurement_gradient(MEASUREMENTS["entropy"], linear, x, 300, labels)
    parts += 2.0 * measurement_gradient(guidance.log_likelihood, linear, x, 300, labels)
    expected = x - math.sqrt(1 - SCHEDULE.alpha_bar(300)) * 0.7 * parts
    torch.testing.assert_close(eps, expected, rtol=1e-12, atol=1e-12)


def test_guidance_acts_within_its_interval_only():
    """Catches an interval that is off by one, and a guide that is asked for nothing."""
    calls = []

    def guide(x_t, t):
        calls.append(int(t[0]))
        return LinearGuide(3)(x_t, t)

    chosen = setting("entropy", 0.7).model_copy(update={"interval": (100, 300)})
    x = images(2)
    guided = measurement_guided(lambda x, _t: x, guide, torch.zeros(2).long(), chosen, SCHEDULE)
    for t in (0, 99, 301, 999):
        assert guided(x, t) is x
    for t in (100, 200, 300):
        assert not torch.equal(guided(x, t), x)
    assert calls == [100, 200, 300]


def test_batch_mates_do_not_matter():
    """Catches any coupling of images: the real guide, each image alone and in company."""
    guide = build_guide(UNetConfig(channels=(16, 16), attention=(False, True)), 1, 3, "test").eval()
    x, labels = (
        torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3)),
        torch.arange(5) % 3,
    )
    together = measurement_gradient(MEASUREMENTS["entropy"], guide, x, 400, labels)
    for i in range(5):
        alone = measurement_gradient(
            MEASUREMENTS["entropy"], guide, x[i : i + 1], 400, labels[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-7)
    assert float(together.abs().max()) > 0


def test_disagreement_is_each_images_own_and_the_same_again():
    """Catches masks that are drawn anew, or per batch: guidance would differ from run to run."""
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(5) % 3
    measure = MEASUREMENTS["mutual_information"]

    def ask(guide, rows):
        return measurement_gradient(measure, guide, x[rows], 400, labels[rows], members=True)

    guide = small_guide(0.3)
    together = ask(guide, slice(0, 5))
    assert torch.equal(ask(guide, slice(0, 5)), together)
    assert torch.equal(ask(small_guide(0.3), slice(0, 5)), together)
    for i in range(5):
        alone = ask(guide, slice(i, i + 1))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-9)
    assert float(together.abs().max()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_plain_measurements_do_not_see_the_dropout(name):
    """Catches dropout left on while sampling: bit by bit the whole network's answer."""
    x, labels = images(4, dtype=torch.float32), torch.zeros(4).long()
    one, other = (
        measurement_gradient(MEASUREMENTS[name], small_guide(dropout), x, 300, labels)
        for dropout in (0.0, 0.5)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["entropy", "mutual_information"])
@pytest.mark.parametrize("gradient", ["raw", "normalised", "relative"])
@pytest.mark.parametrize("control", [False, True])
def test_all_guidance_together_costs_one_forward_of_the_guide(name, gradient, control):
    """Classifier-free, classifier, label and measurement: their sum, of one look at the guide.

    Catches nested wrappers that each ask the guide, and terms that change each other.
    """
    guide, asked, backward = small_guide(0.3), [], []
    guide.conv_in.register_forward_hook(lambda *_: asked.append(1))
    guide.conv_in.register_full_backward_hook(lambda *_: backward.append(1))
    x, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(3)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)) if control else None

    def model(x_t, _timesteps, class_labels):
        return x_t * (1 + 0.1 * class_labels.reshape(-1, 1, 1, 1))

    eps_fn = denoiser_eps(model, labels, SCHEDULE, "v", null_label=3, guidance_scale=2.0)
    chosen = setting(name, 0.3, gradient).model_copy(
        update={"label_scale": 0.5, "interval": (100, 800), "over_t": "signal"}
    )
    both = guided(
        eps_fn, guide, labels, SCHEDULE, classifier_scale=1.5, setting=chosen, noise=noise
    )
    by_label = classifier_guided(eps_fn, guide, labels, 1.5, SCHEDULE)
    by_measurement = measurement_guided(eps_fn, guide, labels, chosen, SCHEDULE, noise)
    for t in (50, 400, 900):
        asked.clear()
        backward.clear()
        together = both(x, t)
        single = not 100 <= t <= 800 or (gradient == "raw" and not control)
        assert (len(asked), len(backward)) == (1, 1 if single else 2)
        eps = eps_fn(x, t)
        expected = eps + (by_label(x, t) - eps) + (by_measurement(x, t) - eps)
        torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
        assert float((together - by_label(x, t)).abs().max() > 1e-6) == (100 <= t <= 800)


def test_guidance_leaves_no_gradients_behind():
    """Catches memory growth: under no_grad the result and the parameters carry no graph."""
    guide = LinearGuide(2)
    chosen = setting("entropy", 1)
    guided = measurement_guided(lambda x, _t: x, guide, torch.zeros(2).long(), chosen, SCHEDULE)
    with torch.no_grad():
        result = guided(images(2), 3)
    assert not result.requires_grad
    assert guide.weight.grad is None
