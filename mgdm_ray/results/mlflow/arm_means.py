"""One run per arm, with means over its cells: MLflow cannot compare thousands of cells.

Plain means over done cells: an arm that lost cells is averaged over fewer cells than the others
(``cells`` counts them). Conclusions are drawn from the contrasts, not from these means.
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
"""Metrics of cells that are not scores, and would come first in MLflow's comparison."""


def arm_rows(study_key: str, records: Sequence[Record]) -> list[Row]:
    """One row per arm with a done cell, in the order of the records."""
    arms = dict.fromkeys(str(record.arm) for record in _done_cells(records))
    return [
        _row(study_key, arm, [r for r in _done_cells(records) if str(r.arm) == arm]) for arm in arms
    ]


def headline(records: Sequence[Record]) -> dict[str, float]:
    """Means per arm, and per arm and dataset; numbers of done cells and failed records."""
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
    """The mean of each score over the cells that have it."""
    values: dict[str, list[float]] = {}
    for record in cells:
        for name, value in record.metrics.items():
            if name not in COUNTS:
                values.setdefault(name, []).append(value)
    return {name: fmean(row) for name, row in values.items()}
