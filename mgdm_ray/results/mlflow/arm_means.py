"""Means over cells: a run per arm, which MLflow can compare where thousands of cells are too many.

Plain means, over the cells that are done: where an arm lost cells, its mean is over others than
that of the next arm, and ``cells`` says so. What may be concluded stands in the contrasts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from statistics import fmean

from mgdm_ray.results.mlflow.rows import Row, digest
from mgdm_ray.storage.records import Record

ARM = "arm"
"""The kind of these runs."""
HEADLINE = ("balanced_accuracy", "auroc")
COUNTS = ("train_images", "micro_batches")
"""Metrics of cells that are no scores: MLflow's comparison would begin with them."""


def arm_rows(study_key: str, records: Sequence[Record]) -> list[Row]:
    """One row per arm with a done cell, in the order in which the arms first occur."""
    cells: dict[str, list[Record]] = {}
    for record in _done_cells(records):
        cells.setdefault(str(record.arm), []).append(record)
    return [_row(study_key, arm, of_arm) for arm, of_arm in cells.items()]


def headline(records: Sequence[Record]) -> dict[str, float]:
    """Means per arm, and per arm and dataset, and how many records came to which status."""
    cells: dict[str, list[Record]] = {}
    done = _done_cells(records)
    for record in done:
        for suffix in (f"{record.arm}", f"{record.arm}/{record.dataset}"):
            cells.setdefault(suffix, []).append(record)
    found = {
        f"{name}/{suffix}": mean
        for suffix, group in cells.items()
        for name, mean in _means(group).items()
        if name in HEADLINE
    }
    failed = sum(record.status == "failed" for record in records)
    return {**found, "cells/done": float(len(done)), "records/failed": float(failed)}


def _row(study_key: str, arm: str, cells: Sequence[Record]) -> Row:
    datasets = sorted({str(record.dataset) for record in cells})
    metrics = _means(cells)
    for dataset in datasets:
        means = _means(record for record in cells if record.dataset == dataset)
        metrics |= {f"{name}/{dataset}": value for name, value in means.items()}
    params = {
        "arm": arm,
        "cells": str(len(cells)),
        "networks": ", ".join(sorted({str(record.network) for record in cells})),
        "datasets": ", ".join(datasets),
    }
    return Row(
        key=f"{study_key}/{arm}",
        digest=digest(json.dumps([metrics, params], sort_keys=True)),
        kind=ARM,
        name=arm,
        metrics=metrics,
        params=params,
        tags={"kind": ARM, "status": "done"},
    )


def _done_cells(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.is_cell and record.status == "done"]


def _means(cells: Iterable[Record]) -> dict[str, float]:
    """Of every score, over the cells that have it."""
    values: dict[str, list[float]] = {}
    for record in cells:
        for name, value in record.metrics.items():
            if name not in COUNTS:
                values.setdefault(name, []).append(value)
    return {name: fmean(row) for name, row in values.items()}
