"""Images as artefacts: shards of safetensors, and pictures to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.numpy import save_file

from mgdm_ray.data.load import Split, to_tensor, to_uint8
from mgdm_ray.pipeline.tasks.base import Context, JobError, artefact
from mgdm_ray.storage.files import replacing

SHARD_IMAGES = 512
"""Images per file: what is in memory at a time, and what a kill can cost at most."""
_SHARD = re.compile(r"^images-(\d{8})-(\d{8})\.safetensors$")

TILE = 84
"""Smallest side of a drawn image."""
LINE = 14
"""Height of a caption."""
GAP = 3
PAIRS_ABREAST = 5
PER_CLASS = 10
RED, BLACK, WHITE = (180, 30, 30), (0, 0, 0), (255, 255, 255)

Tile = tuple[Image.Image, str, tuple[int, int, int]]
"""An image, its caption and the caption's colour."""


def shard_ranges(total: int, workers: int) -> list[range]:
    """Rows 0 .. total - 1 cut into files, one or more per worker if there are enough."""
    size = max(1, min(SHARD_IMAGES, -(-total // workers)))
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def shard_path(folder: Path, rows: range) -> Path:
    return folder / f"images-{rows.start:08d}-{rows.stop:08d}.safetensors"


def save_shard(folder: Path, rows: range, images: torch.Tensor, labels: np.ndarray) -> None:
    """Write the file of ``rows`` atomically."""
    tensors = {"images": np.ascontiguousarray(images.numpy()), "labels": labels.astype(np.int64)}
    with replacing(shard_path(folder, rows)) as temporary:
        save_file(tensors, temporary)


def load_images(
    context: Context, kind: str, key: str, rows: range | None = None
) -> tuple[torch.Tensor, np.ndarray]:
    """(images or latents `[M, C, H, W]` float32, labels `[M]` int64) of ``rows``, or of all."""
    return read_rows(artefact(context, kind, key), rows)


def read_rows(folder: Path, rows: range | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """As ``load_images``, of a folder of shards; reads only these rows. JobError where some are
    missing."""
    images, labels, expected = [], [], 0
    for start, stop, path in shards_in(folder):
        if start != expected:
            raise JobError(f"{folder}: image {expected} is missing")
        expected = stop
        first = max(start, rows.start if rows else 0) - start
        last = min(stop, rows.stop if rows else stop) - start
        if first < last:
            with safe_open(path, framework="np") as file:
                images.append(file.get_slice("images")[first:last])
                labels.append(file.get_slice("labels")[first:last])
    if not images or (rows is not None and rows.stop > expected):
        raise JobError(f"{folder}: has {expected} images, wanted {rows or 'all'}")
    return torch.from_numpy(np.concatenate(images)), np.concatenate(labels)


def count_images(context: Context, kind: str, key: str) -> int:
    folder = artefact(context, kind, key)
    shards = shards_in(folder)
    if not shards:
        raise JobError(f"{folder} has no images")
    return shards[-1][1]


def shards_in(folder: Path) -> Sequence[tuple[int, int, Path]]:
    """(first row, row after the last, file) in order."""
    found = [(match, path) for path in folder.iterdir() if (match := _SHARD.match(path.name))]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)


def draw_grid(path: Path, images: torch.Tensor, labels: np.ndarray, num_classes: int) -> None:
    """A PNG with one row per class and up to ten images in it."""
    channels, height, width = images.shape[1:]
    columns = min(10, int(np.bincount(labels).max()))
    sheet = np.full((num_classes * (height + 2), columns * (width + 2), channels), 128, np.uint8)
    for label in range(num_classes):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = label * (height + 2) + 1, column * (width + 2) + 1
            sheet[top : top + height, left : left + width] = to_uint8(images[index : index + 1])[0]
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    factor = max(1, 64 // height)
    resized = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    resized.save(path)


def draw_closest(
    path: Path,
    images: torch.Tensor,
    real: Split,
    closest: Sequence[dict[str, Any]],
    threshold: float,
) -> None:
    """Pairs of an added image and its nearest training image (mirrored where that is nearer).

    Red where the pair is nearer than ``threshold``.
    """
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
    """A row per class: up to ten images by rising entropy of the judge, in nats."""
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
    factor = -(-TILE // picture.height)
    side = (picture.width * factor, picture.height * factor)
    return picture.resize(side, Image.Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Tile | None]]) -> Image.Image:
    """Tiles of one size in rows, captions below; None is a gap."""
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
