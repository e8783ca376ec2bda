"""Images as artefacts: safetensors, and a grid to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from mgdm_ray.data.load import to_uint8
from mgdm_ray.jobs.base import Context, artefact


def save_images(folder: Path, images: torch.Tensor, labels: np.ndarray) -> None:
    save_file(
        {"images": np.ascontiguousarray(images.numpy()), "labels": labels.astype(np.int64)},
        folder / "images.safetensors",
    )


def load_images(context: Context, kind: str, key: str) -> tuple[torch.Tensor, np.ndarray]:
    """(images or latents `[M, C, H, W]` float32, labels `[M]` int64)."""
    loaded = load_file(artefact(context, kind, key) / "images.safetensors")
    return torch.from_numpy(loaded["images"]), loaded["labels"]


def draw_grid(path: Path, images: torch.Tensor, labels: np.ndarray, num_classes: int) -> None:
    """A PNG with one row per class and up to ten images in it; a missing image is grey."""
    columns, (channels, height, width) = 10, images.shape[1:]
    sheet = np.full((num_classes * (height + 2), columns * (width + 2), channels), 128, np.uint8)
    for label in range(num_classes):
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            top, left = label * (height + 2) + 1, column * (width + 2) + 1
            sheet[top : top + height, left : left + width] = to_uint8(images[index : index + 1])[0]
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    # Small images are enlarged without smoothing, so that a reader sees the pixels there are.
    factor = max(1, 64 // height)
    resized = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    resized.save(path)
