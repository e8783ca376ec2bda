"""A small finished study made up of records and artefact folders, as the jobs would leave them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mgdm_ray.results.report.builder import ReportContext
from mgdm_ray.storage.records import Record

DATASETS = {
    "phantom-ultrasound": {"task": "binary", "classes": ["benign", "malignant"], "level": 0.78},
    "phantom-fundus": {"task": "ordinal", "classes": ["0", "1", "2", "3", "4"], "level": 0.52},
}
NETWORKS = ("resnet18", "squeezenet1_1", "mobilenet_v2")
ARMS = ("real", "duplicate", "generate", "roundtrip", "disturb")
SEEDS = (0, 1)
EFFECT = {"real": 0.0, "duplicate": 0.004, "generate": 0.02, "roundtrip": 0.018, "disturb": 0.045}
SETTING = {
    "guidance_scale": 1.5,
    "classifier_scale": 0.0,
    "measurement": "entropy",
    "uncertainty_scale": 0.12,
    "gradient": "normalised",
}


@dataclass
class Example:
    """Records, and where the artefact of each lies."""

    records: list[Record]
    root: Path

    def artefact(self, record: Record) -> Path | None:
        folder = self.root / record.kind / record.key
        return folder if folder.is_dir() else None

    def context(self, **changes: object) -> ReportContext:
        values: dict[str, object] = {
            "study_name": "quickstart",
            "config_yaml": "name: quickstart\nseeds: [0, 1]\n# a < b & c\n",
            "command": "python -m mgdm_ray.study studies/quickstart.yaml",
            "started": "2026-11-22T18:40:00+00:00",
            "seconds": 431.2,
            "versions": {"mgdm_ray": "0.1.0", "torch": "2.14.1", "ray": "2.60.0"},
            "git_commit": "0123abc",
            "storage": "/data/runs",
            "mlflow_command": "mlflow ui --backend-store-uri sqlite:////data/runs/mlflow.db",
            "artefact": self.artefact,
            "datasets": [
                {"name": name, "task": facts["task"], "classes": facts["classes"],
                 "licence": "Apache-2.0", "citation": "drawn by code"}
                for name, facts in DATASETS.items()
            ],
            "expected_cells": [
                (d, n, a, s) for d in DATASETS for a in ARMS for n in NETWORKS for s in SEEDS
            ],
            "plan_counts": {"fit_denoiser": 2, "fit_guide": 2, "search": 2, "fit_downstream": 60},
        }  # fmt: skip
        return ReportContext(**{**values, **changes})  # type: ignore[arg-type]


def make_example(root: Path, failed: bool = True, trials: int = 8, again: int = 6) -> Example:
    """Two datasets x three networks x five arms x two seeds, a search each, some of it failed.

    ``again`` settings of each search are scored again; of 0, the searches have no importance
    either, as those of an older version.
    """
    example = Example([], root)
    rng = np.random.default_rng(7)
    for dataset in DATASETS:
        _add_models(example, dataset, rng)
        if trials:
            rows = _add_search(example, dataset, trials, rng, importance=again > 0)
            if again:
                _add_confirm(example, dataset, rows[:again])
        _add_cells(example, dataset, rng, failed)
    return example


def add(example: Example, record: Record, **files: object) -> None:
    """Keep ``record``; each file is JSON, or a PNG for an array. ``a_json`` names ``a.json``."""
    folder = example.root / record.kind / record.key
    for name, content in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        stem, suffix = name.rsplit("_", 1)
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(folder / f"{stem}.{suffix}")
        else:
            (folder / f"{stem}.{suffix}").write_text(json.dumps(content))
    example.records.append(record)


def loss_history(steps: int, start: float, rng: np.random.Generator) -> list[dict[str, float]]:
    noise = rng.lognormal(0, 0.12, steps)
    decay = 0.1 + np.exp(-np.arange(steps) / (steps / 5))
    return [{"step": i + 1, "loss": float(start * decay[i] * noise[i])} for i in range(steps)]


def _grid(classes: int, blur: float, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    rows = []
    for label in range(classes):
        tiles = []
        for _ in range(10):
            cx, cy = rng.uniform(-0.3, 0.3, 2)
            blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.05 + 0.12 * label))
            tiles.append(np.clip(60 + 150 * blob + rng.normal(0, 12 + blur, x.shape), 0, 255))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows).astype(np.uint8)


def _add_models(example: Example, dataset: str, rng: np.random.Generator) -> None:
    classes = len(DATASETS[dataset]["classes"])  # type: ignore[arg-type]
    common = {"dataset": dataset, "status": "done", "versions": {"torch": "2.14.1"}}
    add(
        example,
        Record(
            key=f"den-{dataset}",
            kind="fit_denoiser",
            seconds=95.0,
            metrics={"loss": 0.11},
            **common,
        ),  # type: ignore[arg-type]
        history_json=loss_history(600, 1.0, rng),
        real_png=_grid(classes, 0, rng),
    )
    over_t = [0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999]
    accuracy = [1 / classes + (0.85 - 1 / classes) / (1 + np.exp((t - 380) / 90)) for t in over_t]
    add(
        example,
        Record(key=f"gui-{dataset}", kind="fit_guide", seconds=41.0, split="val", **common),  # type: ignore[arg-type]
        history_json=loss_history(300, 1.4, rng),
        accuracy_over_t_json={
            "t": over_t,
            "balanced_accuracy": accuracy,
            "ece": [0.05 + t / 5000 for t in over_t],
            "chance_below": 1 / classes + 0.02,
        },
    )
    stage_one = {"guidance_scale": 1.5, "classifier_scale": 0.0}
    for kind, arm, setting in (
        ("generate", None, stage_one),
        ("encode", None, stage_one),
        ("decode", "roundtrip", stage_one),
        ("decode", "disturb", SETTING),
    ):
        record = Record(
            key=f"{kind}-{arm}-{dataset}",
            kind=kind,
            arm=arm,
            setting=setting,
            seconds=22.0,
            **common,
        )  # type: ignore[arg-type]
        if kind == "encode":
            add(example, record)
        else:
            add(example, record, grid_png=_grid(classes, 10, rng))


def _add_search(
    example: Example, dataset: str, trials: int, rng: np.random.Generator, importance: bool
) -> list[dict[str, Any]]:
    """The finished trials, the best one first."""
    rows: list[dict[str, Any]] = []
    for number in range(trials):
        gamma = float(np.exp(rng.uniform(np.log(0.02), np.log(0.5))))
        measurement = ("entropy", "least_confidence")[number % 2]
        setting = {**SETTING, "measurement": measurement, "uncertainty_scale": gamma}
        score = 0.7 - 0.04 * np.log(gamma / 0.12) ** 2 + rng.normal(0, 0.015)
        row = {"number": number, "setting": setting, "seconds": 6.0, "status": "done",
               "score": float(score), "per_network": {"squeezenet1_1": float(score)}}  # fmt: skip
        if number == trials - 1:
            row |= {"status": "failed", "score": None, "per_network": {}, "reason": "loss is nan"}
        rows.append(row)
    best = max((r for r in rows if r["score"] is not None), key=lambda r: r["score"])  # type: ignore[arg-type,return-value]
    record = Record(
        key=f"search-{dataset}", kind="search", status="done", dataset=dataset, split="val",
        setting=best["setting"], metrics={"best_score": best["score"], "trials": trials - 1},
        seconds=6.0 * trials,
    )  # type: ignore[arg-type]  # fmt: skip
    files: dict[str, object] = {"trials_json": rows}
    if importance:
        shares = {"measurement": 0.2, "uncertainty_scale": 0.8}
        known = dataset == "phantom-ultrasound"
        reason = "" if known else "all trials have the same score"
        found = {"trials": trials - 1, "importance": shares if known else {}, "reason": reason}
        files["importance_json"] = found
    add(example, record, **files)
    return sorted((r for r in rows if r["status"] == "done"), key=lambda r: -r["score"])


def _add_confirm(example: Example, dataset: str, rows: list[dict[str, Any]]) -> None:
    """Every score falls by 0.02 and that of the best one by 0.05; other networks agree but for
    the worst setting, which they find best."""
    scores = []
    for place, row in enumerate(rows):
        fresh = row["score"] - (0.02 if place else 0.05)
        other = row["score"] - 0.1 + (0.3 if place == len(rows) - 1 else 0.0)
        scores += [
            {"number": row["number"], "network": network, "is_proxy": network == "squeezenet1_1",
             "seed": seed, "score": value + 0.004 * (-1) ** seed}
            for network, value in (("squeezenet1_1", fresh), ("resnet18", other))
            for seed in (0, 1)
        ]  # fmt: skip
    record = Record(
        key=f"confirm-{dataset}", kind="confirm", status="done", dataset=dataset, split="val",
        setting=rows[0]["setting"], seconds=30.0,
    )  # fmt: skip
    settings = [{k: row[k] for k in ("number", "setting", "score")} for row in rows]
    content = {"trials": 7, "settings": settings, "rows": scores}
    add(example, record, confirm_json=content)


def _add_cells(example: Example, dataset: str, rng: np.random.Generator, failed: bool) -> None:
    level = float(DATASETS[dataset]["level"])  # type: ignore[arg-type]
    for n, network in enumerate(NETWORKS):
        for seed in SEEDS:
            base = level + 0.03 * n + rng.normal(0, 0.02)
            for arm in ARMS:
                common = {
                    "key": f"cell-{dataset}-{network}-{arm}-{seed}", "kind": "fit_downstream",
                    "dataset": dataset, "network": network, "arm": arm, "seed": seed,
                }  # fmt: skip
                if (
                    failed
                    and dataset == "phantom-fundus"
                    and network == "resnet18"
                    and arm == "disturb"
                ):
                    reason = "NonFiniteLoss: the loss is nan at step 41 <script>alert(1)</script>"
                    example.records.append(
                        Record(status="failed", reason=reason, seconds=3.0, **common)  # type: ignore[arg-type]
                    )
                    continue
                value = float(np.clip(base + EFFECT[arm] + rng.normal(0, 0.012), 0, 1))
                metrics = {
                    "balanced_accuracy": value,
                    "accuracy": min(1.0, value + 0.02),
                    "auroc": min(1.0, value + 0.08),
                    "val_balanced_accuracy": value + 0.01,
                }
                record = Record(
                    status="done", split="test", metrics=metrics, seconds=9.0,
                    setting=SETTING if arm == "disturb" else {}, **common,
                )  # type: ignore[arg-type]  # fmt: skip
                add(example, record, history_json=loss_history(100, 1.2, rng))
