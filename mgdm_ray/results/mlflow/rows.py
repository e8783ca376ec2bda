"""The content of MLflow runs, made from records without MLflow itself.

One run per record, and one per arm with plain means over its done cells, because MLflow cannot
compare thousands of cells. An arm that lost cells is averaged over fewer cells than the others
(``cells`` counts them): conclusions are drawn from the contrasts, not from these means.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mgdm_ray.pipeline.job import CELLS
from mgdm_ray.storage.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEPT = ("guidance_scale", "classifier_scale", "uncertainty_scale", "measurement")
RUN_STATUS = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "refused": "KILLED"}
IMAGES = ("grid.png", "real.png", "strengths.png", "closest.png", "entropy.png")
ARM = "arm"
"""The kind of an arm's run."""
HEADLINE = ("balanced_accuracy", "auroc")
COUNTS = ("train_images", "micro_batches", "best_step")
"""Metrics of cells that are not scores, and would come first in MLflow's comparison."""
MAX_POINTS = 500
Curve = list[tuple[int, float]]
"""(step or t, value), ascending."""
Datasets = Mapping[str, Mapping[str, object]]
"""Facts by name, as in ``Tracker``."""


@dataclass(frozen=True)
class Row:
    """One run. Rows with the same ``key`` but different ``digest`` differ in content."""

    key: str
    digest: str
    kind: str
    name: str
    status: str = "FINISHED"
    """In MLflow's terms."""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final scores, under the same names in every run."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    """What varies between runs: the UI compares these first."""
    tags: Mapping[str, str] = field(default_factory=dict)
    input: tuple[Mapping[str, str], str] | None = None
    """Fields of MLflow's ``Dataset``, and the split it was used as."""
    images: Sequence[Path] = ()
    pictured: bool = False
    """Whether to draw each curve as a figure, too; too slow for hundreds of cells."""
    setting: Mapping[str, Any] = field(default_factory=dict)


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def metric_name(name: str) -> str:
    """``name`` with the characters that MLflow rejects replaced."""
    return re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)


def run_name(record: Record) -> str:
    """``disturb breastmnist resnet18 s0`` for a cell, ``decode retinamnist disturb`` for a job."""
    seed = None if record.seed is None else f"s{record.seed}"
    if record.kind in CELLS:
        parts = [record.arm, record.dataset, record.network, seed]
        parts.append(None if record.is_cell else f"ratio {record.metrics.get('ratio', '?')}")
    else:
        parts = [record.kind, record.dataset, record.network, record.arm, seed]
        parts.append(record.key[:6] if record.kind == "trial" else None)
    return " ".join(part for part in parts if part)


def record_row(record: Record, folder: Path | None, datasets: Datasets) -> Row:
    """The run of one record. ``folder``: its artefact, if any."""
    images = [folder / name for name in IMAGES] if folder and _shown(record, datasets) else []
    return Row(
        key=record.key,
        digest=record_digest(record, datasets),
        kind=record.kind,
        name=run_name(record),
        status=RUN_STATUS[record.status],
        seconds=record.seconds,
        metrics={**record.metrics, "seconds": record.seconds},
        curves=read_curves(folder) if folder else {},
        params=_params(record),
        tags=_tags(record),
        input=_input(record, datasets),
        images=[path for path in images if path.is_file()],
        pictured=record.kind not in CELLS,
        setting=record.setting,
    )


def record_digest(record: Record, datasets: Datasets) -> str:
    """Differs where pictures must no longer be shown, so that the run is replaced."""
    return digest(record.to_json() + ("" if _shown(record, datasets) else " without pictures"))


def _shown(record: Record, datasets: Datasets) -> bool:
    return bool(datasets.get(record.dataset or "", {}).get("pictures", True))


def _params(record: Record) -> dict[str, str]:
    values = {name: getattr(record, name) for name in ("dataset", "network", "arm", "seed")}
    swept = {name: record.setting.get(name) for name in SWEPT}
    return _known({**values, "ratio": record.metrics.get("ratio"), **swept})


def _tags(record: Record) -> dict[str, str]:
    return _known(
        {
            "status": record.status,
            "kind": record.kind,
            "reason": record.reason[:4000],
            "split": record.split,
            "gradient": record.setting.get("gradient"),
            "mlflow.source.git.commit": record.git_commit,
            "versions": record.versions and json.dumps(record.versions, sort_keys=True)[:4000],
        }
    )


def _known(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "", {})}


def _input(record: Record, datasets: Datasets) -> tuple[Mapping[str, str], str] | None:
    if record.dataset is None:
        return None
    facts = dict(datasets.get(record.dataset, {}))
    fields = {
        "name": record.dataset,
        "digest": str(facts.pop("digest", "unknown"))[:36],
        "source_type": "local",
        "source": json.dumps({"uri": str(facts.pop("source", record.dataset))}),
        "profile": json.dumps(facts, default=str),
    }
    return fields, record.split or ("val" if record.kind in ("search", "trial") else "train")


def read_curves(folder: Path) -> dict[str, Curve]:
    """``loss`` over steps, ``guide_balanced_accuracy`` and ``guide_ece`` over t; finite points."""
    curves: dict[str, Curve] = {}
    history = folder / "history.json"
    if history.is_file():
        rows = json.loads(history.read_text(encoding="utf-8"))
        curves["loss"] = [(int(row["step"]), float(row["loss"])) for row in rows]
    over_t = folder / "accuracy_over_t.json"
    if over_t.is_file():
        table = json.loads(over_t.read_text(encoding="utf-8"))
        for name in ("balanced_accuracy", "ece"):
            if name in table:
                pairs = zip(table["t"], table[name], strict=True)
                curves[f"guide_{name}"] = [(int(t), float(value)) for t, value in pairs]
    thinned = {name: _thin(points) for name, points in curves.items()}
    return {name: points for name, points in thinned.items() if points}


def _thin(points: Curve) -> Curve:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    stride = math.ceil(len(finite) / MAX_POINTS) or 1
    return sorted({*finite[::stride], *finite[-1:]})


def curve_figure(title: str, name: str, points: Curve) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], color="#30638e", linewidth=1.2)
    axes.set(title=title, xlabel="step" if name == "loss" else "t", ylabel=name.replace("_", " "))
    axes.grid(alpha=0.3)
    return figure


def arm_rows(study_key: str, records: Iterable[Record]) -> list[Row]:
    """One row per arm with a done cell, in the order of the records: means over all its cells, and
    as ``NAME/DATASET`` over those of each dataset."""
    arms: dict[str, list[Record]] = {}
    for record in records:
        if record.is_cell and record.status == "done":
            arms.setdefault(str(record.arm), []).append(record)
    rows = []
    for arm, cells in arms.items():
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
        content, tags = (
            json.dumps([metrics, params], sort_keys=True),
            {"kind": ARM, "status": "done"},
        )
        key = f"{study_key}/{arm}"
        rows.append(Row(key, digest(content), ARM, arm, metrics=metrics, params=params, tags=tags))
    return rows


def headline(arms: Iterable[Row], records: Sequence[Record]) -> dict[str, float]:
    """Means per arm, and per arm and dataset; numbers of done cells and failed records."""
    found = {
        "/".join([name, row.name, *dataset]): value
        for row in arms
        for metric, value in row.metrics.items()
        for name, *dataset in [metric.split("/", 1)]
        if name in HEADLINE
    }
    done = sum(record.is_cell and record.status == "done" for record in records)
    failed = sum(record.status == "failed" for record in records)
    return {**found, "cells/done": float(done), "records/failed": float(failed)}


def _means(cells: Iterable[Record]) -> dict[str, float]:
    """The mean of each score over the cells that have it."""
    values: dict[str, list[float]] = {}
    for record in cells:
        for name, value in record.metrics.items():
            if name not in COUNTS:
                values.setdefault(name, []).append(value)
    return {name: fmean(row) for name, row in values.items()}
