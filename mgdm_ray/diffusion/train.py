"""The training loop of denoiser and guide, without Ray: one process is one of its workers."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mgdm_ray.config import DenoiserConfig, GuideConfig, TrainConfig
from mgdm_ray.data.pixels import as_float
from mgdm_ray.diffusion import STATE_FILE
from mgdm_ray.diffusion.batches import BatchSource, Draw, TrainingData, ahead
from mgdm_ray.diffusion.changes import TOLD, changed
from mgdm_ray.diffusion.losses import denoiser_loss, guide_loss
from mgdm_ray.diffusion.parallel import (
    ALONE,
    Workers,
    compiled,
    exchanging,
    forget_activations,
    local,
    sum_over_workers,
    whole,
)
from mgdm_ray.diffusion.schedule import NoiseSchedule
from mgdm_ray.diffusion.train_state import TrainState, new_state
from mgdm_ray.diffusion.unet import null_label
from mgdm_ray.precision import autocast
from mgdm_ray.seeding import per_image_noise

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
"""Between two calls of ``must_stop``: in each, all workers wait for all."""
LEAST_SCALE = 1e-4
"""Gradients that overflow under a smaller loss scale than this are infinite themselves."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite at ``step`` (1-based)."""

    def __init__(self, step: int, what: str = "loss") -> None:
        super().__init__(step, what)  # what pickle calls the class with again
        self.step, self.what = step, what

    def __str__(self) -> str:
        return f"the {self.what} is not finite at step {self.step}"


@dataclass(frozen=True)
class Hooks:
    """What is called during training."""

    on_step: Callable[[int, float], None] | None = None
    """(step, loss), after every step; 1-based."""
    on_checkpoint: Callable[[TrainState], None] | None = None
    """After every ``config.checkpoint_every`` steps, after the last one, and once after
    ``must_stop`` returned True; on every rank."""
    must_stop: Callable[[], bool] | None = None
    """Whether a machine will be taken away; called on all ranks after the same step."""


def train(
    config: DenoiserConfig | GuideConfig,
    data: TrainingData,
    seed: int,
    schedule: NoiseSchedule,
    *,
    workers: Workers = ALONE,
    resume: Path | None = None,
    hooks: Hooks = Hooks(),
    whole_batch_dropout: bool = False,
) -> TrainState:
    """Train for ``config.steps`` steps in all, those of the checkpoint ``resume`` included.

    ``data`` is the whole training set on every worker, on the CPU; ``schedule`` the denoiser's for
    the guide too. Of sharded training only the first rank gets the whole state. NonFiniteLoss;
    ValueError for more workers than a batch has images.
    """
    source = BatchSource(
        config,
        data,
        seed,
        workers=workers,
        num_train_timesteps=schedule.num_train_timesteps,
        whole_batch_dropout=whole_batch_dropout,
    )
    new = (config, data.images.shape[1], data.num_classes, seed, workers.device)
    state = new_state(*new)
    if resume is not None and (resume / STATE_FILE).exists():
        state.load(resume)
    if workers.activation_checkpointing:
        forget_activations(state.model)
    if workers.sharded:
        state.shard()
    forward = compiled(state.model) if workers.compile else state.model
    forward = forward if workers.wrap is None else workers.wrap(forward)
    forward.train()
    watch = _Watch(hooks, workers.rank)
    coming = ahead(source, data, torch.device(workers.device), range(state.step, config.steps))
    for draw, images in coming:
        step = train_step(state, forward, images, draw, schedule, workers, watch.is_due)
        state.history.append({"step": state.step, "loss": step.loss})
        if hooks.on_step is not None:
            hooks.on_step(state.step, step.loss)
        due = state.step % config.checkpoint_every == 0 or state.step == config.steps
        due = (step.look and watch.look()) or due
        if due and hooks.on_checkpoint is not None:
            hooks.on_checkpoint(state)
    if not workers.sharded:
        return state
    return state.gather(new_state(*new) if workers.rank == 0 else None)


class _Watch:
    """Calls ``must_stop`` every LOOK_EVERY_S, by the first rank's watch, until it returns True."""

    def __init__(self, hooks: Hooks, rank: int) -> None:
        self.must_stop = hooks.must_stop
        self.counts = rank == 0 and hooks.must_stop is not None
        self.looked, self.warned = time.monotonic(), False

    @property
    def is_due(self) -> bool:
        return self.counts and not self.warned and time.monotonic() - self.looked > LOOK_EVERY_S

    def look(self) -> bool:
        self.looked = time.monotonic()
        self.warned = self.must_stop is not None and self.must_stop()
        return self.warned


@dataclass(frozen=True)
class Step:
    """What all workers know after a step."""

    loss: float
    """Mean over the batch, before the step."""
    look: bool
    """The first rank wants all of them to call ``must_stop``."""


def train_step(
    state: TrainState,
    forward: nn.Module,
    data: TrainingData,
    draw: Draw,
    schedule: NoiseSchedule,
    workers: Workers = ALONE,
    look: bool = False,
) -> Step:
    """One optimiser step in place, on this worker's share ``draw`` of the batch.

    ``forward`` is the model, wrapped or not, and ``data`` on its device; ``look`` is passed on to
    all workers. A GPU is waited for once, before its weights change.
    """
    config, device = state.config, next(state.model.parameters()).device
    draw, value = draw.to(device), None
    while value is None:
        value = _gradients(state, forward, data, draw, schedule, workers)
    known = sum_over_workers(torch.stack([value, torch.full_like(value, look)]))
    norm = _clipped(state).double().reshape(1)
    mean, looking, gradient_norm = torch.cat([known, norm]).cpu().tolist()
    overflow = _check(state, mean, gradient_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    state.scaler.step(state.optimizer)  # nothing after an overflow, which a smaller scale avoids
    state.scaler.update()
    if isinstance(config, DenoiserConfig) and state.ema is not None and not overflow:
        update_ema(state.ema, state.model, averaging(state.step, config))
    state.step += 1
    return Step(mean, looking > 0)


def _gradients(
    state: TrainState,
    forward: nn.Module,
    data: TrainingData,
    draw: Draw,
    schedule: NoiseSchedule,
    workers: Workers,
) -> Tensor | None:
    """Set the gradients of this worker's share, part by part; its loss, a scalar on the device.

    None if a GPU's memory does not hold a part: then ``state.micro_batch`` is half of it, and the
    same call again gives the same gradients. OutOfMemoryError with one image a part, and with
    several workers, which wait for each other in the exchange: they must start again together.
    """
    config, device = state.config, draw.t.device
    state.optimizer.zero_grad(set_to_none=True)
    value = torch.zeros((), dtype=torch.float64, device=device)
    limits = [most for most in (workers.micro_batch, state.micro_batch) if most is not None]
    parts = draw.parts(min(limits, default=None))
    try:
        for part in parts:
            # The exchange averages over the workers; their shares may differ.
            weight = len(part) * workers.world_size / config.batch_size
            with exchanging(forward, part is parts[-1]):
                loss = _loss(state, forward, data, part, schedule, device)
                torch.autograd.backward(state.scaler.scale(loss if weight == 1 else loss * weight))
            value = value + loss.detach().double() * len(part) / config.batch_size
        return value
    except torch.OutOfMemoryError:
        largest = max(map(len, parts))
        if largest == 1 or workers.world_size > 1:
            raise
        state.micro_batch = largest // 2
        log.warning(
            "out of GPU memory at %d images at a time: continuing with resources.micro_batch %d; "
            "the gradients are the same",
            largest,
            state.micro_batch,
        )
    # Here the error, and what its frames hold, is gone.
    state.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    return None


def _clipped(state: TrainState) -> Tensor:
    """Unscale and clip the gradients; their norm before clipping, a scalar on the device."""
    state.scaler.unscale_(state.optimizer)
    # An infinite limit does not change the gradients, but still tells their norm.
    limit = math.inf if state.config.grad_clip is None else state.config.grad_clip
    return whole(nn.utils.clip_grad_norm_(state.model.parameters(), limit))


def _check(state: TrainState, loss: float, gradient_norm: float) -> bool:
    """Whether the gradients overflowed in float16. NonFiniteLoss.

    Every worker has the same loss and the same averaged gradient: all of them stop here, and none
    waits in the next exchange for one that left.
    """
    if not math.isfinite(loss):
        raise NonFiniteLoss(state.step + 1)
    overflow = not math.isfinite(gradient_norm)
    if overflow and not (state.scaler.is_enabled() and state.scaler.get_scale() > LEAST_SCALE):
        raise NonFiniteLoss(state.step + 1, "gradient")
    return overflow


def _loss(
    state: TrainState,
    forward: nn.Module,
    data: TrainingData,
    draw: Draw,
    schedule: NoiseSchedule,
    device: torch.device,
) -> Tensor:
    """Scalar: the mean over the images of ``draw``."""
    config = state.config
    x_0, y = as_float(data.images[draw.rows]), data.labels[draw.rows]
    if draw.changes is not None:
        x_0 = changed(x_0, draw.changes)
    with autocast(config.precision, device):
        if isinstance(config, DenoiserConfig):
            y = torch.where(draw.drop_mask, null_label(state.model), y)
            told = draw.changes if config.augment else None
            given = y if told is None else (y, told[:, :TOLD])
            return denoiser_loss(forward, x_0, given, draw, schedule, config)
        return guide_loss(forward, x_0, y, draw, schedule, config.label_smoothing)


def learning_rate(step: int, config: TrainConfig) -> float:
    """At the 0-based ``step``: linear warm-up to the peak, then cosine decay towards zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if not config.decay:
        return config.learning_rate
    progress = (step - config.warmup) / (config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def averaging(step: int, config: DenoiserConfig) -> float:
    """The decay of the average at the 0-based ``step``, which forgets the first, random weights.

    min(``ema_decay``, (1 + step) / (10 + step)); or with ``ema_width`` (1 - 1 / n)^(gamma + 1) at
    the n-th step: weights of the n-th step count as n^gamma (Karras et al. 2024, eq. 1 to 3).
    """
    if config.ema_width is None:
        return min(config.ema_decay, (1 + step) / (10 + step))
    return float((1 - 1 / (step + 1)) ** (_power(config.ema_width) + 1))


@functools.cache
def _power(width: float) -> float:
    """gamma of an average whose standard deviation is ``width`` of its length."""
    # eq. 126: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for gamma
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, d: float) -> None:
    """ema <- d ema + (1 - d) model."""
    # All parameters at once. torch's function has no annotations.
    average = get_ema_multi_avg_fn(d)  # type: ignore[no-untyped-call]
    average([local(p) for p in ema.parameters()], [local(p) for p in model.parameters()], None)


@torch.no_grad()
def guide_probabilities(
    guide: nn.Module,
    images: Tensor,
    schedule: NoiseSchedule,
    seed: int,
    t: int,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
) -> Tensor:
    """p(y | x_t, t) of ``images`` `[N, C, H, W]` noised to ``t``: float64 `[N, K]` on the CPU.

    An image's noise is a function of seed, t and its index. Sets the guide to eval mode.
    """
    guide.to(device).eval()
    rows = []
    for start in range(0, len(images), batch_size):
        x_0 = images[start : start + batch_size]
        index = range(start, start + len(x_0))
        noise = per_image_noise(tuple(x_0.shape[1:]), index, "guide_accuracy", seed, t)
        x_t = schedule.q_sample(x_0, t, noise).to(device)
        logits = guide(x_t, torch.full((len(x_t),), t, device=device))
        rows.append(logits.double().softmax(dim=1).cpu())
    return torch.cat(rows)
