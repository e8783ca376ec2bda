"""Pictures for eyes: closest pairs, and images in the order of the judge's doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mgdm_ray.data.load import Split, to_tensor, to_uint8

TILE = 84
"""Smallest side of a drawn image."""
LINE = 14
"""Height of a caption."""
GAP = 3
PAIRS_ABREAST = 5
PER_CLASS = 10
RED, BLACK, WHITE = (180, 30, 30), (0, 0, 0), (255, 255, 255)

Tile = tuple[Image.Image, str, tuple[int, int, int]]
"""A picture, its caption and the caption's colour."""


def draw_closest(
    path: Path,
    images: torch.Tensor,
    real: Split,
    closest: Sequence[dict[str, Any]],
    threshold: float,
) -> None:
    """The pairs of ``closest``: an added image, and beside it the training image it is nearest to
    (mirrored where it is near as that). Red where the pair is nearer than ``threshold``."""
    rows: list[list[Tile | None]] = []
    for number, pair in enumerate(closest):
        index = pair["train"]
        train = to_tensor(real.images[index : index + 1])
        train = train.flip(-1) if pair["mirrored"] else train
        colour = RED if pair["distance"] < threshold else BLACK
        if number % PAIRS_ABREAST == 0:
            rows.append([])
        elif rows[-1]:
            rows[-1].append(None)
        rows[-1] += [
            (_tile(images[pair["image"]]), f"{pair['distance']:.2f}", colour),
            (_tile(train[0]), f"train {index}", colour),
        ]
    _sheet(rows).save(path)


def draw_entropy(
    path: Path,
    images: torch.Tensor,
    labels: NDArray[np.int64],
    entropy: NDArray[np.float32],
    num_classes: int,
) -> None:
    """A row per class: up to ten of its images from the one the judge is surest of to the one it
    doubts most, each with its entropy in nats."""
    rows: list[list[Tile | None]] = []
    for label in range(num_classes):
        order = np.flatnonzero(labels == label)
        order = order[np.argsort(entropy[order], kind="stable")]
        shown = np.unique(np.linspace(0, len(order) - 1, PER_CLASS).round().astype(int))
        chosen = order[shown] if len(order) else order
        rows.append([(_tile(images[i]), f"{entropy[i]:.2f}", BLACK) for i in chosen])
    _sheet(rows).save(path)


def _tile(image: torch.Tensor) -> Image.Image:
    pixels = to_uint8(image[None])[0]
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    # Without smoothing, so that a reader sees the pixels there are.
    factor = -(-TILE // picture.height)
    side = (picture.width * factor, picture.height * factor)
    return picture.resize(side, Image.Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Tile | None]]) -> Image.Image:
    """Tiles of one size in rows, with their captions below; None is a gap."""
    side = next((tile[0].height for row in rows for tile in row if tile), TILE)
    wide = max((sum(side + GAP if t else 3 * GAP for t in row) for row in rows), default=side)
    sheet = Image.new("RGB", (wide + GAP, len(rows) * (side + LINE + GAP) + GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=LINE - 3)
    for number, row in enumerate(rows):
        left, top = GAP, GAP + number * (side + LINE + GAP)
        for tile in row:
            if tile is None:
                left += 3 * GAP
                continue
            picture, caption, colour = tile
            sheet.paste(picture, (left, top))
            draw.text((left, top + side), caption, fill=colour, font=font)
            left += side + GAP
    return sheet
