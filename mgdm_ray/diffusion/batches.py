"""The training batch of a step: a function of seed and step only, shared among all workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mgdm_ray.config import DenoiserConfig, GuideConfig
from mgdm_ray.data.pixels import has_room
from mgdm_ray.diffusion.changes import drawn_changes
from mgdm_ray.diffusion.parallel import ALONE, Workers
from mgdm_ray.diffusion.train_state import kind_of
from mgdm_ray.diffusion.unet import dropout_masks, dropped_channels
from mgdm_ray.seeding import generator, per_image_noise


@dataclass(frozen=True)
class TrainingData:
    """A labelled training set."""

    images: Tensor
    """`[N, C, H, W]`: uint8 in 0..255, or float32 in [-1, 1]."""
    labels: Tensor
    """int64 `[N]` below ``num_classes``."""
    num_classes: int

    def to(self, device: torch.device) -> TrainingData:
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return TrainingData(images, labels, self.num_classes)

    def part(self, rows: Tensor) -> TrainingData:
        return TrainingData(self.images[rows], self.labels[rows], self.num_classes)

    def pinned(self) -> TrainingData:
        """In page-locked memory, which a GPU reads while the CPU goes on."""
        return TrainingData(self.images.pin_memory(), self.labels.pin_memory(), self.num_classes)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one worker's share of a batch, `[n]` each, drawn on the CPU."""

    rows: Tensor
    """int64: which images, with replacement."""
    t: Tensor
    """int64 in [0, num_train_timesteps), uniform."""
    drop_mask: Tensor
    """bool: trained without label."""
    noise: Tensor
    """float32 `[n, C, H, W]`."""
    feature_masks: Tensor | None = None
    """float32 `[n, F]`: dropout on a guide's features or a denoiser's channels; None without."""
    changes: Tensor | None = None
    """float32 `[n, 8]`, see ``diffusion.changes``; None without."""

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, most: int | None) -> list[Draw]:
        """The same images in parts of at most ``most``, about equally many each."""
        count = 1 if most is None else -(-len(self) // most)
        cuts = [len(self) * i // count for i in range(count + 1)]
        return [self._part(slice(*pair)) for pair in itertools.pairwise(cuts)]

    def to(self, device: torch.device) -> Draw:
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Draw:
        """As ``TrainingData.pinned``."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Draw:
        masks, changes = (
            None if x is None else change(x) for x in (self.feature_masks, self.changes)
        )
        rows, t, drop_mask = change(self.rows), change(self.t), change(self.drop_mask)
        return Draw(rows, t, drop_mask, change(self.noise), masks, changes)

    def _part(self, mine: slice) -> Draw:
        return self._each(lambda x: x[mine])


class BatchSource:
    """Draws one worker's share of every batch; shares differ by one image at most.

    With ``config.class_balanced`` every batch has equally many images of each class that occurs
    (classes that get one more are drawn at random), else images are drawn uniformly.
    ``whole_batch_dropout`` is the fault ``label_dropout``: all images of a batch lose their label
    or none. ValueError without images, or with more workers than a batch has images.
    """

    def __init__(
        self,
        config: DenoiserConfig | GuideConfig,
        data: TrainingData,
        seed: int,
        *,
        workers: Workers = ALONE,
        num_train_timesteps: int = 1000,
        whole_batch_dropout: bool = False,
    ) -> None:
        size, world_size = config.batch_size, workers.world_size
        if size < world_size:
            raise ValueError(f"batch_size {size} is less than {world_size} workers")
        if len(data.labels) == 0:
            raise ValueError("there are no training images")
        self.mine = slice(*(size * r // world_size for r in (workers.rank, workers.rank + 1)))
        self.shape, self.batch_size = tuple(data.images.shape[1:]), size
        self.label_dropout = config.label_dropout if isinstance(config, DenoiserConfig) else 0.0
        self.feature_dropout, self.num_train_timesteps = config.dropout, num_train_timesteps
        self.features, self.changed = config.unet.channels[-1], (0.0, False)
        if isinstance(config, DenoiserConfig):
            self.features = dropped_channels(config.unet)
            self.changed = config.augment, config.mirror
        self.whole_batch_dropout = whole_batch_dropout
        self.parts = (kind_of(config), "batch", seed)
        # Images sorted by group (class, or all in one group): group k occupies
        # starts[k] .. starts[k] + counts[k] - 1 of order.
        groups = data.labels if config.class_balanced else torch.zeros_like(data.labels)
        self.order = torch.argsort(groups, stable=True)
        per_label = torch.bincount(groups)
        self.counts = per_label[per_label > 0]
        self.starts = torch.cumsum(self.counts, dim=0) - self.counts

    def draw(self, step: int) -> Draw:
        """This worker's share of the batch of ``step`` (0-based)."""
        size = self.batch_size
        numbers = generator(*self.parts, step)
        classes = torch.randperm(len(self.counts), generator=numbers)[
            torch.arange(size) % len(self.counts)
        ]
        within = torch.rand(size, dtype=torch.float64, generator=numbers) * self.counts[classes]
        rows = self.order[self.starts[classes] + within.long()]
        t = torch.randint(self.num_train_timesteps, (size,), generator=numbers)
        drop_mask = torch.rand(size, generator=numbers) < self.label_dropout
        if self.whole_batch_dropout:
            drop_mask = drop_mask[:1].expand(size)
        # One seed per image of the batch: a worker does not draw the noise of the others.
        noise = per_image_noise(self.shape, range(size)[self.mine], *self.parts, "noise", step)
        masks = None
        if self.feature_dropout:
            wanted = (size, self.features)
            parts = (*self.parts, "features", step)
            masks = dropout_masks(wanted, self.feature_dropout, *parts)[self.mine]
        changes = None
        if any(self.changed):
            changes = drawn_changes(size, *self.changed, *self.parts, "changes", step)[self.mine]
        return Draw(rows[self.mine], t[self.mine], drop_mask[self.mine], noise, masks, changes)


def ahead(
    source: BatchSource, data: TrainingData, device: torch.device, steps: range
) -> Iterator[tuple[Draw, TrainingData]]:
    """The draws of ``steps``, each made by a thread while the step before it runs.

    With each the images that its rows are of: all of ``data``, on ``device``, or only the batch's
    where a GPU has no room for all.
    """
    whole = has_room(device, data.images.nbytes)
    everything = data.to(device) if whole else data

    def ready(step: int) -> tuple[Draw, TrainingData | None]:
        draw, own = source.draw(step), None
        if not whole:
            own = data.part(draw.rows)
            draw = replace(draw, rows=torch.arange(len(draw)))
        if device.type != "cuda":
            return draw, own
        return draw.pinned(), None if own is None else own.pinned()

    if not steps:
        return
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = thread.submit(ready, steps.start)
        for step in steps:
            draw, own = coming.result()
            if step + 1 in steps:
                coming = thread.submit(ready, step + 1)
            yield draw.to(device), everything if own is None else own.to(device)
