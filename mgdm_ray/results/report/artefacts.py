"""Read the files of artefacts: absent and damaged ones are left out.

The trials of searches; the judge and its measures by dataset and arm; test predictions of cells,
paired image by image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mgdm_ray.evaluation.chance import chance_limit
from mgdm_ray.evaluation.stats.images import PairedPredictions
from mgdm_ray.evaluation.stats.paired import CellId
from mgdm_ray.pipeline.job import FEATURES
from mgdm_ray.pipeline.trials import TRIALS_FILE, Trial, best_trial
from mgdm_ray.results.report.cells import cell_id, in_order
from mgdm_ray.storage.records import Record

AT_CHANCE = 0.5
"""A guide at chance at a larger share of the noise levels is reported."""
PREDICTIONS = "test_predictions.safetensors"
Artefact = Callable[[Record], Path | None]
"""The folder of a record's artefact; None where there is none."""
Arrays = Mapping[str, NDArray[Any]]


def file_of(record: Record, artefact: Artefact, name: str) -> Path | None:
    folder = artefact(record)
    path = folder / name if folder else None
    return path if path and path.is_file() else None


def json_of(record: Record, artefact: Artefact, name: str) -> Any:
    """None where there is no such file."""
    path = file_of(record, artefact, name)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def arrays_of(record: Record, artefact: Artefact, name: str) -> Arrays:
    """Empty without the file, and for a damaged one: it must not stop the report."""
    path = file_of(record, artefact, name)
    try:
        return load_file(path) if path else {}
    except SafetensorError:
        return {}


def where_of(record: Record) -> str:
    """Name of a search: its dataset, or dataset and network."""
    return " · ".join(part for part in (record.dataset, record.network) if part) or "?"


def read_trials(records: Sequence[Record], artefact: Artefact) -> list[Trial]:
    """Trials of all searches: from each one's ``trials.json``, else from the trial records."""
    found = [
        Trial.of(row, where_of(record))
        for record in records
        if record.kind == "search"
        for row in json_of(record, artefact, TRIALS_FILE) or ()
    ]
    single = [record for record in records if record.kind == "trial"]
    return found or [Trial.of_record(r, number, where_of(r)) for number, r in enumerate(single)]


def best_trials(found: Sequence[Trial]) -> dict[str, Trial]:
    """``best_trial`` per search."""
    searches = dict.fromkeys(trial.where for trial in found)
    best = {where: best_trial(t for t in found if t.where == where) for where in searches}
    return {where: trial for where, trial in best.items() if trial}


@dataclass(frozen=True)
class Judge:
    """A network trained only on the real training images of one dataset."""

    dataset: str
    metrics: Mapping[str, float]
    features: Arrays
    """``train/features``, ``train/labels``, ... ``val/``, ``test/``; empty without the artefact."""

    @staticmethod
    def of(record: Record, artefact: Artefact) -> Judge | None:
        """None for a record of another kind, and for a judge that is not done."""
        if record.kind != "fit_judge" or record.status != "done" or not record.dataset:
            return None
        return Judge(record.dataset, record.metrics, arrays_of(record, artefact, FEATURES))

    @property
    def accuracy(self) -> float:
        """Balanced accuracy on the test split; nan where the record has none."""
        former = self.metrics.get("balanced_accuracy", math.nan)
        return self.metrics.get("test_balanced_accuracy", former)

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
            n: value for n, (split, value) in found.items() if value <= self.chance_limit(split)
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


def judges(records: Iterable[Record], artefact: Artefact) -> dict[str, Judge]:
    """By dataset."""
    found = (Judge.of(record, artefact) for record in records)
    return {judge.dataset: judge for judge in found if judge}


def guide_at_chance(record: Record) -> bool:
    """Whether it is a guide at chance at more than AT_CHANCE of the noise levels."""
    share = record.metrics.get("share_of_t_at_chance", 0.0)
    return record.kind == "fit_guide" and share > AT_CHANCE


def assessments(records: Iterable[Record], artefact: Artefact) -> dict[str, list[Assessed]]:
    """By dataset, in the order of arms."""
    found: dict[str, list[Assessed]] = {}
    for record in records:
        if record.kind == "assess" and record.status == "done":
            content = json_of(record, artefact, "assessment.json") or {}
            arm, dataset, folder = record.arm or "?", record.dataset or "?", artefact(record)
            one = Assessed(dataset, arm, record.network, record.metrics, folder, content)
            found.setdefault(dataset, []).append(one)
    for rows in found.values():
        order = in_order(row.arm for row in rows)
        rows.sort(key=lambda row: (order.index(row.arm), row.network or ""))
    return found


@dataclass(frozen=True)
class Predictions:
    """``right`` bool `[images]`: whether the most probable class is the label; ``labels``;
    ``groups``: which images belong together, empty in files of earlier versions."""

    right: NDArray[np.bool_]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def read_predictions(
    records: Iterable[Record],
    artefact: Artefact,
    groups: Mapping[str, NDArray[np.int64]] | None = None,
) -> dict[CellId, Predictions]:
    """By cell, of done cells with stored predictions.

    ``groups`` of the test images by dataset, as they are now, replace those stored with the cells.
    """
    found = {}
    for record in records:
        done = record.is_cell and record.status == "done"
        if stored := arrays_of(record, artefact, PREDICTIONS) if done else None:
            labels = stored["labels"].astype(np.int64)
            right = stored["probabilities"].argmax(axis=1) == labels
            own = (groups or {}).get(str(record.dataset))
            if own is None or len(own) != len(labels):
                own = stored.get("groups", np.zeros(0)).astype(np.int64)
            found[cell_id(record)] = Predictions(right, labels, own)
    return found


def pair_predictions(
    answered: Mapping[CellId, Predictions],
    pair: tuple[str, str],
    cells: Collection[CellId],
    origins: Mapping[str, str] | None = None,
    drawn: Collection[str] = (),
) -> dict[str, PairedPredictions] | None:
    """Per dataset the predictions of both arms, in those of ``cells`` that both have; with
    ``origins`` variants together. Arms in ``drawn`` have images of their own for each seed.

    None if a cell's predictions are missing, or if cells of one dataset (or of its variants) were
    tested on different images.
    """
    rows: dict[str, list[tuple[Predictions, Predictions]]] = {}
    seeds: dict[str, list[int]] = {}
    for dataset, network, seed in sorted({(d, n, s) for d, n, _, s in cells}):
        a, b = ((dataset, network, arm, seed) for arm in pair)
        if a in cells and b in cells:
            if a not in answered or b not in answered:
                return None
            name = (origins or {}).get(dataset, dataset)
            rows.setdefault(name, []).append((answered[a], answered[b]))
            seeds.setdefault(name, []).append(seed)
    found = {}
    for name, group in rows.items():
        labels, groups = group[0][0].labels, group[0][0].groups
        if any(not np.array_equal(labels, one.labels) for two in group for one in two):
            return None
        difference = np.stack([a.right.astype(float) - b.right for a, b in group])
        draws = np.array(seeds[name]) if set(pair) & set(drawn) else None
        found[name] = PairedPredictions(difference, labels, groups, draws)
    return found or None
