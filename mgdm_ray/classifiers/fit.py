"""Training of one downstream network: AdamW, one cycle, a fixed number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mgdm_ray.config import DownstreamConfig
from mgdm_ray.data.pixels import Pixels, as_pixels
from mgdm_ray.precision import autocast, precision_of
from mgdm_ray.seeding import derive_seed, generator

SeedParts = tuple[str | int | float | bool, ...]

FLIP = 0.5
"""Probability of a left-right flip."""
ROTATION = math.radians(10)
"""Largest rotation, radians."""
ZOOM = 0.1
"""Largest relative change of size."""
INTENSITY_SCALE = 0.1
"""Largest relative change of contrast."""
INTENSITY_SHIFT = 0.1
"""Largest change of brightness; the whole range of images is 2."""


SETTLE_BATCHES = 8
"""Batches that measure the statistics of batch norm after training; the same for every arm."""

OnStep = Callable[[int, float], None]


class HistoryRow(TypedDict):
    """One optimiser step."""

    step: int
    """1-based: the number of steps done."""
    loss: float
    """Mean over the batch."""


class NonFiniteLoss(RuntimeError):
    """The loss at ``step`` (1-based), or a prediction after training, is NaN or infinite."""

    def __init__(self, step: int, what: str = "loss") -> None:
        super().__init__(
            f"the {what} is not finite at step {step}: try a smaller downstream.learning_rate"
        )
        self.step = step


@dataclass(frozen=True)
class FitResult:
    """Class probabilities (float64 [N, K]) of the evaluated images by name, and the loss curve."""

    probabilities: dict[str, NDArray[np.float64]]
    history: list[HistoryRow] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    config: DownstreamConfig
    num_classes: int
    seed_parts: SeedParts
    """Batch order, augmentation and dropout are functions of these."""
    augment: bool = False
    class_weights: torch.Tensor | None = None
    """`[num_classes]`, of the cross-entropy."""
    device: str = "cpu"
    micro_batches: int = 1
    """Parts of a batch that go through the network one by one, for less memory: the same gradient,
    but batch norm sees the statistics of the parts."""


Images = torch.Tensor | Pixels
"""[N, C, H, W]: float32 in [-1, 1], or uint8 in 0..255."""


def fit(
    network: nn.Module,
    images: Images,
    labels: torch.Tensor,
    recipe: Recipe,
    evaluate: Mapping[str, Images] | None = None,
    on_step: OnStep | None = None,
) -> FitResult:
    """Train ``network`` in place for exactly ``config.steps`` steps, then predict.

    ``labels`` int64 [N] below ``num_classes``; ``evaluate``: images by name. ``on_step(step,
    loss)`` runs after every step (1-based). Equal arguments give bit-equal probabilities on a CPU;
    the global random state is left as it was. NonFiniteLoss; ValueError for images or labels of
    another form.
    """
    _check(images, labels, recipe.num_classes)
    config, device = recipe.config, recipe.device
    images = as_pixels(images).near(device)
    # channels_last is 10 to 30 % faster for these networks on CPUs, and faster on GPUs as well.
    network = network.to(device).to(memory_format=torch.channels_last)
    precision = precision_of(network, config.precision, torch.device(device))
    history = _train(network, images, labels, recipe, precision, on_step)
    parts = (*recipe.seed_parts, "settle")
    settling = batch_indices(len(images), config.batch_size, SETTLE_BATCHES, parts)
    with autocast(precision, torch.device(device)):
        settle_batch_norm(network, [_to(images[index], device) for index in settling])
    size = max(1, config.batch_size // recipe.micro_batches)
    probabilities = {
        name: predict(network, others, recipe.num_classes, size, device, precision)
        for name, others in (evaluate or {}).items()
    }
    if not all(np.isfinite(p).all() for p in probabilities.values()):
        raise NonFiniteLoss(config.steps, "prediction")
    return FitResult(probabilities, history)


def _train(
    network: nn.Module,
    images: Pixels,
    labels: torch.Tensor,
    recipe: Recipe,
    precision: str,
    on_step: OnStep | None,
) -> list[HistoryRow]:
    config, device, parts = recipe.config, recipe.device, recipe.seed_parts
    # fused: on a CPU the step of a network with 20 to 30 M weights takes 0.02-0.05 s, not 0.3 s.
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    # One cycle, Smith & Topin (2018), torch's defaults: 30 % up, then down by a cosine.
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps
    )
    weights = None if recipe.class_weights is None else recipe.class_weights.float().to(device)
    history: list[HistoryRow] = []
    network.train()
    with _seeded(device, *parts, "dropout"):
        batches = batch_indices(len(images), config.batch_size, config.steps, parts)
        for step, index in enumerate(batches, start=1):
            batch = images[index].to(device)
            if recipe.augment:
                batch = augmented(batch, (*parts, "augment", step))
            optimizer.zero_grad(set_to_none=True)
            loss = _backward(
                network,
                batch.contiguous(memory_format=torch.channels_last),
                labels[index].to(device),
                weights,
                recipe.micro_batches,
                precision,
            )
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLoss(step)
            optimizer.step()
            cycle.step()
            history.append({"step": step, "loss": value})
            if on_step is not None:
                on_step(step, value)
    return history


def _backward(
    network: nn.Module,
    images: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor | None,
    micro_batches: int,
    precision: str,
) -> torch.Tensor:
    """Add the gradient of the batch's mean loss to the parameters'; the loss, a scalar."""
    if micro_batches == 1:
        logits = _logits(network, images, precision)
        loss = nn.functional.cross_entropy(logits, target, weight=weights)
        torch.autograd.backward(loss)
        return loss.detach()
    # The weighted mean divides by the sum of the weights, as torch's own does.
    total = float(len(target)) if weights is None else weights[target].sum()
    value = torch.zeros((), dtype=torch.float64, device=images.device)
    parts = max(1, min(micro_batches, len(target) // 2))  # batch norm needs two images
    halves = zip(images.tensor_split(parts), target.tensor_split(parts), strict=True)
    for part, labels in halves:
        logits = _logits(network, part, precision)
        loss = nn.functional.cross_entropy(logits, labels, weight=weights, reduction="sum") / total
        torch.autograd.backward(loss)
        value = value + loss.detach().double()
    return value


def _logits(network: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    """float32 `[N, K]`: the loss would lose small differences in bfloat16."""
    with autocast(precision, images.device):
        logits: torch.Tensor = network(images)
    return logits.float()


@torch.no_grad()
def settle_batch_norm(network: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Replace batch norm's running statistics by those of the trained weights over ``batches``.

    After tens of steps the running averages still mix in old weights, and a trained network
    predicts one class ("precise BN", Wu & Johnson 2021, section 3).
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def batch_indices(
    count: int, batch_size: int, steps: int, seed_parts: SeedParts
) -> Iterator[torch.Tensor]:
    """``steps`` index tensors [batch_size] over ``count`` images.

    Shuffled epochs are concatenated and cut into full batches: after k * count images every image
    was seen k times.
    """
    stream = torch.empty(0, dtype=torch.int64)
    epoch = 0
    for _ in range(steps):
        while len(stream) < batch_size:
            order = torch.randperm(count, generator=generator(*seed_parts, "batch", epoch))
            stream = torch.cat([stream, order])
            epoch += 1
        yield stream[:batch_size]
        stream = stream[batch_size:]


def augmented(images: torch.Tensor, seed_parts: SeedParts) -> torch.Tensor:
    """Flip, rotate, zoom and change the intensities of each image on its own; stays in [-1, 1].

    The numbers are drawn on the CPU, and the images change where they are, all at once: MONAI's
    per-image transforms take 5 ms per image of 28 px.
    """
    n = len(images)
    u = torch.rand(5, n, generator=generator(*seed_parts)) * 2 - 1  # uniform in [-1, 1)
    angle, zoom = u[0] * ROTATION, 1 / (1 + u[1] * ZOOM)
    mirror = torch.where(u[2] < 2 * FLIP - 1, -1.0, 1.0)
    cos, sin, zero = zoom * angle.cos(), zoom * angle.sin(), torch.zeros(n)
    # Rows and columns in the order (x, y); maps output to input places.
    matrix = [cos * mirror, sin, zero, -sin * mirror, cos, zero]
    numbers = torch.stack([*matrix, 1 + u[3] * INTENSITY_SCALE, u[4] * INTENSITY_SHIFT], dim=1)
    numbers = numbers.to(images.device)
    theta, (scale, shift) = numbers[:, :6].reshape(n, 2, 3), numbers[:, 6:].unbind(dim=1)
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(
        images.contiguous(), grid, padding_mode="border", align_corners=False
    )
    return (moved * scale.view(n, 1, 1, 1) + shift.view(n, 1, 1, 1)).clamp(-1, 1)


def predict(
    network: nn.Module,
    images: Images,
    num_classes: int,
    batch_size: int,
    device: str,
    precision: str = "float32",
) -> NDArray[np.float64]:
    """Class probabilities float64 [N, num_classes]; sets eval mode."""
    network.eval()
    images = as_pixels(images).near(device)
    with torch.inference_mode():
        rows = [
            _logits(network, _to(images[i : i + batch_size], device), precision)
            .double()
            .softmax(dim=1)
            .cpu()
            for i in range(0, len(images), batch_size)
        ]
    out: NDArray[np.float64] = torch.cat(rows).numpy() if rows else np.zeros((0, num_classes))
    return out


def _check(images: Images, labels: torch.Tensor, num_classes: int) -> None:
    kinds = {part.dtype for part in as_pixels(images).parts}
    if len(images.shape) != 4 or not kinds <= {torch.float32, torch.uint8} or not len(images):
        raise ValueError(
            "images must be float32 or uint8 [N, C, H, W], N > 0; "
            f"got {', '.join(map(str, kinds))} {tuple(images.shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 [{len(images)}]; got {labels.dtype} {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels must be in 0 .. {num_classes - 1}; "
            f"got {int(labels.min())} .. {int(labels.max())}"
        )


def _to(images: torch.Tensor, device: str) -> torch.Tensor:
    return images.to(device).contiguous(memory_format=torch.channels_last)


@contextmanager
def _seeded(device: str, *seed_parts: str | int | float | bool) -> Iterator[None]:
    """Seed the global generator, the only one that dropout draws from, and restore it after."""
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        seed = derive_seed(*seed_parts)
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
