"""Stored test predictions of the cells, paired between arms image by image."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mgdm_ray.evaluation.stats import PairedPredictions
from mgdm_ray.results.report.cells import CellId, cell_id
from mgdm_ray.storage.records import Record

PREDICTIONS = "test_predictions.safetensors"
Pair = tuple[str, str]
PairCell = tuple[str, str, int]
"""Dataset, network, seed."""


@dataclass(frozen=True)
class Predictions:
    """``right`` bool `[images]`: whether the most probable class is the label; ``labels``."""

    right: NDArray[np.bool_]
    labels: NDArray[np.int64]


def read_predictions(
    records: Iterable[Record], artefact: Callable[[Record], Path | None]
) -> dict[CellId, Predictions]:
    """By cell, of done cells with stored predictions; damaged files are left out."""
    found = {}
    for record in records:
        if not record.is_cell or record.status != "done":
            continue
        folder = artefact(record)
        path = folder / PREDICTIONS if folder else None
        if path is None or not path.is_file():
            continue
        try:
            stored = load_file(path)
        except SafetensorError:
            continue
        labels = stored["labels"].astype(np.int64)
        found[cell_id(record)] = Predictions(
            stored["probabilities"].argmax(axis=1) == labels, labels
        )
    return found


def pair_predictions(
    answered: Mapping[CellId, Predictions],
    pair: Pair,
    cells: Collection[PairCell],
    origins: Mapping[str, str] | None = None,
) -> dict[str, PairedPredictions] | None:
    """Per dataset the predictions of both arms in ``cells``; with ``origins`` variants together.

    None if a cell's predictions are missing, or if cells of one dataset (or of its variants) were
    tested on different images.
    """
    rows: dict[str, list[tuple[Predictions, Predictions]]] = {}
    for dataset, network, seed in cells:
        both = [answered.get((dataset, network, arm, seed)) for arm in pair]
        if both[0] is None or both[1] is None:
            return None
        rows.setdefault((origins or {}).get(dataset, dataset), []).append((both[0], both[1]))
    found = {}
    for name, group in rows.items():
        labels = group[0][0].labels
        if any(not np.array_equal(labels, one.labels) for two in group for one in two):
            return None
        difference = np.stack([a.right.astype(float) - b.right for a, b in group])
        found[name] = PairedPredictions(difference, labels)
    return found or None


def common_cells(cells: Iterable[CellId], pair: Pair) -> list[PairCell]:
    """Cells that both arms have, sorted."""
    there = set(cells)
    keys = sorted({(d, n, s) for d, n, _, s in there})
    return [key for key in keys if all((key[0], key[1], arm, key[2]) in there for arm in pair)]


def without(
    paired: Mapping[str, PairedPredictions], leaked: Mapping[str, Sequence[int]]
) -> list[PairedPredictions]:
    """The same without the test images named per dataset."""
    return [group.without(leaked.get(name, ())) for name, group in paired.items()]
