"""The sampler against constant eps, closed-form Gaussians and diffusers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepScheduler

from mgdm_ray.diffusion.samplers import ddim_step, invert, sample, sample_second_order
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs

NAMES = ("linear", "cosine")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 7, 1000])
def test_constant_eps_round_trip_is_exact(name, count):
    """Catches encode and decode grids that differ by a level: gamma = 0 is no identity then."""
    schedule, pairs = make_schedule(name), timestep_pairs(1000, count)
    numbers = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 2, 1, 4, 4, generator=numbers, dtype=torch.float64)
    x_T = invert(lambda _x, _t: eps, x_0, pairs, schedule)
    # With constant eps all steps telescope into the forward process itself.
    torch.testing.assert_close(x_T, schedule.q_sample(x_0, 999, eps), rtol=0, atol=1e-10)
    back = sample(lambda _x, _t: eps, x_T, pairs, schedule)
    torch.testing.assert_close(back, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("t", [999, 519, 19])
def test_step_equals_diffusers(t, clip):
    """Catches any error in the update, and clipping that leaves eps and x_0 inconsistent."""
    schedule = make_schedule("linear")
    theirs = DDIMScheduler(
        1000, 1e-4, 0.02, "linear", clip_sample=clip, set_alpha_to_one=True, clip_sample_range=1.0
    )
    theirs.set_timesteps(50)  # steps of 20 levels; 19 -> -1
    x, eps = torch.randn(2, 4, 1, 5, 5, generator=torch.Generator().manual_seed(t))
    ours = ddim_step(x, eps, schedule.alpha_bar(t), schedule.alpha_bar(t - 20), clip)
    expected = theirs.step(eps, t, x, use_clipped_model_output=clip).prev_sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_sampling_reaches_mean_and_covariance(gaussian, name):
    """Catches a sampler that is biased: noise N(0, I) must become N(mean, cov), at first order."""
    schedule = make_schedule(name)
    errors = []
    for count in (125, 250, 500):
        pairs = timestep_pairs(1000, count)

        def mapping(x, pairs=pairs):
            return sample(lambda x_t, t: gaussian.eps(schedule, x_t, t), x, pairs, schedule)

        matrix, offset = gaussian.affine(mapping)
        covariance_error = (matrix @ matrix.T - gaussian.covariance).abs().max()
        errors.append(float(torch.maximum((offset - gaussian.mean).abs().max(), covariance_error)))
    assert errors[-1] < 0.02
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2]


@pytest.mark.parametrize("name", NAMES)
def test_encoding_whitens_the_data(gaussian, name):
    """Catches an encoder that does not reach the prior: data must become N(0, I)."""
    schedule, pairs = make_schedule(name), timestep_pairs(1000, 500)
    matrix, offset = gaussian.affine(
        lambda x: invert(lambda x_t, t: gaussian.eps(schedule, x_t, t), x, pairs, schedule)
    )
    covariance = matrix @ gaussian.covariance @ matrix.T
    torch.testing.assert_close(covariance, torch.eye(3).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(
        matrix @ gaussian.mean + offset, torch.zeros(3).double(), rtol=0, atol=0.05
    )


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_error_is_first_order(gaussian, name):
    """Catches an encode that is not the mirror image of decode: its error would not vanish."""
    schedule = make_schedule(name)
    x_0 = torch.randn(8, 1, 1, 3, generator=torch.Generator().manual_seed(1)).double() * 0.5

    def eps_fn(x_t, t):
        return gaussian.eps(schedule, x_t, t)

    errors = []
    for count in (100, 200, 400, 800):
        pairs = timestep_pairs(1000, count)
        back = sample(eps_fn, invert(eps_fn, x_0, pairs, schedule), pairs, schedule)
        errors.append(float((back - x_0).abs().max()))
    ratios = [a / b for a, b in pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(1.5 < ratio < 2.6 for ratio in ratios), (errors, ratios)


def test_which_levels_are_asked():
    """Catches an encoder that asks for the noise of the level it goes to, or for t = -1."""
    schedule, pairs = make_schedule("linear"), timestep_pairs(1000, 4)
    asked: list[int] = []

    def eps_fn(x, t):
        asked.append(t)
        return x

    sample(eps_fn, torch.zeros(1, 1, 1, 1), pairs, schedule)
    assert asked == [999, 666, 333, 0]
    asked.clear()
    invert(eps_fn, torch.zeros(1, 1, 1, 1), pairs, schedule)
    assert asked == [0, 0, 333, 666]


@pytest.mark.parametrize("name", NAMES)
def test_second_order_solver_is_of_second_order(gaussian, name):
    """Catches a solver that costs more thought than DDIM and gives no more."""
    schedule = make_schedule(name)
    x_T = torch.randn(8, 1, 1, 3, generator=torch.Generator().manual_seed(1)).double()

    def eps_fn(x_t, t):
        return gaussian.eps(schedule, x_t, t)

    exact = sample_second_order(eps_fn, x_T, timestep_pairs(1000, 1000), schedule)

    def error(solve, count):
        out = solve(eps_fn, x_T, timestep_pairs(1000, count), schedule)
        return float((out - exact).square().mean().sqrt())

    second = [error(sample_second_order, count) for count in (20, 40, 80)]
    assert all(3 < a / b < 5 for a, b in pairwise(second)), second
    assert error(sample, 40) > 5 * second[1]
    assert error(sample, 1000) < 2e-3  # both go the same way


def test_second_order_solver_goes_where_diffusers_goes():
    """Catches a solver that is precise about another equation: with an eps far from linear, ours
    and diffusers' DPM-Solver++ must meet, each on 1000 levels."""
    schedule = make_schedule("linear")
    theirs = DPMSolverMultistepScheduler(1000, 1e-4, 0.02, "linear", final_sigmas_type="zero")
    theirs.set_timesteps(999)
    x_T = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()

    def eps_fn(x, t):
        return torch.tanh(x * (1 + t / 500)) + 0.1 * x.roll(1, dims=3)

    expected = x_T
    for t in theirs.timesteps:
        expected = theirs.step(eps_fn(expected, int(t)), t, expected).prev_sample
    ours = sample_second_order(eps_fn, x_T, timestep_pairs(1000, 1000), schedule)
    spread = float(expected.std())
    assert float((ours - expected).abs().max()) < 0.01 * spread
    coarse = sample_second_order(eps_fn, x_T, timestep_pairs(1000, 50), schedule)
    assert float((coarse - ours).abs().max()) < 0.05 * spread


def test_second_order_solver_is_exact_for_constant_eps_and_clips():
    """Catches an extrapolation of what does not change, and images outside [-1, 1]."""
    schedule, pairs = make_schedule("cosine"), timestep_pairs(1000, 7)
    x_0, eps = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    x_T = schedule.q_sample(x_0, 999, eps)
    back = sample_second_order(lambda _x, _t: eps, x_T, pairs, schedule)
    torch.testing.assert_close(back, x_0, rtol=0, atol=1e-9)
    clipped = sample_second_order(lambda _x, _t: eps, x_T, pairs, schedule, clip=True)
    torch.testing.assert_close(clipped, x_0.clamp(-1, 1), rtol=0, atol=0.5)
    assert float(clipped.abs().max()) <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_fixed_point_iterations_undo_the_inversion_error(gaussian, name):
    """Catches iterations that are evaluated at the wrong level: each must gain accuracy."""
    schedule, pairs = make_schedule(name), timestep_pairs(1000, 20)
    x_0 = torch.randn(8, 1, 1, 3, generator=torch.Generator().manual_seed(1)).double() * 0.5

    def eps_fn(x_t, t):  # errs in v, as a network that predicts v does
        signal = schedule.alpha_bar(t) ** 0.5
        return gaussian.eps(schedule, x_t, t) + 0.1 * signal * torch.sin(3 * x_t)

    def error(iterations):
        latents = invert(eps_fn, x_0, pairs, schedule, iterations)
        return float((sample(eps_fn, latents, pairs, schedule) - x_0).square().mean().sqrt())

    errors = [error(iterations) for iterations in (0, 1, 2, 4, 20)]
    assert all(a > 2 * b for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-6


# --- inversion: the fixed point is guarded ---------------------------------------------------


def plain_iteration(eps_fn, x_0, pairs, schedule, iterations):
    """The iteration without a guard, x <- mapping(x): the oracle where it converges."""
    x = x_0
    for t, t_prev in reversed(pairs):
        guess = invert(eps_fn, x, [(t, t_prev)], schedule)
        phi, to = (math.atan2((1 - a) ** 0.5, a**0.5) for a in map(schedule.alpha_bar, (t, t_prev)))
        for _ in range(iterations):
            v = (eps_fn(guess, t) - math.sin(phi) * guess) / math.cos(phi)
            guess = (x + math.sin(phi - to) * v) / math.cos(phi - to)
        x = guess
    return x


def field(schedule, slope, kind=torch.sin):
    """eps of v = kind(slope * x), pixel by pixel; ``slope`` a number or `[N, 1, 1, 1]`."""

    def eps_fn(x_t, t):
        return schedule.eps_from_v(x_t, t, kind(slope * x_t))

    return eps_fn


def left_over(eps_fn, x_0, latents, pairs, schedule):
    """Round-trip error of each image, root mean square."""
    back = sample(eps_fn, latents, pairs, schedule)
    return (back - x_0).flatten(1).square().mean(dim=1).sqrt()


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_guard_leaves_what_converges_alone(gaussian, iterations):
    """Catches a guard that damps images which need no damping: results would change for nothing."""
    schedule, pairs = make_schedule("cosine"), timestep_pairs(1000, 20)
    x_0 = torch.randn(8, 1, 1, 3, generator=torch.Generator().manual_seed(1)).double() * 0.5

    def eps_fn(x_t, t):
        signal = schedule.alpha_bar(t) ** 0.5
        return gaussian.eps(schedule, x_t, t) + 0.1 * signal * torch.sin(3 * x_t)

    guarded = invert(eps_fn, x_0, pairs, schedule, iterations)
    plain = plain_iteration(eps_fn, x_0, pairs, schedule, iterations)
    torch.testing.assert_close(guarded, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("slope", [-12.0, -20.0, -40.0])
def test_a_stiff_field_is_inverted_all_the_same(slope):
    """Catches an inversion that diverges: tan(angle of a step) |dv/dx| is beyond 1 here."""
    schedule, pairs = make_schedule("cosine"), timestep_pairs(1000, 15)
    x_0 = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    eps_fn = field(schedule, slope, torch.tanh)

    def error(solve, iterations):
        latents = solve(eps_fn, x_0, pairs, schedule, iterations)
        return float(left_over(eps_fn, x_0, latents, pairs, schedule).max())

    assert error(plain_iteration, 20) > 1.5  # of images with spread 1
    assert error(invert, 20) < 0.04
    assert error(invert, 4) < error(plain_iteration, 4)


@pytest.mark.parametrize("slope", [-12.0, 12.0, 40.0])
@pytest.mark.parametrize("iterations", [2, 3, 8])
def test_no_step_ends_worse_than_the_plain_inversion(slope, iterations):
    """Catches a guard that goes on from where the residual rose, in either direction of v."""
    schedule = make_schedule("cosine")
    x_0 = torch.randn(64, 1, 1, 1, generator=torch.Generator().manual_seed(2)).double()
    eps_fn = field(schedule, slope, torch.tanh)
    worse = 0
    for pair in timestep_pairs(1000, 15):
        plain, guarded = (invert(eps_fn, x_0, [pair], schedule, k) for k in (0, iterations))
        before, after = (left_over(eps_fn, x_0, x, [pair], schedule) for x in (plain, guarded))
        worse += int((after > before + 1e-9).sum())
    assert worse <= 0.01 * 15 * 64


def test_the_guard_is_each_images_own_and_costs_no_forward():
    """Catches a residual over the whole batch, and a second look at what was just computed."""
    schedule, pairs = make_schedule("cosine"), timestep_pairs(1000, 15)
    x_0 = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    slopes = torch.tensor([1.0, 16, 2, 12, 0, 30]).reshape(-1, 1, 1, 1).double()
    asked = []

    def ask(rows):
        inner = field(schedule, slopes[rows])

        def eps_fn(x_t, t):
            asked.append(t)
            return inner(x_t, t)

        return invert(eps_fn, x_0[rows], pairs, schedule, 3)

    together = ask(slice(0, 6))
    assert len(asked) == 15 * (1 + 3)
    for i in range(6):
        torch.testing.assert_close(ask(slice(i, i + 1)), together[i : i + 1], rtol=0, atol=1e-9)


# --- inversion against diffusers -------------------------------------------------------------
# DDIMInverseScheduler steps through the levels T // n apart, from the clean image up to the last
# of its grid: given that grid, the levels and the update are ours. Its pipelines ask the network
# for the timestep a step goes to, at an image of the level it comes from; ours asks for the level
# that the image has (t = 0 for the clean one). So the two agree where eps does not depend on t,
# or where the scheduler is given the eps of the level it comes from.


def inverse_scheduler(count):
    """Theirs with our linear betas and an end at the clean image, and its grid as our pairs."""
    theirs = DDIMInverseScheduler(
        1000, 1e-4, 0.02, "linear", clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(count)
    levels = [-1, *theirs.timesteps.tolist()]
    return theirs, list(reversed([(t, low) for low, t in pairwise(levels)]))


@pytest.mark.parametrize("count", [10, 50, 1000])
@pytest.mark.parametrize("level", ["theirs", "ours"])
def test_inversion_equals_diffusers(count, level):
    """Catches any error in the levels, in their order or in the update of encode."""
    schedule = make_schedule("linear")
    theirs, pairs = inverse_scheduler(count)
    x_0 = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()

    def eps_fn(x, t):
        time = 0 if level == "theirs" else t / 500
        return torch.tanh(x * (1 + time)) + 0.1 * x.roll(1, dims=3)

    expected = x_0
    for t, t_prev in reversed(pairs):
        asked = t if level == "theirs" else max(t_prev, 0)
        expected = theirs.step(eps_fn(expected, asked), t, expected).prev_sample
    ours = invert(eps_fn, x_0, pairs, schedule)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    if count == 1000:
        assert pairs == timestep_pairs(1000, 1000)  # there even the grids are the same
