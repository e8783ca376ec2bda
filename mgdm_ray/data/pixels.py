"""Images as 8-bit numbers: floats are made of one batch, on the device where it is used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ON_GPU = 1 / 4
"""Most of a GPU's free memory that a training set may take; a larger one stays on the host."""


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """uint8 `[N, H, W, C]` to uint8 `[N, C, H, W]`."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def as_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1], bit-equal to ``load.to_tensor`` on every device.

    Others unchanged.
    """
    if images.dtype != torch.uint8:
        return images
    # By a tensor: a GPU would multiply by the reciprocal of a number, which rounds once more.
    return images.float().div_(torch.full((), 127.5, device=images.device)).sub_(1.0)


def has_room(device: torch.device, nbytes: int) -> bool:
    """Whether a training set of ``nbytes`` should be on ``device`` from the start."""
    if device.type != "cuda":
        return True
    return nbytes <= ON_GPU * torch.cuda.mem_get_info(device)[0]


@dataclass(frozen=True)
class Pixels:
    """Images `[N, C, H, W]` of a network to train: ``pixels[rows]`` is float32 in [-1, 1].

    ``parts`` follow one another, one or two: uint8 in 0..255 or float32.
    """

    parts: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images of ``rows``, int64 `[n]`."""
        first = self.parts[0]
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        rows = rows.to(first.device, non_blocking=True)
        if len(self.parts) == 1:
            return as_float(first[rows])
        # Chosen from both: how many rows are of each, a GPU could tell only after waiting for it.
        count, last = len(first), len(self.parts[1]) - 1
        one = as_float(first[rows.clamp(max=count - 1)])
        other = as_float(self.parts[1][(rows - count).clamp(0, last)])
        return torch.where((rows < count).view(-1, *[1] * (one.ndim - 1)), one, other)

    def near(self, device: str | torch.device) -> Pixels:
        """On ``device`` if it has room, else as they are."""
        device = torch.device(device)
        if not has_room(device, sum(part.nbytes for part in self.parts)):
            return self
        return Pixels(tuple(part.to(device) for part in self.parts))


def as_pixels(images: Tensor | Pixels) -> Pixels:
    return images if isinstance(images, Pixels) else Pixels((images,))
