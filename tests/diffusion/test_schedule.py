"""The tables and conversions, against formulas, diffusers and their own inverses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.diffusion.schedule import NoiseSchedule, make_schedule, timestep_pairs

NAMES = ("linear", "cosine")


def test_linear_is_the_usual_table():
    """Catches other end points of beta or float32 accumulation."""
    ours = make_schedule("linear").alphas_cumprod
    theirs = DDIMScheduler(1000, 1e-4, 0.02, "linear").alphas_cumprod.double()
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=0)
    assert float(ours[-1]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_follows_eq_17_and_ends_at_4e5():
    """Catches a wrong offset or index, and an end that would blow guidance up."""
    ours = make_schedule("cosine").alphas_cumprod

    def f(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    published = torch.tensor([f((t + 1) / 1000) / f(0) for t in range(1000)])
    assert float((ours - published).abs().max()) < 5e-3
    assert float(ours[-1]) == pytest.approx(4.0e-5, rel=1e-9)
    assert float(make_schedule("cosine").betas.max()) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_alpha_bar_falls_and_minus_one_is_clean(name):
    """Catches tables that are not a noising process, and negative indices that wrap around."""
    schedule = make_schedule(name)
    values = [schedule.alpha_bar(t) for t in range(-1, 1000)]
    assert values[0] == 1.0
    assert all(a > b for a, b in pairwise(values))
    for wrong in (-2, 1000):
        with pytest.raises(ValueError, match="timestep"):
            schedule.alpha_bar(wrong)
    with pytest.raises(ValueError, match="timesteps"):
        schedule.q_sample(torch.zeros(1, 1), -1, torch.zeros(1, 1))


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match=r"linear.*cosine"):
        make_schedule("sqrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule(torch.linspace(0.1, 0.2, 10))
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        NoiseSchedule(torch.tensor([0.1, 1.0], dtype=torch.float64))


@given(t=st.integers(0, 999), name=st.sampled_from(NAMES))
def test_conversions_invert_each_other(t, name):
    """Catches a sign or a swapped coefficient in any of the five formulas."""
    schedule = make_schedule(name)
    numbers = torch.Generator().manual_seed(t)
    x_0, noise = torch.randn(2, 2, 1, 3, 3, generator=numbers, dtype=torch.float64)
    x_t = schedule.q_sample(x_0, t, noise)
    v = schedule.v_target(x_0, t, noise)
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(schedule.x0_from_v(x_t, t, v), x_0, **close)
    torch.testing.assert_close(schedule.eps_from_v(x_t, t, v), noise, **close)
    torch.testing.assert_close(schedule.pred_x0_from_eps(x_t, t, noise), x_0, **close)


def test_every_sample_has_its_own_t():
    """Catches coefficients that are broadcast along the wrong axis (batch 3, 3 x 3 pixels)."""
    schedule = make_schedule("linear")
    t = torch.tensor([0, 500, 999])
    x_0, noise = torch.randn(2, 3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    together = schedule.q_sample(x_0, t, noise)
    for i in range(3):
        alone = schedule.q_sample(x_0[i : i + 1], int(t[i]), noise[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)
    assert together.dtype == torch.float32


@given(total=st.integers(2, 1200), data=st.data())
def test_pairs_cover_the_range(total, data):
    """Catches repeated or skipped levels, a missing end, uneven spacing and a wrong length."""
    count = data.draw(st.integers(2, total))
    pairs = timestep_pairs(total, count)
    starts = [t for t, _ in pairs]
    assert len(pairs) == count
    assert starts[0] == total - 1
    assert pairs[-1] == (0, -1)
    assert [t_prev for _, t_prev in pairs[:-1]] == starts[1:]
    gaps = [t - t_prev for t, t_prev in pairs[:-1]]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("count", [0, 1, 1001])
def test_impossible_grids_are_refused(count):
    with pytest.raises(ValueError, match=r"\[2, 1000\]"):
        timestep_pairs(1000, count)
