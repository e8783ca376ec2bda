"""The content of MLflow runs, made from records without MLflow itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgdm_ray.pipeline.job import CELLS
from mgdm_ray.results.mlflow.curves import Curve, read_curves
from mgdm_ray.storage.records import Record

SWEPT = ("guidance_scale", "classifier_scale", "uncertainty_scale", "measurement")
RUN_STATUS = {"done": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "refused": "KILLED"}
IMAGES = ("grid.png", "real.png", "strengths.png", "closest.png", "entropy.png")


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
    inputs: Sequence[tuple[Mapping[str, str], str]] = ()
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


def record_row(
    record: Record, folder: Path | None, datasets: Mapping[str, Mapping[str, object]]
) -> Row:
    """The run of one record. ``folder``: its artefact, if any; ``datasets``: as in ``Tracker``."""
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
        inputs=_inputs(record, datasets),
        images=[path for path in images if path.is_file()],
        pictured=record.kind not in CELLS,
        setting=record.setting,
    )


def record_digest(record: Record, datasets: Mapping[str, Mapping[str, object]]) -> str:
    """Differs where pictures must no longer be shown, so that the run is replaced."""
    return digest(record.to_json() + ("" if _shown(record, datasets) else " without pictures"))


def _shown(record: Record, datasets: Mapping[str, Mapping[str, object]]) -> bool:
    return bool(datasets.get(record.dataset or "", {}).get("pictures", True))


def _params(record: Record) -> dict[str, str]:
    values: dict[str, Any] = {
        "dataset": record.dataset,
        "network": record.network,
        "arm": record.arm,
        "seed": record.seed,
        "ratio": record.metrics.get("ratio"),
    }
    values |= {name: record.setting.get(name) for name in SWEPT}
    return {name: str(value) for name, value in values.items() if value is not None}


def _tags(record: Record) -> dict[str, str]:
    tags = {"status": record.status, "kind": record.kind}
    if record.reason:
        tags["reason"] = record.reason[:4000]
    if record.split:
        tags["split"] = record.split
    if "gradient" in record.setting:
        tags["gradient"] = str(record.setting["gradient"])
    if record.git_commit:
        tags["mlflow.source.git.commit"] = record.git_commit
    if record.versions:
        tags["versions"] = json.dumps(record.versions, sort_keys=True)[:4000]
    return tags


def _inputs(
    record: Record, datasets: Mapping[str, Mapping[str, object]]
) -> list[tuple[dict[str, str], str]]:
    if record.dataset is None:
        return []
    facts = dict(datasets.get(record.dataset, {}))
    fields = {
        "name": record.dataset,
        "digest": str(facts.pop("digest", "unknown"))[:36],
        "source_type": "local",
        "source": json.dumps({"uri": str(facts.pop("source", record.dataset))}),
        "profile": json.dumps(facts, default=str),
    }
    split = record.split or ("val" if record.kind in ("search", "trial") else "train")
    return [(fields, split)]
