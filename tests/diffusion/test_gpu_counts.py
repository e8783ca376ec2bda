"""What a step asks of a GPU, counted without one: numbers that may not grow."""

from __future__ import annotations

import pytest
import torch

from mgdm_ray.config import DenoiserConfig, GuidanceSetting, GuideConfig, SamplingConfig, UNetConfig
from mgdm_ray.diffusion.batches import BatchSource, TrainingData, ahead
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.pipeline import Sampler
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import train_step
from mgdm_ray.diffusion.train_state import new_state
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from tests.diffusion.conftest import sampler
from tests.fake_gpu import Measured, fake_gpu

UNET = UNetConfig(channels=(16, 32), attention=(False, True))
CONFIGS = {
    "denoiser": DenoiserConfig(unet=UNET, batch_size=8, loss_weight="min_snr"),
    "denoiser with all": DenoiserConfig(
        unet=UNET, batch_size=8, loss_weight="min_snr_soft", dropout=0.1, augment=0.5, mirror=True
    ),
    "guide": GuideConfig(unet=UNET, batch_size=8, dropout=0.2),
}
LABELS = torch.arange(12) % 3


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize(
    ("kind", "copies"), [("denoiser", 4), ("guide", 5), ("denoiser with all", 6)]
)
def test_a_training_step_waits_once(kind: str, copies: int, micro_batch: int | None) -> None:
    """Would catch a table, a timestep or a loss that crosses between host and GPU on its own.

    The copies are rows, timesteps, dropped labels and noise, a guide's dropout, a denoiser's
    dropout and changes; it was 9 with 4 waits, and 72 with 25 in 16 parts.
    """
    config, schedule = CONFIGS[kind], make_schedule("cosine")
    images = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    data = TrainingData(images, LABELS, 3)
    source = BatchSource(config, data, 0)
    draws = [source.draw(step) for step in range(2)]
    workers = Workers(device="cuda", micro_batch=micro_batch)
    with fake_gpu() as gpu:
        state, there = new_state(config, 3, 3, 0, "cuda"), data.to(torch.device("cuda"))
        for draw in draws:  # the tables are copied once, in the first step
            with gpu.measured() as found:
                train_step(state, state.model, there, draw, schedule, workers)
    assert state.step == 2
    assert copies_and_waits(found) == (copies, 1)


def copies_and_waits(found: Measured) -> tuple[int, int]:
    """Copies to the GPU, and times that the host waits: for a copy from it, or for a number."""
    return found.counts["to device"], found.counts["to host"] + found.counts["waits"]


def sampling(made: Sampler, work: str) -> None:
    labels, indices = torch.tensor([0, 1, 2, 1]), range(4)
    images = torch.zeros(4, 3, 8, 8)
    setting = GuidanceSetting(uncertainty_scale=0.5, label_scale=0.1)
    if work == "generate":
        made.generate(labels, indices)
    elif work == "encode":
        made.encode(images, labels, indices)
    else:
        random, strengths = work == "random", torch.ones(4) if work == "strengths" else None
        chosen = None if work == "plain" else setting
        made.decode(images, labels, indices, chosen, random=random, strengths=strengths)


@pytest.mark.parametrize(
    ("work", "copies"),
    [("generate", 4), ("encode", 4), ("plain", 4), ("guided", 4), ("random", 5), ("strengths", 5)],
)
def test_sampling_copies_and_waits_once_a_batch(
    work: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch coefficients or timesteps that are copied, or a GPU waited for, at every step."""

    # Fake tensors cannot be copied deeply.
    monkeypatch.setattr("mgdm_ray.diffusion.inference.copy.deepcopy", lambda network: network)

    def counts(steps: int) -> Measured:
        networks = build_denoiser(UNET, 3, 3, 0), build_guide(UNET, 3, 3, 0)
        options = {"guidance_scale": 2.0, "classifier_scale": 1.0, "precision": "bfloat16"}
        config = SamplingConfig(num_inference_steps=steps, batch_size=4, **options)
        there, schedule = Execution(device="cuda", compile="never"), make_schedule("cosine")
        with fake_gpu() as gpu:
            made = sampler(networks, config, schedule, (3, 8, 8), execution=there)
            with gpu.measured() as found:
                sampling(made, work)
        return found

    two, six = counts(2), counts(6)
    assert copies_and_waits(two) == copies_and_waits(six) == (copies, 1)
    operations = six.calls.total()
    assert operations > 2.5 * two.calls.total()
    assert six.counts["casts"] / operations < 0.2


def test_auto_waits_for_the_first_forwards_only() -> None:
    """Would catch a wait after each forward of the sampler, for ever."""
    config = SamplingConfig(num_inference_steps=8, batch_size=4, precision="float32")
    denoiser = build_denoiser(UNET, 3, 3, 0)
    there, schedule = Execution(device="cuda", compile="auto"), make_schedule("cosine")
    with fake_gpu() as gpu:
        made = sampler((denoiser, None), config, schedule, (3, 8, 8), execution=there)
        with gpu.measured() as found:
            sampling(made, "generate")
    assert found.counts["waits"] == 3


@pytest.mark.parametrize("room", [True, False])
def test_batches_are_drawn_ahead_and_equal(room: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a thread that changes a draw or its order, and rows of other images where the
    training set stays on the host."""
    monkeypatch.setattr("mgdm_ray.diffusion.batches.has_room", lambda *_: room)
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 3, 8, 8), generator=numbers, dtype=torch.uint8)
    data = TrainingData(images, LABELS, 3)
    source = BatchSource(CONFIGS["guide"], data, 0)
    found = list(ahead(source, data, torch.device("cpu"), range(2, 5)))
    assert len(found) == 3
    for step, (draw, there) in zip(range(2, 5), found, strict=True):
        expected = source.draw(step)
        assert torch.equal(there.images[draw.rows], images[expected.rows])
        assert torch.equal(there.labels[draw.rows], LABELS[expected.rows])
        assert len(there.images) == (12 if room else 8)
        for name in ("t", "drop_mask", "noise", "feature_masks"):
            assert torch.equal(getattr(draw, name), getattr(expected, name)), name
    assert list(ahead(source, data, torch.device("cpu"), range(5, 5))) == []
