"""Per-image results beside the report: whoever has them can recompute every contrast."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mgdm_ray.results.report.builder import Builder
from mgdm_ray.results.report.table import csv_text


def save_predictions(report: Builder) -> None:
    """``tables/predictions-DATASET.csv``: one row per test image, in their order.

    ``class`` (number), ``group`` (of images that belong together), then per cell ``network arm
    seed`` 1 if it is right, else 0. No pixels, no file names, no patients.
    """
    for dataset in report.datasets:
        mine = {cell: p for cell, p in sorted(report.predictions.items()) if cell[0] == dataset}
        if not mine:
            continue
        first = next(iter(mine.values()))
        groups = first.groups if len(first.groups) else np.arange(len(first.labels))
        right = {
            f"{network} {arm} {seed}": found.right.astype(int)
            for (_, network, arm, seed), found in mine.items()
            if len(found.labels) == len(first.labels)
        }
        frame = pd.DataFrame({"class": first.labels, "group": groups, **right})
        report.save(f"tables/predictions-{dataset}.csv", csv_text(frame).encode())
