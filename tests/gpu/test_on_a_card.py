"""What only a real card can show: ``make test-gpu``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mgdm_ray.classifiers.augment import augmented
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import (
    NETWORKS,
    DenoiserConfig,
    GuidanceSetting,
    GuideConfig,
    SamplingConfig,
    Training,
    UNetConfig,
)
from mgdm_ray.data.pixels import as_float
from mgdm_ray.diffusion.batches import TrainingData
from mgdm_ray.diffusion.inference import Execution
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import train
from mgdm_ray.diffusion.train_state import TrainState
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.precision import set_up_gpu
from tests.diffusion.conftest import give_every_weight_influence, sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
UNET = UNetConfig(channels=(32, 64), attention=(False, True))
OPTIONS = {"unet": UNET, "steps": 5, "batch_size": 16, "warmup": 2}
LABELS = torch.arange(24) % 3
IMAGES = torch.randint(
    256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
CONFIGS = {"denoiser": DenoiserConfig, "guide": GuideConfig}


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    set_up_gpu("cuda", deterministic=True)
    yield
    set_up_gpu("cuda", deterministic=False)


def trained(kind: str, device: str, precision: str = "float32", **changes: object) -> TrainState:
    config = CONFIGS[kind](precision=precision, **OPTIONS)  # type: ignore[arg-type]
    workers = Workers(device=device, **changes)  # type: ignore[arg-type]
    return train(
        config, TrainingData(IMAGES, LABELS, 3), 0, make_schedule("cosine"), workers=workers
    )


def losses(state: TrainState) -> list[float]:
    return [row["loss"] for row in state.history]


@pytest.mark.parametrize("kind", CONFIGS)
def test_training_is_that_of_a_cpu_and_repeats_itself(kind: str) -> None:
    """Would catch noise, rows or timesteps that differ on a GPU, and steps in any order."""
    first, again = trained(kind, "cuda"), trained(kind, "cuda")
    assert losses(first) == losses(again)
    for ours, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert losses(first) == pytest.approx(losses(trained(kind, "cpu")), rel=1e-3)
    assert losses(trained(kind, "cuda", micro_batch=3)) == pytest.approx(losses(first), rel=1e-3)
    assert losses(trained(kind, "cuda", "auto")) == pytest.approx(losses(first), rel=0.05)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("auto", 0.1)])
def test_images_are_those_of_a_cpu(precision: str, tolerance: float) -> None:
    """Would catch another noise, and a precision that spoils images."""
    made = {}
    for device in ("cpu", "cuda"):
        denoiser, guide = build_denoiser(UNET, 3, 3, 0), build_guide(UNET, 3, 3, 0)
        give_every_weight_influence(denoiser, guide)
        config = SamplingConfig(
            num_inference_steps=5,
            batch_size=4,
            guidance_scale=2.0,
            precision=precision if device == "cuda" else "float32",  # type: ignore[arg-type]
        )
        one = sampler(
            (denoiser, guide),
            config,
            make_schedule("cosine"),
            (3, 16, 16),
            execution=Execution(device=device, compile="never"),
        )
        labels, indices = torch.tensor([0, 1, 2, 1]), range(4)
        images = one.generate(labels, indices)
        latents = one.encode(images, labels, indices)
        setting = GuidanceSetting(uncertainty_scale=0.2)
        made[device] = torch.cat([images, one.decode(latents, labels, indices, setting)])
    error = (made["cuda"] - made["cpu"]).square().mean().sqrt()
    assert float(error) < tolerance


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_and_predict(name: str) -> None:
    """Would catch a network that a card cannot run in the precision of ``auto``."""
    config = Training(steps=3, batch_size=8, augment="standard")
    network = build_network(name, 3, 3, 32, "gpu")
    images = torch.nn.functional.interpolate(as_float(IMAGES), 32)
    recipe = Recipe(config, 3, ("gpu",), device="cuda")
    result = fit(network, images, LABELS, recipe, {"val": images})
    assert len(result.history) == 3
    assert result.probabilities["val"].sum(axis=1) == pytest.approx(1)


def test_pixels_and_augmentation_are_those_of_a_cpu() -> None:
    """Would catch a division by a reciprocal, and random numbers that are drawn on the card."""
    assert torch.equal(as_float(IMAGES.cuda()).cpu(), as_float(IMAGES))
    ours = augmented(as_float(IMAGES.cuda()), "standard", ("a", 1)).cpu()
    theirs = augmented(as_float(IMAGES), "standard", ("a", 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
