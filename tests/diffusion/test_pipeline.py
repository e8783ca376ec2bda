"""Generate, encode and decode over batches: seeds, identities and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from mgdm_ray.config import GuidanceSetting, SamplingConfig, UNetConfig
from mgdm_ray.diffusion.pipeline import NonFiniteSample, forwards_per_image
from mgdm_ray.diffusion.schedule import make_schedule, timestep_pairs
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from tests.diffusion.conftest import give_every_weight_influence, sampler

SCHEDULE = make_schedule("cosine")
SMALL = UNetConfig(channels=(16, 16), attention=(False, True))
SHAPE = (1, 8, 8)
CONFIG = SamplingConfig(
    num_inference_steps=6, batch_size=64, classifier_scale=0.5, precision="float32"
)


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Random weights, the zero-initialised ones too: every input has an influence."""
    denoiser, guide = build_denoiser(SMALL, 1, 3, "two"), build_guide(SMALL, 1, 3, "two")
    give_every_weight_influence(denoiser, guide)
    return denoiser, guide


def make(networks, labels, indices, config=CONFIG, **options):
    return sampler(networks, config, SCHEDULE, **options).generate(labels, indices)


LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])


def test_images_depend_on_their_index_only(networks):
    """Catches noise drawn per batch: other batch sizes, orders and subsets give the same images."""
    whole = make(networks, LABELS, range(7))
    close = {"rtol": 0, "atol": 2e-4}
    small = make(networks, LABELS, range(7), CONFIG.model_copy(update={"batch_size": 2}))
    torch.testing.assert_close(small, whole, **close)
    backwards = make(networks, LABELS.flip(0), list(range(6, -1, -1)))
    torch.testing.assert_close(backwards.flip(0), whole, **close)
    torch.testing.assert_close(make(networks, LABELS[3:4], [3]), whole[3:4], **close)
    assert float((make(networks, LABELS[3:4], [4]) - whole[3:4]).abs().max()) > 0.1


def test_seed_label_and_scales_matter(networks):
    """Catches an argument that is accepted and then ignored."""
    whole = make(networks, LABELS, range(7))
    assert torch.equal(make(networks, LABELS, range(7)), whole)
    assert whole.dtype == torch.float32
    assert float(whole.abs().max()) <= 1 + 1e-6  # clipped
    others = [
        make(networks, LABELS, range(7), seed=1),
        make(networks, (LABELS + 1) % 3, range(7)),
        make(networks, LABELS, range(7), CONFIG.model_copy(update={"guidance_scale": 3.0})),
        make(networks, LABELS, range(7), CONFIG.model_copy(update={"classifier_scale": 0.0})),
        make(networks, LABELS, range(7), CONFIG.model_copy(update={"clip": False})),
    ]
    for other in others:
        assert float((other - whole).abs().max()) > 1e-5


def test_round_trip_and_gamma_zero(gaussian, gaussian_denoiser):
    """Catches guidance or clipping in encode, labels lost on the way, grids that do not mirror."""
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 0.8, 0.0])
    config = SamplingConfig(num_inference_steps=500, guidance_scale=7.0, clip=True, batch_size=3)
    made = sampler((denoiser, None), config, SCHEDULE, (1, 1, 3), "epsilon")
    x_0 = gaussian.mean.float() + torch.randn(
        4, 1, 1, 3, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.tensor([0, 1, 1, 0])
    latents = made.encode(x_0, labels, range(4))
    back = made.decode(latents, labels, range(4), None)
    assert float(x_0.abs().max()) > 1  # clipping would show
    torch.testing.assert_close(back, x_0, rtol=0, atol=0.03)
    off = GuidanceSetting(uncertainty_scale=0)
    zero = made.decode(latents, labels, range(4), off)
    assert torch.equal(zero, back)
    # conditional forwards of the images' own labels only: no null label, no doubled batch
    assert {tuple(y) for _, y in denoiser.calls} == {(0, 1, 1), (0,)}
    swapped = made.decode(latents, 1 - labels, range(4), None)
    # Class 1's data are class 0's, shifted by 0.8: a latent decodes to the image, shifted.
    moved = (swapped - back).flatten(1).mean(dim=1)
    torch.testing.assert_close(moved, torch.tensor([0.8, -0.8, -0.8, 0.8]), rtol=0, atol=0.02)


def test_generated_classes_have_the_classes_mean(gaussian, gaussian_denoiser):
    """Catches labels applied to the wrong images, with the exact conditional denoiser."""
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 2.0, 0.0])
    config = SamplingConfig(num_inference_steps=50, guidance_scale=1.0, clip=False, batch_size=32)
    labels = torch.arange(200) % 2
    made = sampler((denoiser, None), config, SCHEDULE, (1, 1, 3), "epsilon")
    images = made.generate(labels, range(200)).reshape(200, 3)
    # the standard error of a mean of 100 is at most 0.09
    for label, shift in ((0, 0.0), (1, 2.0)):
        mean = images[labels == label].mean(dim=0)
        torch.testing.assert_close(mean, gaussian.mean.float() + shift, rtol=0, atol=0.3)


def test_decoding_under_guidance_and_its_control(networks):
    """Catches a control that depends on batch mates, or on nothing, or equals the guidance."""
    latents = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(5))
    chosen = GuidanceSetting(measurement="least_confidence", uncertainty_scale=0.2)

    def run(rows, random, batch_size=64, seed=0):
        config = CONFIG.model_copy(update={"batch_size": batch_size})
        made = sampler(networks, config, SCHEDULE, seed=seed)
        return made.decode(latents[rows], LABELS[:5][rows], rows, chosen, random=random)

    everyone = list(range(5))
    plain = sampler(networks, CONFIG, SCHEDULE).decode(latents, LABELS[:5], everyone, None)
    results = {}
    for random in (False, True):
        whole = run(everyone, random)
        torch.testing.assert_close(run(everyone, random, 2), whole, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(run([3], random), whole[3:4], rtol=1e-3, atol=1e-2)
        assert float((whole - plain).abs().max()) > 0.1
        results[random] = whole
    assert float((results[True] - results[False]).abs().max()) > 0.1
    assert torch.equal(run(everyone, False, seed=1), results[False])
    assert not torch.equal(run(everyone, True, seed=1), results[True])


def test_progress_and_the_last_partial_batch(networks):
    """Catches a crash or a lost image where the batch size does not divide, or there is nothing."""
    done: list[tuple[str, int, int]] = []
    config = CONFIG.model_copy(update={"batch_size": 3})
    result = make(networks, LABELS, range(7), config, on_batch=lambda *told: done.append(told))
    assert done == [("generate", n, 7) for n in (3, 6, 7)]
    assert result.shape == (7, *SHAPE)
    assert make(networks, LABELS[:0], []).shape == (0, *SHAPE)


def test_sampling_freezes_the_networks(networks):
    """Catches label dropout or batch statistics left on while sampling, and wasted gradients."""
    for network in networks:
        network.train()
    make(networks, LABELS[:1], [0])
    for network in networks:
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_what_cannot_work_is_refused(networks):
    """Catches guidance silently switched off, images silently dropped and NaN images kept."""
    alone = (networks[0], None)
    unguided = sampler(alone, CONFIG, SCHEDULE)
    with pytest.raises(ValueError, match="classifier_scale"):
        make(alone, LABELS, range(7))
    latents = torch.zeros(2, *SHAPE)
    with pytest.raises(ValueError, match="uncertainty_scale"):
        unguided.decode(latents, LABELS[:2], [0, 1], GuidanceSetting())
    with pytest.raises(ValueError, match=r"\b7\b.*\b6\b"):
        make(networks, LABELS, range(6))
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteSample, match=r"\b11\b"):
        unguided.decode(latents, LABELS[:2], [10, 11], None)


@pytest.mark.parametrize("steps", [8, 40])
def test_the_control_pushes_as_far_as_guidance_can(networks, steps):
    """Catches a direction drawn anew at every step: such pushes cancel, and the more the more
    steps there are. An untrained denoiser predicts v = 0: then the way of a push is known."""
    denoiser = build_denoiser(UNetConfig(channels=(16, 16), attention=(False, False)), 1, 2, 0)
    latents = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    config = SamplingConfig(num_inference_steps=steps)

    def run(gamma):
        made = sampler((denoiser, networks[1]), config, SCHEDULE)
        chosen, labels = GuidanceSetting(uncertainty_scale=gamma), torch.zeros(3).long()
        return made.decode(latents, labels, range(3), chosen, random=True)

    moved = (run(0.2) - run(0.0)).square().mean(dim=(1, 2, 3)).sqrt()
    angles = [
        math.acos(math.sqrt(SCHEDULE.alpha_bar(t))) for t, _ in timestep_pairs(1000, steps)
    ] + [0.0]
    expected = 0.0
    for a, b in itertools.pairwise(angles):
        expected = expected * math.cos(a - b) + 0.2 * math.sin(a - b)
    torch.testing.assert_close(moved, torch.full((3,), expected), rtol=1e-3, atol=0)


def test_less_strength_keeps_more_of_the_image(networks):
    """Catches an encode and a decode that go to different depths, and a depth that is ignored."""
    images = make(networks, LABELS, range(7))
    change, spread = [], []
    for strength in (0.2, 0.6, 1.0):
        config = CONFIG.model_copy(update={"strength": strength, "num_inference_steps": 40})
        made = sampler(networks, config, SCHEDULE)
        latents = made.encode(images, LABELS, range(7))
        chosen = GuidanceSetting(uncertainty_scale=0.3)
        moved = made.decode(latents, LABELS, range(7), chosen)
        plain = made.decode(latents, LABELS, range(7), None)
        torch.testing.assert_close(plain, images, rtol=0, atol=0.5)  # first-order inversion
        change.append(float((moved - plain).square().mean()))
        spread.append(float((latents - images).square().mean()))
    assert change[0] < change[1] < change[2]
    assert spread[0] < spread[1] < spread[2]


def test_solver_and_iterations_are_used(networks):
    """Catches options that are accepted and then ignored."""
    images = make(networks, LABELS, range(7))
    second = CONFIG.model_copy(update={"solver": "second_order"})
    assert float((make(networks, LABELS, range(7), second) - images).abs().max()) > 1e-3

    def error(iterations):
        config = CONFIG.model_copy(update={"inversion_iterations": iterations})
        made = sampler((networks[0], None), config, SCHEDULE)
        latents = made.encode(images, LABELS, range(7))
        back = made.decode(latents, LABELS, range(7), None)
        return float((back - images).square().mean().sqrt())

    assert error(6) < 0.3 * error(0)


@pytest.mark.parametrize("solver", ["ddim", "second_order"])
@pytest.mark.parametrize("options", [{"clip": True}, {"clip": False, "guidance_scale": 1.0}])
def test_stored_noise_decodes_to_the_image_of_stage_one(networks, solver, options):
    """Catches a stage 2 with another solver, scale or clipping, and noise of other images."""
    usual = {"num_inference_steps": 6, "batch_size": 64, "guidance_scale": 3.0}
    config = SamplingConfig(
        **{**usual, **options}, solver=solver, encode="stored", precision="float32"
    )
    made, rows = sampler(networks, config, SCHEDULE, seed=3), range(2, 9)
    images = made.generate(LABELS, rows)
    latents = made.encode(images, LABELS, rows)
    assert torch.equal(made.decode(latents, LABELS, rows, None), images)
    off = GuidanceSetting(uncertainty_scale=0.0)
    assert torch.equal(made.decode(latents, LABELS, rows, off), images)
    assert torch.equal(made.make("roundtrip", LABELS, rows), images)
    on = GuidanceSetting(uncertainty_scale=0.2)
    pushed = [made.decode(latents, LABELS, rows, on, random=random) for random in (False, True)]
    for one in (*pushed, pushed[0] - pushed[1] + images):
        assert float((one - images).square().mean().sqrt()) > 0.02


def test_classifier_free_guidance_while_decoding(networks):
    """Catches a scale that encode gets too, that needs a guide, or that is taken from stage 1."""
    latents = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(5))

    def run(scale, gamma=0.0, guide=None):
        chosen = GuidanceSetting(uncertainty_scale=gamma, decode_guidance_scale=scale)
        made = sampler((networks[0], guide), CONFIG, SCHEDULE)
        return made.decode(latents, LABELS, range(7), chosen)

    plain = sampler(networks, CONFIG, SCHEDULE).decode(latents, LABELS, range(7), None)
    assert torch.equal(run(1.0), plain)
    assert float((run(3.0) - plain).abs().max()) > 1e-4
    assert float((run(3.0, 0.2, networks[1]) - run(3.0)).abs().max()) > 0.05


@pytest.mark.parametrize("gradient", ["normalised", "raw"])
def test_every_image_of_a_batch_may_have_its_own_strength(networks, gradient):
    """Catches strengths of one batch that mix, and a strength 0 that is not the round trip."""
    latents = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(6))
    chosen = GuidanceSetting(uncertainty_scale=9.0, gradient=gradient, label_scale=0.5)
    gammas = (0.0, 0.1, 0.4)

    made = sampler(networks, CONFIG.model_copy(update={"batch_size": 4}), SCHEDULE)

    def run(rows, setting, strengths=None):
        return made.decode(latents[rows], LABELS[:3][rows], rows, setting, strengths=strengths)

    rows = [0, 1, 2] * len(gammas)
    together = run(rows, chosen, torch.tensor(gammas).repeat_interleave(3))
    for index, gamma in enumerate(gammas):
        alone = run([0, 1, 2], chosen.model_copy(update={"uncertainty_scale": gamma}))
        torch.testing.assert_close(together[3 * index : 3 * index + 3], alone, rtol=1e-3, atol=1e-3)
    assert float((together[:3] - together[-3:]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({}, {}),
        ({"guidance_scale": 1.0, "classifier_scale": 0.0}, {"uncertainty_scale": 0.0}),
        ({"guidance_scale": 0.0, "inversion_iterations": 2}, {"interval": (200, 999)}),
        ({"guidance_scale": 3.0, "strength": 0.7}, {"decode_guidance_scale": 2.0}),
        ({"num_inference_steps": 9}, {"gradient": "raw", "label_scale": 0.5}),
        ({"guidance_interval": (300, 700)}, {"decode_guidance_scale": 2.0}),
        (
            {"encode": "stored", "classifier_scale": 0.0, "guidance_interval": (0, 500)},
            {"uncertainty_scale": 0.0},
        ),
        ({"encode": "stored", "classifier_scale": 0.0}, {}),
        ({"encode": "stored", "classifier_scale": 0.0, "guidance_scale": 1.0}, {}),
    ],
)
def test_forwards_are_as_many_as_are_counted(networks, config, setting):
    """Catches a price of a setting that is not what it costs: a search would trade against it."""
    config = CONFIG.model_copy(update={"guidance_scale": 2.0, **config})
    setting = GuidanceSetting(**setting)
    rows = 0

    def count(_network, inputs):
        nonlocal rows
        rows += len(inputs[0])

    hooks = [network.register_forward_pre_hook(count) for network in networks]
    sampler(networks, config, SCHEDULE).make("disturb", LABELS[:2], range(2), setting)
    for hook in hooks:
        hook.remove()
    assert rows == 2 * forwards_per_image(config, setting)
