"""Training: exact resume, independence of the number of workers, and that it learns."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn

from mgdm_ray.config import DenoiserConfig, GuideConfig, UNetConfig
from mgdm_ray.diffusion.batches import BatchSource, TrainingData
from mgdm_ray.diffusion.losses import denoiser_loss
from mgdm_ray.diffusion.parallel import Workers
from mgdm_ray.diffusion.schedule import make_schedule
from mgdm_ray.diffusion.train import (
    Hooks,
    NonFiniteLoss,
    averaging,
    guide_probabilities,
    learning_rate,
    train,
    update_ema,
)
from mgdm_ray.diffusion.train_state import TrainState, new_state
from mgdm_ray.precision import has_bfloat16

SCHEDULE = make_schedule("cosine")
SMALL = UNetConfig(channels=(16, 16), attention=(False, False))
LABELS = (torch.arange(30) % 5 == 0).long()  # 6 of class 1, 24 of class 0
CONFIGS = {
    "denoiser": DenoiserConfig(
        unet=SMALL, steps=6, batch_size=8, warmup=2, checkpoint_every=3, precision="float32"
    ),
    "guide": GuideConfig(
        unet=SMALL, steps=6, batch_size=8, warmup=2, checkpoint_every=3, precision="float32"
    ),
}


def toy_images(labels: torch.Tensor = LABELS) -> torch.Tensor:
    """Class 0 dark, class 1 bright, each with a little texture."""
    numbers = torch.Generator().manual_seed(0)
    texture = 0.1 * torch.randn(len(labels), 1, 8, 8, generator=numbers)
    return (texture + (labels.float() - 0.5).reshape(-1, 1, 1, 1)).clamp(-1, 1)


def trained(config, images=None, labels=LABELS, **options) -> TrainState:
    images = toy_images() if images is None else images
    return train(config, TrainingData(images, labels, 2), 0, SCHEDULE, **options)


def source(kind="denoiser", labels=LABELS, rank=0, world_size=1, seed=0, **changes) -> BatchSource:
    own = {"label_dropout": 0.25} if kind == "denoiser" else {}
    config = CONFIGS[kind].model_copy(update={"batch_size": 24, **own, **changes})
    data = TrainingData(torch.zeros(len(labels), 1, 4, 4), labels, 4)
    return BatchSource(config, data, seed, workers=Workers(rank, world_size))


# --- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_share_one_batch(workers):
    """Catches workers that draw duplicates (equal seeds) or another batch than one worker would."""
    whole = source().draw(5)
    shares = [source(rank=r, world_size=workers).draw(5) for r in range(workers)]
    for name in ("rows", "t", "drop_mask", "noise"):
        joined = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(joined, getattr(whole, name)), name


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_one_dropout(workers):
    """Catches masks that are equal on all workers, or that the number of workers changes."""
    options = {"kind": "guide", "dropout": 0.4}
    whole = source(**options).draw(5)
    shares = [source(rank=r, world_size=workers, **options).draw(5) for r in range(workers)]
    assert torch.equal(torch.cat([s.feature_masks for s in shares]), whole.feature_masks)
    assert whole.feature_masks.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert len({tuple(row) for row in whole.feature_masks.tolist()}) > 8
    assert not torch.equal(source(**options).draw(6).feature_masks, whole.feature_masks)
    plain = source("guide").draw(5)
    assert plain.feature_masks is None
    for name in ("rows", "t", "drop_mask", "noise"):  # and all else is drawn as without
        assert torch.equal(getattr(whole, name), getattr(plain, name)), name


def test_batches_differ_by_step_seed_and_kind():
    """Catches a batch that repeats: no training would show it but by a poor result."""
    first = source().draw(0)
    for other in (source().draw(1), source(seed=1).draw(0), source(kind="guide").draw(0)):
        assert not torch.equal(first.rows, other.rows)
        assert not torch.equal(first.t, other.t)
        assert not torch.equal(first.noise, other.noise)
    assert len({float(n) for n in first.noise.flatten()}) == first.noise.numel()


def test_distribution_of_a_batch():
    """Catches t that misses an end, noise that is not N(0, 1) and a wrong dropout rate."""
    draws = [source(batch_size=2000).draw(s) for s in range(3)]
    t = torch.cat([d.t for d in draws])
    assert int(t.min()) < 10
    assert int(t.max()) > 989
    assert float(t.double().mean()) == pytest.approx(499.5, abs=5 * 289 / math.sqrt(6000))
    dropped = torch.cat([d.drop_mask for d in draws]).double().mean()
    assert float(dropped) == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / 6000))
    noise = torch.cat([d.noise for d in draws]).double()
    assert float(noise.mean()) == pytest.approx(0, abs=5 / math.sqrt(noise.numel()))
    assert float(noise.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * noise.numel()))


def test_class_balance():
    """Catches balance that never sees some images, or that a missing class breaks."""
    rows = torch.cat([source().draw(s).rows for s in range(40)])
    assert float(LABELS[rows].double().mean()) == 0.5
    assert set(rows.tolist()) == set(range(30))
    plain = torch.cat([source(class_balanced=False).draw(s).rows for s in range(40)])
    # 960 draws of probability 0.2
    assert float(LABELS[plain].double().mean()) == pytest.approx(0.2, abs=5 * 0.013)
    assert set(plain.tolist()) == set(range(30))
    gap = torch.tensor([0, 3, 3, 3])
    rows = source(labels=gap).draw(0).rows
    assert torch.bincount(gap[rows], minlength=4).tolist() == [12, 0, 0, 12]


def test_shares_differ_by_one_image_at_most():
    """Catches images that nobody trains on where the workers do not divide the batch."""
    shares = [source(rank=r, world_size=5).draw(3) for r in range(5)]
    assert sorted(len(share) for share in shares) == [4, 5, 5, 5, 5]
    whole = source().draw(3)
    assert torch.equal(torch.cat([share.rows for share in shares]), whole.rows)
    assert torch.equal(torch.cat([share.noise for share in shares]), whole.noise)
    with pytest.raises(ValueError, match=r"24\b.*\b25\b"):
        source(world_size=25)
    with pytest.raises(ValueError, match="images"):
        source(labels=LABELS[:0])


def test_two_workers_average_to_one_workers_gradient():
    """Catches shares whose mean gradient is not the gradient of the batch."""
    config, images = CONFIGS["denoiser"], toy_images()
    model = new_state(config, 1, 2, 0).model
    numbers = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=numbers)

    def gradient(rank: int, world_size: int) -> torch.Tensor:
        changed = config.model_copy(update={"label_dropout": 0.5})
        data = TrainingData(images, LABELS, 2)
        draw = BatchSource(changed, data, 0, workers=Workers(rank, world_size)).draw(0)
        conditions = torch.where(draw.drop_mask, 2, LABELS[draw.rows])
        loss = denoiser_loss(model, images[draw.rows], conditions, draw, SCHEDULE, config)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    whole = gradient(0, 1)
    average = (gradient(0, 2) + gradient(1, 2)) / 2
    torch.testing.assert_close(average, whole, rtol=1e-3, atol=1e-6)
    assert float((gradient(0, 2) - whole).abs().max()) > 1e-3


# --- the loop -------------------------------------------------------------------------------


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kind", "dropout"), [("denoiser", 0), ("guide", 0), ("guide", 0.5)])
def test_resume_is_bit_exact(kind, dropout, layout, tmp_path, monkeypatch):
    """Catches anything a checkpoint forgets: moments, EMA, position in the data, history; dropout
    that is drawn from how often it was drawn before; and moments in another layout than their
    parameter's, which on a GPU is channels_last."""
    monkeypatch.setattr(
        "mgdm_ray.diffusion.train_state.in_layout",
        lambda model, *_, **__: model.to(memory_format=layout),
    )
    config, images = CONFIGS[kind], toy_images()
    if dropout:
        config = config.model_copy(update={"dropout": dropout})

    def checkpoint(state):
        state.save(tmp_path / f"{state.step}")

    whole = trained(config, images, hooks=Hooks(on_checkpoint=checkpoint))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "6"]
    steps: list[int] = []
    hooks = Hooks(on_step=lambda step, _loss: steps.append(step))
    resumed = trained(config, images, resume=tmp_path / "3", hooks=hooks)
    assert steps == [4, 5, 6]
    assert resumed.history == whole.history
    assert [row["step"] for row in whole.history] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert torch.equal(weights(resumed.trained), weights(whole.trained))
    for ours, theirs in zip(
        resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True
    ):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    again = trained(config, images, resume=tmp_path / "6")
    assert torch.equal(weights(again.trained), weights(whole.trained))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    """Catches going on from weights that do not fit."""
    new_state(CONFIGS["guide"], 1, 2, 0).save(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        new_state(CONFIGS["guide"], 1, 3, 0).load(tmp_path)


def test_training_leaves_the_global_random_state_alone():
    """Catches draws from the global generator, which would tie results to what ran before."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trained(CONFIGS["denoiser"])
    dropout = CONFIGS["guide"].model_copy(update={"dropout": 0.5})
    trained(dropout)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_trained_with():
    """Catches a key that is accepted and then ignored, and a first step from other weights."""
    config = CONFIGS["guide"]
    losses = []
    for dropout in (0.0, 0.5):
        changed = config.model_copy(update={"dropout": dropout})
        result = trained(changed)
        losses.append(result.history[0]["loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], abs=0.2)


def test_nan_stops_training():
    """Catches a NaN that trains on; and the error must survive pickling (copy uses the same)."""
    images = toy_images()
    images[:] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"loss.*\b1\b") as caught:
        trained(CONFIGS["guide"], images)
    copied = copy.copy(caught.value)
    assert (copied.step, str(copied)) == (1, str(caught.value))


def test_infinite_gradient_stops_training():
    """Catches weights that are spoilt by a finite loss with an infinite gradient."""

    class Root(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args, **kwargs):
            return self.model(*args, **kwargs).abs().sqrt()  # infinite slope at 0

    images = toy_images()
    config = CONFIGS["denoiser"].model_copy(update={"grad_clip": None})
    wrapped = Workers(wrap=Root)
    with pytest.raises(NonFiniteLoss, match=r"gradient.*\b1\b"):
        trained(config, images, workers=wrapped)


def test_learning_rate():
    """Catches a step of zero at the start, a peak that is missed, a decay that is off by one."""
    config = GuideConfig(steps=12, warmup=4, learning_rate=0.8)
    rates = [learning_rate(step, config) for step in range(12)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[8] == pytest.approx(0.4)
    assert 0 < rates[11] < 0.05
    flat = GuideConfig(steps=12, warmup=0, decay=False, learning_rate=0.8)
    assert {learning_rate(step, flat) for step in range(12)} == {0.8}


def test_ema_by_hand():
    """Catches an average without warm-up: after few steps it would still be the random weights."""
    average, model = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 0.0)
    nn.init.constant_(model.weight, 1.0)
    config = DenoiserConfig(ema_decay=0.99)
    update_ema(average, model, averaging(0, config))
    assert float(average.weight.detach()) == pytest.approx(0.9)  # d = 1 / 10
    update_ema(average, model, averaging(1, config))
    assert float(average.weight.detach()) == pytest.approx(1 - 0.1 * 2 / 11)
    nn.init.constant_(average.weight, 0.0)
    update_ema(average, model, averaging(10_000, config))
    assert float(average.weight.detach()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_an_average_of_a_width_is_as_wide_at_every_length(width):
    """Catches another exponent: the weights of n steps have the standard deviation ``width n``."""
    config = DenoiserConfig(ema_width=width)
    assert averaging(0, config) == 0
    for steps in (1000, 4000):
        decay = torch.tensor([averaging(n, config) for n in range(steps)], dtype=torch.float64)
        later = decay.flip(0).cumprod(0).flip(0)  # of this step and all after it
        share = (1 - decay) * torch.cat([later[1:], torch.ones(1)])
        place = (torch.arange(steps) + 1) / steps
        mean = float((share * place).sum())
        assert float(share.sum()) == pytest.approx(1)
        spread = math.sqrt(float((share * (place - mean).square()).sum()))
        assert spread == pytest.approx(width, rel=0.01)


OPTIONS = {"dropout": 0.2, "augment": 0.5, "mirror": True, "ema_width": 0.1}


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_dropout_and_changes(workers):
    """Catches options of the denoiser whose numbers depend on the workers, or that move others."""
    options = {"dropout": 0.2, "augment": 0.5, "mirror": True}
    whole = source(**options).draw(5)
    shares = [source(rank=r, world_size=workers, **options).draw(5) for r in range(workers)]
    for name in ("feature_masks", "changes"):
        assert torch.equal(torch.cat([vars(s)[name] for s in shares]), vars(whole)[name]), name
        assert not torch.equal(vars(source(**options).draw(6))[name], vars(whole)[name])
    plain = source().draw(5)
    assert plain.feature_masks is None
    assert plain.changes is None
    for name in ("rows", "t", "drop_mask", "noise"):
        assert torch.equal(getattr(whole, name), getattr(plain, name)), name


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_training_with_all_options_goes_on_exactly(micro_batch, tmp_path):
    """Catches dropout or changes that a resume or smaller parts draw anew, and masks of a part that
    another part sees."""
    config = CONFIGS["denoiser"].model_copy(update=OPTIONS)
    whole = trained(config)
    saved: list[TrainState] = []
    hooks = Hooks(on_checkpoint=lambda s: saved.append(s) or s.save(tmp_path / str(s.step)))
    parts = Workers(micro_batch=micro_batch, activation_checkpointing=micro_batch is not None)
    trained(config, workers=parts, hooks=hooks)
    again = trained(config, workers=parts, resume=tmp_path / "3")
    for name, value in again.trained.state_dict().items():
        expected = whole.trained.state_dict()[name]
        torch.testing.assert_close(value, expected, rtol=2e-3, atol=2e-5)
    unlike = trained(CONFIGS["denoiser"].model_copy(update={"ema_width": 0.1}))
    assert whole.history[-1]["loss"] != unlike.history[-1]["loss"]


def test_bfloat16_is_used_where_asked_for():
    """Catches autocast that is silently off, or NaN in it."""
    config = CONFIGS["guide"].model_copy(update={"precision": "bfloat16"})
    images = toy_images()
    low = trained(config, images)
    full = trained(CONFIGS["guide"], images)
    assert low.history[0]["loss"] != full.history[0]["loss"]
    assert low.history[0]["loss"] == pytest.approx(full.history[0]["loss"], abs=0.05)
    assert {p.dtype for p in low.model.parameters()} == {torch.float32}
    assert isinstance(has_bfloat16(torch.device("cpu")), bool)


def test_guide_probabilities_are_those_of_noisy_images():
    """Catches clean images at every t, noise that ignores the seed or follows the batches."""

    class Bright(nn.Module):
        def forward(self, x, _t):
            mean = x.mean(dim=(1, 2, 3))
            return torch.stack([-mean, mean], dim=1)

    def ask(t, seed=0, batch_size=7):
        return guide_probabilities(Bright(), toy_images(), SCHEDULE, seed, t, batch_size=batch_size)

    assert ask(0).dtype == torch.float64
    torch.testing.assert_close(ask(0).sum(dim=1), torch.ones(30).double())
    assert torch.equal(ask(0).argmax(dim=1), LABELS)
    assert 0.2 < float((ask(999).argmax(dim=1) == LABELS).double().mean()) < 0.8
    assert not torch.equal(ask(500), ask(500, seed=1))
    assert torch.equal(ask(500), ask(500, batch_size=30))
