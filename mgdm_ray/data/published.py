"""Accuracies published for MedMNIST's official splits, to compare a study's with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mgdm_ray.config import DatasetConfig, DownstreamConfig


@dataclass(frozen=True)
class Published:
    """A test accuracy of a network on a dataset of the study."""

    dataset: str
    network: str
    accuracy: float
    protocol: str
    source: str
    cautions: tuple[str, ...]
    """How the study's protocol differs, beyond optimiser and length."""


@cache
def table() -> tuple[dict[str, Any], ...]:
    """One entry per source; figures are checked for their range by a test."""
    text = Path(__file__).with_name("published.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def published(dataset: DatasetConfig, trained: DownstreamConfig) -> list[Published]:
    """What is known of ``dataset``; empty for all that are not MedMNIST's files."""
    if dataset.path is not None:
        return []
    return [
        Published(
            dataset.name,
            network,
            accuracy,
            entry["protocol"],
            entry["source"],
            _cautions(entry, dataset, trained),
        )
        for entry in table()
        for network, accuracy in entry["accuracy"].get(dataset.origin, {}).items()
    ]


def _cautions(
    entry: dict[str, Any], dataset: DatasetConfig, trained: DownstreamConfig
) -> tuple[str, ...]:
    found = []
    if dataset.train_size is not None:
        found.append(f"yours: at most {dataset.train_size} training images")
    if dataset.size != entry["size"]:
        found.append(f"yours: {dataset.size} px")
    if trained.pretrained is None and entry["pretrained"]:
        found.append("yours: from scratch")
    if trained.pretrained is not None and not entry["pretrained"]:
        found.append("yours: pretrained")
    return tuple(found)
