"""The losses, with networks whose error is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mgdm_ray.config import DenoiserConfig, UNetConfig
from mgdm_ray.diffusion import train
from mgdm_ray.diffusion.batches import Draw, TrainingData
from mgdm_ray.diffusion.losses import denoiser_loss, guide_loss, loss_weight
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train_state import new_state

SMALL = UNetConfig(channels=(16, 16), attention=(False, False))
SCHEDULE = make_schedule("linear")
NUMBERS = torch.Generator().manual_seed(0)
X_0, NOISE = torch.randn(2, 6, 1, 4, 4, generator=NUMBERS)
T = torch.tensor([0, 10, 300, 600, 900, 999])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
DRAW = Draw(torch.arange(6), T, torch.zeros(6, dtype=torch.bool), NOISE)


class Oracle(nn.Module):
    """Knows the answer, and errs by ``error``; remembers the labels it was given."""

    def __init__(self, answer: torch.Tensor, error: float = 0.0) -> None:
        super().__init__()
        self.answer, self.error = answer, error

    def forward(self, x, timesteps, class_labels):
        torch.testing.assert_close(x, SCHEDULE.q_sample(X_0, T, NOISE))
        assert torch.equal(timesteps, T)
        self.seen = class_labels
        return self.answer + self.error


@pytest.mark.parametrize("weight", ["uniform", "mgdm", "min_snr", "min_snr_soft"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_denoiser_loss(prediction, weight):
    """Catches a wrong target (eps for v), a wrong weight, and a sum in place of a mean."""
    config = DenoiserConfig(prediction=prediction, loss_weight=weight)
    answer = NOISE if prediction == "epsilon" else SCHEDULE.v_target(X_0, T, NOISE)

    def loss(error):
        return float(denoiser_loss(Oracle(answer, error), X_0, LABELS, DRAW, SCHEDULE, config))

    assert loss(0.0) == pytest.approx(0, abs=1e-10)
    mean_weight = 1.0
    if weight == "mgdm":
        a = SCHEDULE.alphas_cumprod[T]
        mean_weight = float((1 / torch.sqrt(1 + a / (1 - a))).mean())  # 1 / sqrt(1 + snr)
    if weight.startswith("min_snr"):
        a = SCHEDULE.alphas_cumprod[T]
        snr = a / (1 - a)
        below = snr if prediction == "epsilon" else snr + 1
        least = snr.clamp(max=5) if weight == "min_snr" else 1 / (1 / snr + 1 / 5)
        mean_weight = float((least / below).mean())
    assert loss(0.5) == pytest.approx(0.25 * mean_weight, rel=1e-4)


def test_weight_is_one_over_root_one_plus_snr():
    """The identity w_t = sqrt(1 - alpha_bar_t), at every t."""
    t = torch.arange(1000)
    a = SCHEDULE.alphas_cumprod
    ours = loss_weight(t, SCHEDULE, DenoiserConfig(loss_weight="mgdm")).double()
    torch.testing.assert_close(ours, (1 + a / (1 - a)).rsqrt(), rtol=1e-6, atol=0)


def test_labels_are_dropped_per_sample():
    """Catches one dropout decision for the whole batch, the published code's fault."""
    model = Oracle(NOISE)
    config = DenoiserConfig(recipe="paper", precision="float32", unet=SMALL)
    state = new_state(config, 1, 3, 0)
    draw = replace(DRAW, drop_mask=torch.tensor([True, False, False, True, False, True]))
    train._loss(state, model, TrainingData(X_0, LABELS, 3), draw, SCHEDULE, torch.device("cpu"))
    assert model.seen.tolist() == [3, 1, 2, 3, 1, 3]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_guide_loss(smoothing):
    """Catches a classifier trained on clean images, on other timesteps, or without smoothing."""
    seen = []

    def guide(x, t):
        seen.append((x, t))
        return x.flatten(1)[:, :3]

    ours = guide_loss(guide, X_0, LABELS, DRAW, SCHEDULE, smoothing)  # type: ignore[arg-type]
    x_t = SCHEDULE.q_sample(X_0, T, NOISE)
    log_p = x_t.flatten(1)[:, :3].log_softmax(dim=1)
    target = torch.full((6, 3), smoothing / 3)
    target[torch.arange(6), LABELS] += 1 - smoothing
    torch.testing.assert_close(ours, -(target * log_p).sum(dim=1).mean())
    assert torch.equal(seen[0][1], T)


def test_min_snr_weighs_the_same_error_of_x_0_alike():
    """Catches the weight of eps used for v: an error e of x_0 is an error e sqrt(snr) of eps and
    e sqrt(snr + 1) of v, so that weight times error squared must agree."""
    t = torch.arange(1000)
    snr = SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)
    weights = [
        loss_weight(t, SCHEDULE, DenoiserConfig(loss_weight="min_snr", prediction=p)).double()
        for p in ("epsilon", "v")
    ]
    torch.testing.assert_close(weights[0] * snr, weights[1] * (snr + 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights[0] * snr, snr.clamp(max=5), rtol=1e-4, atol=1e-6)
