"""Surveys made by hand, without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mgdm_ray.config import DatasetConfig
from mgdm_ray.data.inspection.survey import Facts, Survey
from mgdm_ray.data.inspection.targets import Source
from mgdm_ray.data.sources.listing import Item, Listing


def fact(number: int, **changes: Any) -> Facts:
    """Of a grey image of 20 x 20 pixels with content ``number``."""
    values = {"width": 20, "height": 20, "kind": "L 8 bit", "colour": False, "constant": False}
    return Facts(**{**values, "digest": bytes([number]), **changes})


def made(
    items: list[Item], facts: list[Facts] | None = None, kind: str = "class folders", **options: Any
) -> Survey:
    """A survey of ``items``, whose small copies are noise, no two alike."""
    config = DatasetConfig.model_validate({"name": "mine", "path": "scans", "size": 16, **options})
    rng = np.random.default_rng(0)
    classes = tuple("abcdefgh"[: max(item.label for item in items) + 1])
    return Survey(
        source=Source(kind, config, "/data"),
        listing=Listing(Path("/data/scans"), classes, tuple(items)),
        images=np.zeros((len(items), 16, 16, 3), np.uint8),
        small=rng.integers(0, 256, (len(items), 32, 32, 1), dtype=np.uint8),
        facts=[fact(k) for k in range(len(items))] if facts is None else facts,
    )


def several(number: int = 24, **fields: Any) -> list[Item]:
    """Images of classes a and b in turn; of each six the last two are for val and test."""
    splits = ("train", "train", "train", "train", "val", "test")
    return [
        Item(f"{'ab'[k % 2]}/{k}.png", k % 2, splits[(k // 2) % 6], **fields)  # type: ignore[arg-type]
        for k in range(number)
    ]
