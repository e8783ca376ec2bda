"""Training of one downstream network: AdamW for a fixed number of steps."""

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

from mgdm_ray.classifiers.augment import augmented, blended
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.schedule import (
    SeedParts,
    balancing_weights,
    batch_indices,
    checkpoints,
    learning_rate,
)
from mgdm_ray.config import Training
from mgdm_ray.data.pixels import Pixels, as_pixels
from mgdm_ray.precision import autocast, precision_of
from mgdm_ray.seeding import derive_seed

SETTLE_BATCHES = 8
"""Batches that measure the statistics of batch norm after training; the same for every arm."""
EVALUATED, EVALUATED_PX = 128, 128 * 64 * 64
"""Most images evaluated at a time, and most pixels of them, if a batch is not larger: that of
training is up to 2.5 times slower."""

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
    step: int = 0
    """Whose weights the network has: the last one's, or those of the best validation."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    config: Training
    num_classes: int
    seed_parts: SeedParts
    """Batch order, augmentation and dropout are functions of these."""
    class_weights: torch.Tensor | None = None
    """`[num_classes]`, of the cross-entropy."""
    device: str = "cpu"
    micro_batches: int = 1
    """Parts of a batch that go through the network one by one, for less memory: the same gradient,
    but batch norm sees the statistics of the parts."""


Images = torch.Tensor | Pixels
"""[N, C, H, W]: float32 in [-1, 1], or uint8 in 0..255."""
Validation = tuple[Images, NDArray[np.int64]]
"""Images and their labels `[N]`."""


def fit(
    network: nn.Module,
    images: Images,
    labels: torch.Tensor,
    recipe: Recipe,
    evaluate: Mapping[str, Images] | None = None,
    on_step: OnStep | None = None,
    validation: Validation | None = None,
) -> FitResult:
    """Train ``network`` in place for exactly ``config.steps`` steps, then predict.

    ``labels`` int64 [N] below ``num_classes``; ``evaluate``: images by name. ``validation``: images
    and labels, for ``checkpoint: best_validation`` only. ``on_step(step, loss)`` runs after every
    step (1-based). Equal arguments give bit-equal probabilities on a CPU; the global random state
    is left as it was. NonFiniteLoss; ValueError for images or labels of another form.
    """
    _check(images, labels, recipe.num_classes)
    config, device = recipe.config, recipe.device
    if config.checkpoint == "best_validation" and validation is None:
        raise ValueError("checkpoint 'best_validation' needs validation images")
    images = as_pixels(images).near(device)
    # channels_last is 10 to 30 % faster for these networks on CPUs, and faster on GPUs as well.
    network = network.to(device).to(memory_format=torch.channels_last)
    trained = _Trained(network, images, recipe, validation)
    history = _train(trained, images, labels, on_step)
    step = trained.finish(config.steps)
    probabilities = {name: trained.predict(others) for name, others in (evaluate or {}).items()}
    if not all(np.isfinite(p).all() for p in probabilities.values()):
        raise NonFiniteLoss(config.steps, "prediction")
    return FitResult(probabilities, history, step)


class _Trained:
    """A network in training, settled and validated where its weights may be taken."""

    def __init__(
        self, network: nn.Module, images: Pixels, recipe: Recipe, validation: Validation | None
    ) -> None:
        self.network, self.images, self.recipe = network, images, recipe
        self.precision = precision_of(network, recipe.config.precision, torch.device(recipe.device))
        given = recipe.class_weights
        self.weights = None if given is None else given.float().to(recipe.device)
        self.validation = validation if recipe.config.checkpoint == "best_validation" else None
        self.best: tuple[tuple[float, float], int, dict[str, torch.Tensor]] | None = None

    def settle(self) -> None:
        config, device = self.recipe.config, self.recipe.device
        parts = (*self.recipe.seed_parts, "settle")
        rows = batch_indices(len(self.images), config.batch_size, SETTLE_BATCHES, parts)
        with autocast(self.precision, torch.device(device)):
            settle_batch_norm(self.network, [_to(self.images[index], device) for index in rows])

    def predict(self, images: Images) -> NDArray[np.float64]:
        recipe = self.recipe
        size = max(1, recipe.config.batch_size // recipe.micro_batches)
        if recipe.micro_batches == 1:  # else memory is short
            free = min(EVALUATED, EVALUATED_PX // math.prod(images.shape[-2:]))
            size = max(size, free)
        classes, device = recipe.num_classes, recipe.device
        return predict(self.network, images, classes, size, device, self.precision)

    def validate(self, step: int) -> None:
        """Keep the weights if they are the best so far; the training goes on as if unseen."""
        if self.validation is None:
            return
        images, labels = self.validation
        self.settle()
        found = self.predict(images)
        if not np.isfinite(found).all():
            raise NonFiniteLoss(step, "prediction")
        truth = found[np.arange(len(labels)), labels]
        # Few images tie often: the likelier of two equally accurate ones.
        merit = (
            score(found, labels, "multiclass")["balanced_accuracy"],
            float(np.log(truth.clip(1e-12)).mean()),
        )
        if self.best is None or merit > self.best[0]:
            weights = self.network.state_dict()
            self.best = merit, step, {name: w.clone() for name, w in weights.items()}
        self.network.train()

    def finish(self, last: int) -> int:
        """Leave the network with the weights to use; their step."""
        if self.best is None:
            self.settle()
            return last
        _, step, weights = self.best
        self.network.load_state_dict(weights)
        return step


def _train(
    trained: _Trained, images: Pixels, labels: torch.Tensor, on_step: OnStep | None
) -> list[HistoryRow]:
    network, recipe = trained.network, trained.recipe
    config, device, parts = recipe.config, recipe.device, recipe.seed_parts
    # fused: on a CPU the step of a network with 20 to 30 M weights takes 0.02-0.05 s, not 0.3 s.
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    cycle = learning_rate(optimizer, config)
    drawn = balancing_weights(labels) if config.class_balanced else None
    looks = checkpoints(config.steps)
    history: list[HistoryRow] = []
    network.train()
    with _seeded(device, *parts, "dropout"):
        batches = batch_indices(len(images), config.batch_size, config.steps, parts, drawn)
        for step, index in enumerate(batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            loss = _backward(trained, *_batch(images[index], labels[index], recipe, step))
            value = loss.item()
            if not math.isfinite(value):
                raise NonFiniteLoss(step)
            optimizer.step()
            cycle.step()
            history.append({"step": step, "loss": value})
            if step in looks:
                trained.validate(step)
            if on_step is not None:
                on_step(step, value)
    return history


def _batch(
    images: torch.Tensor, labels: torch.Tensor, recipe: Recipe, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a step, augmented; blended labels are shares `[N, K]`."""
    config, parts = recipe.config, recipe.seed_parts
    images, labels = images.to(recipe.device), labels.to(recipe.device)
    images = augmented(images, config.augment, (*parts, "augment", step))
    if config.mixup or config.cutmix:
        alphas = config.mixup, config.cutmix
        images, labels = blended(
            images, labels, recipe.num_classes, alphas, (*parts, "blend", step)
        )
    return images.contiguous(memory_format=torch.channels_last), labels


def _backward(trained: _Trained, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Add the gradient of the batch's mean loss to the parameters'; the loss, a scalar."""
    recipe, network, precision = trained.recipe, trained.network, trained.precision
    weights = trained.weights
    if recipe.micro_batches == 1 and target.ndim == 1:
        logits = _logits(network, images, precision)
        loss = nn.functional.cross_entropy(logits, target, weight=weights)
        torch.autograd.backward(loss)
        return loss.detach()
    # The weighted mean divides by the sum of the weights, as torch's own does for whole labels.
    total: float | torch.Tensor = float(len(target))
    if weights is not None:
        total = (weights[target] if target.ndim == 1 else target @ weights).sum()
    value = torch.zeros((), dtype=torch.float64, device=images.device)
    parts = max(1, min(recipe.micro_batches, len(target) // 2))  # batch norm needs two images
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
