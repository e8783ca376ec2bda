"""Read the judge's artefacts by dataset and arm; absent or damaged files are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mgdm_ray.evaluation.chance import chance_limit
from mgdm_ray.pipeline.job import FEATURES
from mgdm_ray.results.report.cells import in_order
from mgdm_ray.storage.records import Record

AT_CHANCE = 0.5
"""A guide at chance at a larger share of the noise levels is reported."""
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Judge:
    """A network trained only on the real training images of one dataset."""

    dataset: str
    metrics: Mapping[str, float]
    features: Arrays
    """``train/features``, ``train/labels``, ... ``val/``, ``test/``; empty without the artefact."""

    @staticmethod
    def of(record: Record, artefact: Callable[[Record], Path | None]) -> Judge | None:
        """None for a record of another kind, and for a judge that is not done."""
        if record.kind != "fit_judge" or record.status != "done" or not record.dataset:
            return None
        return Judge(record.dataset, record.metrics, _arrays(artefact(record)))

    @property
    def accuracy(self) -> float:
        """Balanced accuracy on the test split; nan where the record has none."""
        for name in ("test_balanced_accuracy", "balanced_accuracy"):
            if name in self.metrics:
                return self.metrics[name]
        return math.nan

    def chance_limit(self, split: str) -> float:
        """See ``evaluation.chance``; nan where neither labels nor the record tell it."""
        labels = self.features.get(f"{split}/labels")
        if labels is None or len(labels) == 0:
            return self.metrics.get(f"{split}_chance_below", math.nan)
        return chance_limit(labels)

    @property
    def at_chance(self) -> dict[str, float]:
        """Balanced accuracy by split, of those on which the judge is within its chance limit."""
        validation = self.metrics.get("val_balanced_accuracy", math.nan)
        found = {"validation": ("val", validation), "test": ("test", self.accuracy)}
        return {
            name: value
            for name, (split, value) in found.items()
            if value <= self.chance_limit(split)
        }


@dataclass(frozen=True)
class Assessed:
    """The judge's measures of the images that one arm adds."""

    dataset: str
    arm: str
    network: str | None
    """Network that the images were made for; None: all."""
    metrics: Mapping[str, float]
    folder: Path | None
    content: Mapping[str, Any] = field(default_factory=dict)
    """``assessment.json``."""

    @property
    def name(self) -> str:
        return f"{self.arm} for {self.network}" if self.network else self.arm

    @property
    def classes(self) -> Sequence[Mapping[str, Any]]:
        return self.content.get("classes") or ()

    def picture(self, name: str) -> bytes | None:
        path = self.folder / name if self.folder else None
        return path.read_bytes() if path is not None and path.is_file() else None


def judges(
    records: Iterable[Record], artefact: Callable[[Record], Path | None]
) -> dict[str, Judge]:
    """By dataset."""
    found = (Judge.of(record, artefact) for record in records)
    return {judge.dataset: judge for judge in found if judge}


def guide_at_chance(record: Record) -> bool:
    """Whether it is a guide at chance at more than AT_CHANCE of the noise levels."""
    share = record.metrics.get("share_of_t_at_chance", 0.0)
    return record.kind == "fit_guide" and share > AT_CHANCE


def assessments(
    records: Iterable[Record], artefact: Callable[[Record], Path | None]
) -> dict[str, list[Assessed]]:
    """By dataset, in the order of arms."""
    found: dict[str, list[Assessed]] = {}
    for record in records:
        if record.kind != "assess" or record.status != "done":
            continue
        folder = artefact(record)
        path = folder / "assessment.json" if folder else None
        there = path is not None and path.is_file()
        content = json.loads(path.read_text(encoding="utf-8")) if path and there else {}
        arm, dataset = record.arm or "?", record.dataset or "?"
        one = Assessed(dataset, arm, record.network, record.metrics, folder, content)
        found.setdefault(dataset, []).append(one)
    for rows in found.values():
        order = in_order(row.arm for row in rows)
        rows.sort(key=lambda row: (order.index(row.arm), row.network or ""))
    return found


def _arrays(folder: Path | None) -> Arrays:
    """Empty for a damaged file: it must not stop the report."""
    path = folder / FEATURES if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        return load_file(path)
    except SafetensorError:
        return {}
