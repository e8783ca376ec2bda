"""Guidance against closed forms, finite differences and the identities between measurements."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgdm_ray import config
from mgdm_ray.config import GuidanceSetting, UNetConfig
from mgdm_ray.diffusion import guidance
from mgdm_ray.diffusion.guidance import (
    MEASUREMENTS,
    denoiser_eps,
    guided,
    measurement_gradient,
    register_measurement,
)
from mgdm_ray.diffusion.samplers import sample
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs
from mgdm_ray.diffusion.unet import build_guide
from tests.diffusion.conftest import classifier_guided, measurement_guided

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


# --- measurements ---------------------------------------------------------------------------


@given(logits=st.lists(st.floats(-60, 60), min_size=2, max_size=7), name=st.sampled_from(BOUNDED))
def test_measurements_stay_in_range(logits, name):
    """Catches NaN from 0 log 0, a missing 1 / log K and wrong signs."""
    value = float(MEASUREMENTS[name](torch.tensor([logits]).double(), *[torch.empty(0)] * 3))
    low, high = {"entropy": (0, 1), "margin": (-1, 0), "least_confidence": (-1, -1 / len(logits))}[
        name
    ]
    assert low - 1e-12 <= value <= high + 1e-12


def test_measurements_by_hand():
    """p = (0.5, 0.3, 0.2) and the uniform distribution."""
    logits = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64).log()
    rest = [torch.empty(0)] * 3
    by_hand = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)) / math.log(3)
    assert MEASUREMENTS["entropy"](logits, *rest).tolist() == pytest.approx([by_hand, 1.0])
    assert MEASUREMENTS["margin"](logits, *rest).tolist() == pytest.approx([-0.2, 0.0])
    assert MEASUREMENTS["least_confidence"](logits, *rest).tolist() == pytest.approx([-0.5, -1 / 3])
    # log sum exp of log-probabilities is log 1; of logits 2 higher it is 2
    assert MEASUREMENTS["energy"](logits + 2, *rest).tolist() == pytest.approx([-2.0, -2.0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_equal_finite_differences(name, classes):
    """Catches a gradient of something else than M, or one mixed between images of a batch."""
    guide, x, step = LinearGuide(classes), images(3), 1e-6
    gradient = measurement_gradient(MEASUREMENTS[name], guide, x, 5, torch.zeros(3).long())
    for pixel in range(16):
        shift = torch.zeros(1, 1, 4, 4).double()
        shift.flatten()[pixel] = step
        high, low = (
            MEASUREMENTS[name](guide(x + s, torch.zeros(3)), x, 5, torch.zeros(3).long())
            for s in (shift, -shift)
        )
        expected = (high - low) / (2 * step)
        torch.testing.assert_close(gradient.flatten(1)[:, pixel], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_confident_guide_still_has_a_gradient(name):
    """Catches a float32 softmax, exactly 0 and 1 at 18 logits apart: guidance would just stop."""
    guide = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(guide[1].weight)
    guide[1].weight.data[0, 0] = 1.0
    guide[1].bias.data = torch.tensor([18.0, 0.0, -1.0])
    gradient = measurement_gradient(
        MEASUREMENTS[name],
        lambda x, _t: guide(x),
        torch.zeros(1, 1, 4, 4),
        0,
        torch.zeros(1).long(),
    ).flatten()
    assert float(gradient[0]) < 0  # less of class 0 is less certain
    assert bool((gradient[1:] == 0).all())
    # d(-p0)/dz0 = -p0 (1 - p0), about -(e^-18 + e^-19); margin adds p1 p0
    small = math.exp(-18) + math.exp(-19)
    expected = {"least_confidence": small, "margin": small + math.exp(-18)}
    if name in expected:
        assert -float(gradient[0]) == pytest.approx(expected[name], rel=1e-6)


def test_mutual_information_by_hand():
    """Catches the entropy of the mean alone, a mean over the wrong axis and a lost 1 / log K."""
    sure = torch.tensor([0.9, 0.05, 0.05]).double().log()
    flat = torch.zeros(3).double() - math.log(3)
    agree = torch.stack([torch.stack([sure, flat])] * 2)  # [2 members, 2 images, 3 classes]
    against = torch.stack([torch.stack([sure, flat]), torch.stack([sure.flip(0), flat])])

    def ask(members):
        return MEASUREMENTS["mutual_information"](members, *[torch.empty(0)] * 3).tolist()

    assert ask(agree) == pytest.approx([0, 0], abs=1e-12)  # undecided is no disagreement
    mean = -(2 * 0.475 * math.log(0.475) + 0.05 * math.log(0.05))
    each = -(0.9 * math.log(0.9) + 0.1 * math.log(0.05))
    assert ask(against) == pytest.approx([(mean - each) / math.log(3), 0])
    opposed = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]]).double()
    assert ask(opposed) == pytest.approx([1])


def test_mutual_information_is_an_information():
    """H(mean p) - mean H(p), in [0, 1], by its definition at random logits of every size."""
    numbers = torch.Generator().manual_seed(0)
    for size in (0.01, 1.0, 30.0):
        members = size * torch.randn(16, 50, 4, generator=numbers, dtype=torch.float64)
        value = MEASUREMENTS["mutual_information"](members, *[torch.empty(0)] * 3)
        p = members.softmax(dim=2)
        h_mean = torch.special.entr(p.mean(dim=0)).sum(dim=1)
        mean_h = torch.special.entr(p).sum(dim=2).mean(dim=0)
        torch.testing.assert_close(value, (h_mean - mean_h) / math.log(4), rtol=1e-6, atol=1e-12)
        assert float(value.min()) >= 0
        assert float(value.max()) <= 1


def test_gradients_through_members_equal_finite_differences():
    """Catches a gradient of one member, or of members in place of images."""
    guide, x, step, y = MemberGuide(3), images(3), 1e-6, torch.zeros(3).long()
    measure = MEASUREMENTS["mutual_information"]
    gradient = measurement_gradient(measure, guide, x, 5, y, members=True).flatten(1)
    for pixel in range(16):
        shift = torch.zeros(1, 1, 4, 4).double()
        shift.flatten()[pixel] = step
        high, low = (
            measure(guide(x + s, y, guide.member_masks)[1:], x, 5, y) for s in (shift, -shift)
        )
        expected = (high - low) / (2 * step)
        torch.testing.assert_close(gradient[:, pixel], expected, rtol=1e-5, atol=1e-8)


def test_members_need_a_guide_with_dropout():
    """Catches a measurement of disagreement among copies of one answer: always 0, no guidance."""
    wants = setting("mutual_information", 0.5)
    eps_fn = measurement_guided(lambda x, _t: x, LinearGuide(3), torch.zeros(2), wants, SCHEDULE)
    with pytest.raises(ValueError, match=r"guide\.dropout"):
        eps_fn(images(2), 5)


def test_a_measurement_of_the_user_can_ask_for_members(monkeypatch):
    """Catches a registered measurement of members that is given plain logits."""
    monkeypatch.setattr(guidance, "MEASUREMENTS", dict(MEASUREMENTS))
    for name in ("MEASUREMENTS", "MEMBER_MEASUREMENTS"):
        monkeypatch.setattr(config.base, name, list(getattr(config.base, name)))
    monkeypatch.setattr(guidance, "KNOWN_NAMES", config.base.MEASUREMENTS)
    monkeypatch.setattr(guidance, "MEMBER_MEASUREMENTS", config.base.MEMBER_MEASUREMENTS)
    seen = []

    @register_measurement("spread", members=True)
    def spread(logits, _x_t, _t, _labels):
        seen.append(tuple(logits.shape))
        return logits.var(dim=0).sum(dim=1)

    chosen = setting("spread", 0.5).model_copy(update={"label_scale": 1.0})
    guide = MemberGuide(3)
    measurement_guided(lambda x, _t: x, guide, torch.zeros(2).long(), chosen, SCHEDULE)(
        images(2), 5
    )
    assert seen == [(4, 2, 3)]


def test_a_measurement_can_be_added_and_not_replaced():
    """Catches two measurements silently sharing a name."""
    with pytest.raises(ValueError, match="entropy"):
        register_measurement("entropy")(MEASUREMENTS["margin"])
    bad = GuidanceSetting.model_construct(
        measurement="entrpy", uncertainty_scale=1.0, gradient="raw"
    )
    with pytest.raises(ValueError, match="entropy"):
        measurement_guided(lambda x, _t: x, LinearGuide(2), torch.zeros(1), bad, SCHEDULE)


# --- the guided eps -------------------------------------------------------------------------


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


def small_guide(dropout: float) -> nn.Module:
    shape = UNetConfig(channels=(16, 16), attention=(False, True))
    return build_guide(shape, 1, 3, "test", dropout=dropout).eval()


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


# --- classifier-free and classifier guidance ------------------------------------------------


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
