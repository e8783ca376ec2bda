"""Every fault of the published code changes the result, and in the way it is said to."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from mgdm_ray.config import (
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    ReferenceFault,
    SamplingConfig,
    UNetConfig,
)
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.pipeline import Sampler
from mgdm_ray.diffusion.published_faults import (
    DROPOUT_BATCH,
    Faults,
    rank_duplicates,
    respaced,
    truncated,
)
from mgdm_ray.diffusion.schedule import NoiseSchedule, make_schedule, timestep_pairs
from mgdm_ray.diffusion.train import train
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from tests.diffusion.conftest import give_every_weight_influence, sampler

SCHEDULE = make_schedule("cosine")
SMALL = UNetConfig(channels=(16, 16), attention=(False, False))
SHAPE = (1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 1])
CONFIG = SamplingConfig(num_inference_steps=6, guidance_scale=1.5, precision="float32")


def faults(*names: ReferenceFault, label_dropout: float = 0.0) -> Faults:
    return Faults(frozenset(names), label_dropout)


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Random weights, the zero-initialised ones too: every input has an influence."""
    denoiser, guide = build_denoiser(SMALL, 1, 3, "ref"), build_guide(SMALL, 1, 3, "ref")
    give_every_weight_influence(denoiser, guide)
    return denoiser, guide


def made(networks, labels=LABELS, indices=range(7), config=CONFIG, **wrong) -> Tensor:
    return sampler((networks[0], None), config, SCHEDULE, **wrong).generate(labels, indices)


def round_trip(made: Sampler, x_0: Tensor) -> Tensor:
    """encode and decode without guidance, all of label 0."""
    labels, indices = torch.zeros(len(x_0), dtype=torch.int64), range(len(x_0))
    return made.decode(made.encode(x_0, labels, indices), labels, indices, None)


def of_three(denoiser: nn.Module, config: SamplingConfig, *wrong: ReferenceFault) -> Sampler:
    """A sampler of images of three pixels."""
    return sampler((denoiser, None), config, SCHEDULE, (1, 1, 3), "epsilon", faults=wrong)


def data() -> TrainingData:
    return TrainingData(torch.zeros(7, *SHAPE), LABELS, 3)


def rms(images: Tensor) -> float:
    return float(images.square().mean().sqrt())


# --- guide_timesteps ------------------------------------------------------------------------


def test_a_respaced_guide_trains_on_the_grid_alone():
    """Catches levels that are not those of the grid, or are in another order."""
    grid = sorted(t for t, _ in timestep_pairs(1000, 7))
    respaced_levels = respaced(SCHEDULE, 7).alphas_cumprod
    torch.testing.assert_close(respaced_levels, SCHEDULE.alphas_cumprod[grid], rtol=1e-9, atol=0)
    config = GuideConfig(batch_size=700, class_balanced=False)
    levels = respaced(SCHEDULE, 7).num_train_timesteps
    source = BatchSource(config, data(), 0, num_train_timesteps=levels)
    assert set(source.draw(0).t.tolist()) == set(range(7))


def test_a_respaced_guide_does_not_know_the_timesteps_it_is_asked_about():
    """Catches a fault that is harmless where one must know t: class 1 is white noise in itself, and
    only who knows how much noise is added can tell it from class 0 with more noise."""
    labels = torch.arange(200) % 2
    numbers = torch.Generator().manual_seed(0)
    images = 0.6 * torch.randn(200, *SHAPE, generator=numbers) * labels.reshape(-1, 1, 1, 1)
    x_300 = SCHEDULE.q_sample(images, 300, torch.randn(images.shape, generator=numbers))
    config = GuideConfig(
        unet=SMALL, steps=150, batch_size=32, warmup=5, learning_rate=3e-3, precision="float32"
    )

    def accuracy(schedule: NoiseSchedule) -> float:
        guide = train(config, TrainingData(images, labels, 2), 0, schedule).model.eval()
        with torch.no_grad():
            predicted = guide(x_300, torch.full((200,), 300)).argmax(dim=1)
        return float((predicted == labels).double().mean())

    assert accuracy(SCHEDULE) > 0.9
    assert accuracy(respaced(SCHEDULE, 10)) < 0.75


# --- alignment ------------------------------------------------------------------------------


def test_misaligned_latents_are_a_level_too_noisy(gaussian, gaussian_denoiser):
    """Catches a level that is not the one above those that decode descends from.

    The latents must come near those of the mirrored encode that goes one level further, and be a
    whole step away from those of the mirrored encode that decode inverts.
    """
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 0.0])
    x_0 = 0.5 * torch.randn(4, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(4, dtype=torch.int64)

    def latents(strength: float, *names: ReferenceFault) -> Tensor:
        config = SamplingConfig(num_inference_steps=21, strength=strength)  # every 50th timestep
        return of_three(denoiser, config, *names).encode(x_0, label, range(4))

    misaligned = latents(0.52, "alignment")
    assert rms(misaligned - latents(0.57)) < 0.01
    assert rms(misaligned - latents(0.52)) > 0.02


def test_misaligned_latents_are_the_predicted_noise(gaussian, gaussian_denoiser):
    """Catches a last step that stops at the level where decode starts."""
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 0.0])
    config = SamplingConfig(num_inference_steps=2, batch_size=1)  # levels t = 0 and t = 999
    x_0 = torch.full((1, 1, 1, 3), 0.3)
    latent = of_three(denoiser, config, "alignment").encode(x_0, torch.tensor([0]), [0])
    assert [t for t, _ in denoiser.calls] == [0, 999]
    first = gaussian.eps(SCHEDULE, x_0, 0)
    clean = SCHEDULE.pred_x0_from_eps(x_0, 0, first)  # x_0 counts as noised to t = 0
    x_999 = SCHEDULE.q_sample(clean, 999, first)
    torch.testing.assert_close(latent, gaussian.eps(SCHEDULE, x_999, 999), rtol=0, atol=1e-4)


def test_alignment_cannot_be_solved_backwards(networks):
    """Catches iterations that are silently ignored, or divide by cos(pi / 2) = 0."""
    config = CONFIG.model_copy(update={"inversion_iterations": 1})
    made = sampler(networks, config, SCHEDULE, faults=["alignment"])
    with pytest.raises(ValueError, match="inversion_iterations"):
        round_trip(made, torch.zeros(1, *SHAPE))


# --- label_dropout --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_batch_loses_its_labels(workers):
    """Catches a draw per image, another rate, and workers that do not agree."""
    config = DenoiserConfig(batch_size=8, class_balanced=False, label_dropout=0.3)
    shares = [
        BatchSource(config, data(), 0, workers=Workers(rank, workers), whole_batch_dropout=True)
        for rank in range(workers)
    ]
    masks = torch.stack(
        [torch.cat([share.draw(step).drop_mask for share in shares]) for step in range(400)]
    )
    assert masks.shape == (400, 8)
    assert set(masks.sum(dim=1).tolist()) == {0, 8}
    rate = float(masks[:, 0].double().mean())
    assert rate == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 400))


def test_training_hears_of_it():
    """Catches an option that stops on its way to the batches."""
    config = DenoiserConfig(unet=SMALL, steps=3, batch_size=8, label_dropout=0.5)

    def losses(whole: bool) -> list[float]:
        result = train(config, data(), 0, SCHEDULE, whole_batch_dropout=whole)
        return [row["loss"] for row in result.history]

    assert losses(True) != losses(False)


def test_labels_are_lost_at_sampling_at_the_rate_of_training(gaussian, gaussian_denoiser):
    """Catches a rate that is not that of training, and images of one batch that differ."""
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 0.5, 0.0])
    forgetful = faults("label_dropout", label_dropout=0.25)
    many = [*range(3), *range(DROPOUT_BATCH, DROPOUT_BATCH + 3)]
    model = forgetful.denoiser(denoiser, many, "x")
    labels, x_t = torch.ones(6, dtype=torch.int64), torch.zeros(6, 1, 1, 3)
    for t in range(0, 1000, 2):
        model(x_t, torch.full((6,), t), class_labels=labels)
    seen = torch.tensor([given for _, given in denoiser.calls])  # [500, 6]
    lost = seen == 2
    for batch in (lost[:, :3], lost[:, 3:]):
        assert set(batch.sum(dim=1).tolist()) == {0, 3}
        assert float(batch.double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / 500))
    assert not torch.equal(lost[:, 0], lost[:, 3])


def test_label_dropout_changes_every_stage_but_heeds_no_batch_size(networks):
    """Catches a stage that keeps its labels, and images that depend on sampling.batch_size."""
    wrong = {"faults": ["label_dropout"], "label_dropout": 0.5}
    images = made(networks)
    forgetful = made(networks, **wrong)
    assert rms(forgetful - images) > 1e-3
    small = CONFIG.model_copy(update={"batch_size": 2})
    torch.testing.assert_close(made(networks, config=small, **wrong), forgetful, rtol=0, atol=2e-4)
    sound, faulty = (sampler(networks, CONFIG, SCHEDULE, **given) for given in ({}, wrong))
    latents = sound.encode(images, LABELS, range(7))
    assert rms(faulty.encode(images, LABELS, range(7)) - latents) > 1e-3
    back, other = (one.decode(latents, LABELS, range(7), None) for one in (sound, faulty))
    assert rms(other - back) > 1e-3


# --- clip -----------------------------------------------------------------------------------


def test_clipping_in_decode_alone_is_no_inverse(gaussian, gaussian_denoiser):
    """Catches clipping that is ignored, or is on in encode too."""
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [0.0, 0.0])
    config = SamplingConfig(num_inference_steps=200)
    x_0 = torch.tensor([0.2, -1.4, 0.9]).reshape(1, 1, 1, 3)
    sound, faulty = (of_three(denoiser, config, *wrong) for wrong in ((), ("clip",)))
    plain, clipped = (round_trip(one, x_0) for one in (sound, faulty))
    torch.testing.assert_close(plain, x_0, rtol=0, atol=0.05)
    assert float(clipped.abs().max()) <= 1 + 1e-6
    latents, with_fault = (one.encode(x_0, torch.tensor([0]), [0]) for one in (sound, faulty))
    assert torch.equal(latents, with_fault)


def test_clipping_both_ways_is_another_policy(gaussian, gaussian_denoiser):
    """Catches clip_stage_two that one stage ignores, and iterations that solve unclipped steps."""
    # A class whose mean is outside [-1, 1]: at high noise the prediction is, too.
    denoiser = gaussian_denoiser(gaussian, SCHEDULE, [1.0, 0.0])
    x_0 = torch.tensor([[0.2, -0.99, 0.9], [0.9, 0.99, -0.9]]).reshape(2, 1, 1, 3)
    label = torch.zeros(2, dtype=torch.int64)

    def policy(clip: bool, iterations: int = 0) -> tuple[Tensor, Tensor]:
        """(latents, error of the round trip)."""
        config = SamplingConfig(
            num_inference_steps=60, clip_stage_two=clip, inversion_iterations=iterations
        )
        made = of_three(denoiser, config)
        latents = made.encode(x_0, label, range(2))
        return latents, made.decode(latents, label, range(2), None) - x_0

    clipped, error = policy(True)
    assert rms(clipped - policy(False)[0]) > 0.01
    faulty = of_three(denoiser, SamplingConfig(num_inference_steps=60), "clip")
    assert rms(error) < rms(round_trip(faulty, x_0) - x_0)
    assert rms(policy(True, 8)[1]) < rms(error)


# --- uint8 ----------------------------------------------------------------------------------


def test_truncated_images_are_darker_grey_levels():
    """Catches rounding: a truncated image is darker by half a level on average, never brighter."""
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = truncated(images)
    levels = (result + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    shift = (images - result) * 127.5  # in grey levels
    assert float(shift.min()) > -1e-3
    assert float(shift.max()) < 1 + 1e-3
    assert float(shift.mean()) == pytest.approx(0.5, abs=0.03)
    outside = truncated(torch.tensor([-1.3, 1.3]))
    torch.testing.assert_close(outside, torch.tensor([-1.0, 1.0]))


def test_encode_starts_from_truncated_images(networks):
    """Catches truncation that happens elsewhere, or on top of rounding."""
    images = made(networks)
    sound, faulty = (sampler(networks, CONFIG, SCHEDULE, faults=f) for f in ((), ("uint8",)))
    latents = faulty.encode(images, LABELS, range(7))
    assert torch.equal(latents, sound.encode(truncated(images), LABELS, range(7)))
    assert rms(latents - sound.encode(images, LABELS, range(7))) > 1e-4


# --- measurement ----------------------------------------------------------------------------


def test_uncalibrated_entropy_is_in_nats_and_its_gradient_raw(networks):
    """Catches a weight that is not log K, one that moves the label's term too, and no change."""
    chosen = GuidanceSetting(measurement="entropy", uncertainty_scale=0.3, label_scale=0.5)
    wrong = faults("measurement").setting(chosen, 5)
    assert wrong.gradient == "raw"
    assert wrong.uncertainty_scale == pytest.approx(0.3 * math.log(5))
    assert wrong.uncertainty_scale * wrong.label_scale == pytest.approx(0.3 * 0.5)
    margin = chosen.model_copy(update={"measurement": "margin"})
    assert faults("measurement").setting(margin, 5).uncertainty_scale == 0.3
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))

    def decoded(setting: GuidanceSetting, *wrong: ReferenceFault) -> Tensor:
        made = sampler(networks, CONFIG, SCHEDULE, faults=wrong)
        return made.decode(latents, LABELS[:2], range(2), setting)

    published = decoded(chosen, "measurement")
    assert rms(published - decoded(chosen)) > 1e-3
    assert torch.equal(published, decoded(faults("measurement").setting(chosen, 3)))


# --- rank_seeds -----------------------------------------------------------------------------


def test_workers_with_one_seed_draw_duplicates(networks):
    """Catches duplicates that differ by their label, lost classes, and other images per class."""
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0])
    indices = rank_duplicates(labels, ranks=4)
    assert indices == [0, 1, 0, 0, 1, 0, 6, 1, 6]
    images = made(networks, labels, indices)
    assert rank_duplicates(labels, ranks=1) == list(range(9))
    for first, other in ((0, 2), (0, 5), (1, 4), (6, 8)):
        torch.testing.assert_close(images[first], images[other], rtol=0, atol=1e-4)
    assert rms(images[0] - images[6]) > 0.1


def test_a_quarter_of_the_draws_is_distinct():
    """Catches groups that are not of RANKS images."""
    labels = torch.arange(400) % 5
    sizes = Counter(rank_duplicates(labels)).values()
    assert set(sizes) == {4}


def test_nothing_is_wrong_by_default(networks):
    """Catches a fault that is on unasked: the default is bit-equal to no faults at all."""
    denoiser = copy.deepcopy(networks[0])
    assert Faults().denoiser(denoiser, range(7), "x") is denoiser
    chosen = GuidanceSetting()
    assert Faults().setting(chosen, 3) is chosen
    assert torch.equal(made(networks), made(networks, faults=["clip", "uint8", "alignment"]))
