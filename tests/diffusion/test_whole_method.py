"""Denoiser, guide and all stages together, on a toy."""

from __future__ import annotations

import torch

from mgdm_ray.config import DenoiserConfig, GuidanceSetting, GuideConfig, SamplingConfig
from mgdm_ray.diffusion.guidance import MEASUREMENTS
from mgdm_ray.diffusion.train import guide_probabilities
from tests.diffusion.conftest import sampler
from tests.diffusion.test_train import SCHEDULE, SMALL, toy_images, trained


def test_the_whole_method_on_a_toy():
    """Train both, generate, encode, decode. Catches parts that fit alone but not together.

    Dark and bright images: generated ones must have their label's brightness, the round trip must
    return them, and guidance must raise the guide's uncertainty above the round trip's.
    """
    labels = torch.arange(40) % 2
    images = toy_images(labels)
    options = {"unet": SMALL, "batch_size": 16, "warmup": 10, "precision": "float32"}
    denoiser_config = DenoiserConfig(steps=100, learning_rate=3e-3, **options)
    state = trained(denoiser_config, images, labels)
    losses = [row["loss"] for row in state.history]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    guide_config = GuideConfig(steps=60, **options)
    guide = trained(guide_config, images, labels).trained
    accuracy = {
        t: float(
            (guide_probabilities(guide, images, SCHEDULE, 0, t).argmax(1) == labels).sum() / 40
        )
        for t in (0, 999)
    }
    assert accuracy[0] > 0.95
    assert accuracy[999] < 0.8
    both = sampler((state.trained, guide), SamplingConfig(num_inference_steps=20), SCHEDULE)
    made = both.generate(labels, range(40))
    bright = made.mean(dim=(1, 2, 3)) > 0
    assert float((bright == labels.bool()).double().mean()) >= 0.95
    latents = both.encode(made, labels, range(40))
    entropy = []
    for setting in (None, GuidanceSetting(uncertainty_scale=0.5)):
        back = both.decode(latents, labels, range(40), setting)
        if setting is None:
            assert float((back - made).square().mean().sqrt()) < 0.15
        logits = guide(back, torch.zeros(40, dtype=torch.int64))
        entropy.append(float(MEASUREMENTS["entropy"](logits, back, 0, labels).mean()))
    assert entropy[1] > entropy[0] + 0.1, entropy
