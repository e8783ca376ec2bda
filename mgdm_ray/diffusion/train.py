"""The training loop of denoiser and guide, without Ray: one process is one of its workers."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mgdm_ray.config import DenoiserConfig, GuideConfig, TrainConfig
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.diffusion.batches import BatchSource, Draw
from mgdm_ray.diffusion.inference import in_layout
from mgdm_ray.diffusion.losses import denoiser_loss, guide_loss
from mgdm_ray.diffusion.parallel import (
    Workers,
    exchanging,
    forget_activations,
    local,
    shard,
    sharded_like,
    sum_over_workers,
    whole,
)
from mgdm_ray.diffusion.schedule import NoiseSchedule
from mgdm_ray.diffusion.unet import build_denoiser, build_guide, null_label
from mgdm_ray.precision import autocast, resolved_precision
from mgdm_ray.seeding import per_image_noise

Kind = Literal["denoiser", "guide"]
History = list[dict[str, float]]
"""Rows {"step": 1-based, "loss": mean over the batch of all workers}."""

ALONE = Workers()
LOOK_EVERY_S = 5.0
"""Between two looks whether a machine will be taken away: each makes all workers wait for all."""
LEAST_SCALE = 1e-4
"""Gradients that overflow under a smaller scale than this are infinite themselves."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of one parameter."""


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is NaN or infinite at ``step`` (1-based)."""

    def __init__(self, step: int, what: str = "loss") -> None:
        super().__init__(step, what)  # what pickle calls the class with again
        self.step, self.what = step, what

    def __str__(self) -> str:
        return f"the {self.what} is not finite at step {self.step}"


@dataclass
class TrainState:
    """All that training needs to go on exactly where it stopped; ``step`` steps are done."""

    model: nn.Module
    ema: nn.Module | None
    """Average of the weights: the denoiser's; the guide has none."""
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    """Of the loss in float16; does nothing in other precisions."""
    step: int = 0
    history: History = field(default_factory=list)
    precision: str = "float32"
    """Of the arithmetic: what ``precision: auto`` came to here."""

    @property
    def trained(self) -> nn.Module:
        """The network to use after training: the averaged weights where there are any."""
        return self.model if self.ema is None else self.ema

    def tensors(self) -> dict[str, Tensor]:
        """All of it, on the CPU; the names begin with ``model.``, ``ema.`` or ``optimizer.``.

        Where weights are sharded, all workers must ask.
        """
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
        return {name: whole(v.detach()).cpu().contiguous() for name, v in tensors.items()}

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Write ``state.safetensors`` and, last, ``state.json`` into ``folder`` (made if needed).

        ``tensors`` is what ``tensors()`` gave, if it was asked already.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors() if tensors is None else tensors, folder / TENSORS_FILE)
        facts = {
            "step": self.step,
            "history": self.history,
            "precision": self.precision,
            "scaler": self.scaler.state_dict(),
        }
        (folder / STATE_FILE).write_text(json.dumps(facts), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take over what ``save`` wrote; ValueError if it is the state of another network."""
        facts = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        try:
            self.take(load_file(folder / TENSORS_FILE))
        except RuntimeError as error:
            raise ValueError(f"{folder} holds the state of another network: {error}") from error
        if self.scaler.is_enabled() and facts.get("scaler"):
            self.scaler.load_state_dict(facts["scaler"])
        self.step, self.history = int(facts["step"]), list(facts["history"])

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``tensors()`` gave; RuntimeError if it is of another network."""
        self.model.load_state_dict(_without_prefix(tensors, "model."))
        if self.ema is not None:
            self.ema.load_state_dict(_without_prefix(tensors, "ema."))
        for name, parameter in self.model.named_parameters():
            # Fused AdamW wants its step counter beside the parameter, and the moments in its
            # layout: it goes through memory and asks for no strides.
            self.optimizer.state[parameter] = {
                key: _beside(parameter, tensors[f"optimizer.{key}.{name}"])
                for key in MOMENTS
                if f"optimizer.{key}.{name}" in tensors
            }


def _beside(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:  # the step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class TrainResult:
    state: TrainState
    history: History


def train(
    kind: Kind,
    config: DenoiserConfig | GuideConfig,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    seed: int,
    *,
    schedule: NoiseSchedule,
    whole_batch_dropout: bool = False,
    folder_for_resume: Path | None = None,
    workers: Workers = ALONE,
    device: str | torch.device = "cpu",
    on_step: Callable[[int, float], None] | None = None,
    on_checkpoint: Callable[[TrainState, History], None] | None = None,
    must_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train for ``config.steps`` steps in all, those of ``folder_for_resume`` included.

    ``images`` float32 `[N, C, H, W]` in [-1, 1] and ``labels`` int64 `[N]` are the whole training
    set for every worker. ``schedule`` is the denoiser's for both kinds: a guide trained on other
    noise levels than it is asked about would be worthless. ``whole_batch_dropout`` is explained in
    ``BatchSource``. ``on_step(step, loss)`` runs after every step (1-based), ``on_checkpoint``
    after every ``config.checkpoint_every`` steps, after the last one, and once ``must_stop`` says
    that a machine will be taken away, on every rank. ``must_stop`` is asked every LOOK_EVERY_S by
    all ranks after the same step. Raises NonFiniteLoss, and ValueError for more workers than a
    batch has images.
    """
    source = BatchSource(
        labels,
        tuple(images.shape[1:]),
        batch_size=config.batch_size,
        class_balanced=config.class_balanced,
        num_train_timesteps=schedule.num_train_timesteps,
        label_dropout=config.label_dropout if isinstance(config, DenoiserConfig) else 0.0,
        whole_batch_dropout=whole_batch_dropout,
        seed=seed,
        kind=kind,
        rank=workers.rank,
        world_size=workers.world_size,
        features=config.unet.channels[-1],
        feature_dropout=config.dropout if isinstance(config, GuideConfig) else 0.0,
    )
    state = new_state(kind, config, images.shape[1], num_classes, seed, device)
    if folder_for_resume is not None and (folder_for_resume / STATE_FILE).exists():
        state.load(folder_for_resume)
    if workers.activation_checkpointing:
        forget_activations(state.model)
    if workers.sharded:
        _shard(state, config)
    forward = state.model if workers.wrap is None else workers.wrap(state.model)
    forward.train()
    warned, looked = False, time.monotonic()
    while state.step < config.steps:
        draw = source.draw(state.step)
        # The first rank's watch counts, and all of them hear what it says.
        look = must_stop is not None and time.monotonic() - looked > LOOK_EVERY_S
        look = look and workers.rank == 0 and not warned
        step = train_step(state, forward, config, images, labels, draw, schedule, workers, look)
        state.history.append({"step": state.step, "loss": step.loss})
        if on_step is not None:
            on_step(state.step, step.loss)
        due = state.step % config.checkpoint_every == 0 or state.step == config.steps
        if step.look and must_stop is not None:
            looked = time.monotonic()
            warned = must_stop()
            due = due or warned
        if due and on_checkpoint is not None:
            on_checkpoint(state, state.history)
    if workers.sharded:
        state = _gathered(
            state, new_state(kind, config, images.shape[1], num_classes, seed, device)
        )
    return TrainResult(state, state.history)


def _shard(state: TrainState, config: DenoiserConfig | GuideConfig) -> None:
    """Cut weights, average and moments among the workers, in place."""
    moments = {
        name: state.optimizer.state.get(parameter, {})
        for name, parameter in state.model.named_parameters()
    }
    shard(state.model)
    if state.ema is not None:
        shard(state.ema)
    state.optimizer = _optimizer(state.model, config)
    for name, parameter in state.model.named_parameters():
        if moments[name]:
            state.optimizer.state[parameter] = {
                key: value if value.ndim == 0 else sharded_like(parameter, value)
                for key, value in moments[name].items()
            }


def _gathered(state: TrainState, empty: TrainState) -> TrainState:
    """``empty`` with all that the workers hold together."""
    empty.take(state.tensors())
    empty.step, empty.history = state.step, state.history
    return empty


@dataclass(frozen=True)
class Step:
    """What all workers know after a step."""

    loss: float
    """Mean over the batch, before the step."""
    look: bool
    """Some worker wanted all to look for news."""


def new_state(
    kind: Kind,
    config: DenoiserConfig | GuideConfig,
    channels: int,
    num_classes: int,
    seed: int,
    device: str | torch.device = "cpu",
) -> TrainState:
    """Untrained, with the weights of ``seed``; ValueError if kind and config do not match."""
    if isinstance(config, DenoiserConfig) != (kind == "denoiser"):
        raise ValueError(f"kind {kind!r} does not go with a {type(config).__name__}")
    model: nn.Module
    if isinstance(config, DenoiserConfig):
        model = build_denoiser(config.unet, channels, num_classes, kind, seed)
    else:
        dropout = config.dropout
        model = build_guide(config.unet, channels, num_classes, kind, seed, dropout=dropout)
    in_layout(model.to(device), device, backward=True)
    ema = copy.deepcopy(model).eval().requires_grad_(False) if kind == "denoiser" else None
    optimizer = _optimizer(model, config)
    place = torch.device(device)
    precision = resolved_precision(config.precision, place)
    scaler = torch.amp.GradScaler(place.type, enabled=precision == "float16")
    return TrainState(model, ema, optimizer, scaler, precision=precision)


def _optimizer(model: nn.Module, config: DenoiserConfig | GuideConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=1e-2, fused=True
    )


def train_step(
    state: TrainState,
    forward: nn.Module,
    config: DenoiserConfig | GuideConfig,
    images: Tensor,
    labels: Tensor,
    draw: Draw,
    schedule: NoiseSchedule,
    workers: Workers = ALONE,
    look: bool = False,
) -> Step:
    """One optimiser step in place. ``forward`` is the model, maybe wrapped.

    ``draw`` is this worker's share of the batch, ``look`` whether it wants all to look for news.
    """
    device = next(state.model.parameters()).device
    state.optimizer.zero_grad(set_to_none=True)
    value = 0.0
    parts = draw.parts(workers.micro_batch)
    for part in parts:
        # The exchange averages over the workers; their shares may differ.
        weight = len(part) * workers.world_size / config.batch_size
        with exchanging(forward, part is parts[-1]):
            loss = _loss(state, forward, config, images, labels, part, schedule, device)
            torch.autograd.backward(state.scaler.scale(loss if weight == 1 else loss * weight))
        value += float(loss.detach()) * len(part) / config.batch_size
    value, looking = sum_over_workers([value, float(look)], device)
    state.scaler.unscale_(state.optimizer)
    # An infinite limit does not change the gradients, but still tells their norm.
    limit = math.inf if config.grad_clip is None else config.grad_clip
    gradient_norm = float(whole(nn.utils.clip_grad_norm_(state.model.parameters(), limit)))
    # Every worker has the same loss and the same averaged gradient: all of them stop here, and
    # none waits for ever in the next exchange for one that left.
    if not math.isfinite(value):
        raise NonFiniteLoss(state.step + 1)
    overflow = not math.isfinite(gradient_norm)
    if overflow and not (state.scaler.is_enabled() and state.scaler.get_scale() > LEAST_SCALE):
        raise NonFiniteLoss(state.step + 1, "gradient")
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    state.scaler.step(state.optimizer)  # nothing after an overflow, which a smaller scale avoids
    state.scaler.update()
    if isinstance(config, DenoiserConfig) and state.ema is not None and not overflow:
        update_ema(state.ema, state.model, state.step, config.ema_decay)
    state.step += 1
    return Step(value, looking > 0)


def _loss(
    state: TrainState,
    forward: nn.Module,
    config: DenoiserConfig | GuideConfig,
    images: Tensor,
    labels: Tensor,
    draw: Draw,
    schedule: NoiseSchedule,
    device: torch.device,
) -> Tensor:
    """Scalar: the mean over the images of ``draw``."""
    x_0, y = images[draw.rows].to(device), labels[draw.rows].to(device)
    t, noise, drop = draw.t.to(device), draw.noise.to(device), draw.drop_mask.to(device)
    with autocast(config.precision, device):
        if isinstance(config, DenoiserConfig):
            empty = null_label(state.model)
            return denoiser_loss(forward, x_0, y, t, noise, drop, schedule, config, empty)
        masks = None if draw.feature_masks is None else draw.feature_masks.to(device)
        return guide_loss(forward, x_0, y, t, noise, schedule, config.label_smoothing, masks)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of the 0-based ``step``: linear warm-up to the peak, then cosine decay towards zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if not config.decay:
        return config.learning_rate
    progress = (step - config.warmup) / (config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """ema <- d ema + (1 - d) model with d = min(decay, (1 + step) / (10 + step)), step 0-based.

    The warm-up keeps the first, random weights from lasting in the average.
    """
    d = min(decay, (1 + step) / (10 + step))
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

    Each image's noise is a function of seed, t and its index. Sets the guide to eval mode.
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
