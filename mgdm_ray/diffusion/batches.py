"""The training batch of a step: a pure function of the seed and the step, whatever the workers.

Nothing about the position in the data has to be saved for a resume, and any number of workers
draws the same global batch and takes its share of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from mgdm_ray.diffusion.unet import dropout_masks
from mgdm_ray.seeding import generator, per_image_noise


@dataclass(frozen=True)
class Draw:
    """The random numbers of one worker's share of a batch, all `[n]` and on the CPU."""

    rows: Tensor
    """int64: which images, drawn with replacement."""
    t: Tensor
    """int64 in [0, num_train_timesteps), uniform."""
    drop_mask: Tensor
    """bool: trained without label."""
    noise: Tensor
    """float32 `[n, C, H, W]`."""
    feature_masks: Tensor | None = None
    """float32 `[n, F]`: dropout on a guide's features; None without."""

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, most: int | None) -> list[Draw]:
        """The same images, at most ``most`` of them at a time and about equally many."""
        count = 1 if most is None else -(-len(self) // most)
        cuts = [len(self) * i // count for i in range(count + 1)]
        return [self._part(slice(*pair)) for pair in itertools.pairwise(cuts)]

    def _part(self, mine: slice) -> Draw:
        masks = None if self.feature_masks is None else self.feature_masks[mine]
        return Draw(self.rows[mine], self.t[mine], self.drop_mask[mine], self.noise[mine], masks)


class BatchSource:
    """Draws the share of one worker, rank ``rank`` of ``world_size``.

    ``class_balanced`` fills every batch with equally many images of each class that occurs (when
    the classes do not divide the batch, who gets one more changes at random), else images are
    drawn uniformly. ``whole_batch_dropout``: all images of a batch lose their label or none, at
    the same rate (the fault ``label_dropout``). Shares differ by one image where the workers do not
    divide the batch. ValueError if there are more workers than images in a batch.
    """

    def __init__(
        self,
        labels: Tensor,
        shape: tuple[int, ...],
        *,
        batch_size: int,
        class_balanced: bool,
        num_train_timesteps: int,
        label_dropout: float,
        whole_batch_dropout: bool = False,
        seed: int,
        kind: str,
        rank: int,
        world_size: int,
        features: int = 0,
        feature_dropout: float = 0.0,
    ) -> None:
        if batch_size < world_size:
            raise ValueError(f"batch_size {batch_size} is less than {world_size} workers")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0 .. {world_size - 1}")
        if len(labels) == 0:
            raise ValueError("there are no training images")
        cuts = [batch_size * r // world_size for r in (rank, rank + 1)]
        self.mine = slice(*cuts)
        self.shape, self.batch_size, self.label_dropout = shape, batch_size, label_dropout
        self.num_train_timesteps = num_train_timesteps
        self.features, self.feature_dropout = features, feature_dropout
        self.whole_batch_dropout = whole_batch_dropout
        self.parts = (kind, "batch", seed)
        # Images sorted by group (class, or all in one group): group k occupies
        # starts[k] .. starts[k] + counts[k] - 1 of order.
        groups = labels if class_balanced else torch.zeros_like(labels)
        self.order = torch.argsort(groups, stable=True)
        per_label = torch.bincount(groups)
        self.counts = per_label[per_label > 0]
        self.starts = torch.cumsum(self.counts, dim=0) - self.counts

    def draw(self, step: int) -> Draw:
        """The share of the batch of ``step`` (0-based)."""
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
        return Draw(rows[self.mine], t[self.mine], drop_mask[self.mine], noise, masks)
