"""Measurements by hand, against finite differences, and those that compare dropout masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgdm_ray import config
from mgdm_ray.config import GuidanceSetting
from mgdm_ray.diffusion import guidance
from mgdm_ray.diffusion.guidance import MEASUREMENTS, measurement_gradient, register_measurement
from tests.diffusion.conftest import measurement_guided
from tests.diffusion.guides import (
    BOUNDED,
    NAMES,
    SCHEDULE,
    LinearGuide,
    MemberGuide,
    images,
    setting,
)


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
