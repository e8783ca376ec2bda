"""Artefacts of the judge, as its jobs would leave them: features around one centre per class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from mgdm_ray.storage.records import Record
from tests.study_example import Example

WIDTH = 16
DISTANCE = {"duplicate": 0.02, "generate": 9.0, "roundtrip": 8.0, "perturb": 11.0, "disturb": 12.0}
"""FD of each arm; held-out real images have 2."""
SPREAD = {"duplicate": 0.0, "generate": 0.3, "roundtrip": 0.3, "perturb": 0.6, "disturb": 0.9}
EDGES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
PER_CLASS = 24


def add_judged(
    example: Example,
    dataset: str,
    classes: int,
    arms: Sequence[str],
    *,
    files: bool = True,
    accuracy: float = 0.82,
) -> None:
    """A judge and one assessment per arm that adds images; without ``files`` their records only."""
    rng = np.random.default_rng([5, classes])
    centres = 3.0 * rng.normal(size=(classes, WIDTH))
    labels = np.tile(np.arange(classes), PER_CLASS)

    def features(spread: float) -> np.ndarray:
        noise = rng.normal(size=(len(labels), WIDTH)) * (1 + spread)
        return (centres[labels] + noise).astype(np.float16)

    judge = Record(
        key=f"judge-{dataset}", kind="fit_judge", status="done", dataset=dataset, split="test",
        metrics={"val_balanced_accuracy": accuracy, "balanced_accuracy": accuracy}, seconds=12.0,
    )  # fmt: skip
    example.records.append(judge)
    if files:
        arrays: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            arrays |= {f"{split}/features": features(0.0), f"{split}/labels": labels}
            arrays[f"{split}/entropy"] = rng.uniform(0, 1, len(labels)).astype(np.float32)
        save_file(arrays, _folder(example, judge) / "features.safetensors")
    for arm in arms:
        if arm not in DISTANCE:
            continue
        record = Record(
            key=f"assess-{dataset}-{arm}", kind="assess", status="done", dataset=dataset, arm=arm,
            metrics=assess_metrics(arm, len(labels)), seconds=4.0,
        )  # fmt: skip
        example.records.append(record)
        if files:
            _assess_files(_folder(example, record), arm, classes, labels, features(SPREAD[arm]))


def assess_metrics(arm: str, images: int) -> dict[str, float]:
    copied = 1.0 if arm == "duplicate" else 0.05
    return {
        "images": float(images), "fd": DISTANCE[arm], "fd_real": 2.0, "kid": DISTANCE[arm] / 100,
        "kid_real": 0.01, "precision": 0.7, "recall": 0.4, "density": 0.9, "coverage": 0.6,
        "flip_rate": 0.25, "flip_rate_real": 0.18, "entropy_mean": 0.5, "entropy_real": 0.3,
        "copy_rate": copied, "copy_rate_real": 0.04, "near_distance": 3.0,
        "near_distance_real": 2.5,
    }  # fmt: skip


def add_ratios(
    example: Example, dataset: str, network: str, points: Mapping[tuple[str, float, int], float]
) -> None:
    """``points[arm, ratio, seed]`` is a balanced accuracy."""
    for (arm, ratio, seed), value in points.items():
        example.records.append(
            Record(
                key=f"ratio-{dataset}-{network}-{arm}-{ratio}-{seed}", kind="fit_at_ratio",
                status="done", dataset=dataset, network=network, arm=arm, seed=seed, split="test",
                metrics={"balanced_accuracy": value, "ratio": ratio},
            )
        )  # fmt: skip


def _folder(example: Example, record: Record) -> Path:
    folder = example.root / record.kind / record.key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _assess_files(
    folder: Path, arm: str, classes: int, labels: np.ndarray, features: np.ndarray
) -> None:
    overall = assess_metrics(arm, len(labels))
    by_class = [
        {"label": k, "images": PER_CLASS, "fd": None if k else overall["fd"], "kid": 0.1,
         "precision": 0.7, "recall": 0.4, "density": 0.9, "coverage": 0.6, "flip_rate": 0.1 * k,
         "entropy_mean": 0.5, "copy_rate": 0.0}
        for k in range(classes)
    ]  # fmt: skip
    content = {
        "arm": arm,
        "classes": by_class,
        "overall": overall,
        "real": {"fd_real": 2.0},
        "entropy_bins": {
            "edges": EDGES, "synthetic": [10, 10, 20, 40, 20], "real": [30, 10, 5, 3, 2],
        },
        "copies": {"threshold": 1.25, "closest": [
            {"image": 0, "train": 3, "distance": 0.9, "label": 0}]},
    }  # fmt: skip
    (folder / "assessment.json").write_text(json.dumps(content))
    near = np.full(len(labels), 3.0, np.float32)
    save_file(
        {"features": features, "entropy": near / 6, "labels": labels, "predicted": labels,
         "near_distance": near},
        folder / "features.safetensors",
    )  # fmt: skip
    rng = np.random.default_rng(len(arm))
    for name, shape in (("closest.png", (60, 280, 3)), ("entropy.png", (classes * 40, 320, 3))):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
