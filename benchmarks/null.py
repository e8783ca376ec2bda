"""How often a report says "better" or "worse" where nothing can be: a calibration of the null.

All arms add fresh real images: drawn phantoms. Networks with random hidden features and a ridge
fit take milliseconds. Records and predictions go through the report's own ``Builder``.

    python -m benchmarks.null [--repetitions 300] [--one-draw | --draws]

With ``--one-draw`` all cells of an arm share one set of added images, as with ``draws: one``. Its
"here" then speaks of these images only, and images that happen to be good are a true difference.
With ``--draws`` all networks of a seed share one, as with ``draws: images``; "here" covers others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from sklearn.metrics import balanced_accuracy_score

from mgdm_ray.config import PhantomConfig
from mgdm_ray.data.phantoms import draw_split
from mgdm_ray.results.report.artefacts import PREDICTIONS
from mgdm_ray.results.report.builder import Builder, ReportContext
from mgdm_ray.storage.records import Record

DATASETS = ("phantom-ultrasound", "phantom-xray", "phantom-fundus")
ARMS = ("duplicate", "generate", "roundtrip", "disturb")
NETWORKS = {"narrow": 24, "middle": 48, "wide": 96}
"""Hidden features."""
SEEDS, SIZE, POOL, TEST, TRAIN, ADDED = 3, 12, 2000, 200, 60, 60
Array = NDArray[np.float64]
Shared = Literal["", "arm", "seed"]
"""Whose cells share added images: none, those of an arm, those of an arm and seed."""


def pool(name: str) -> tuple[Array, NDArray[np.int64]]:
    """Phantoms that stand for the population: pixels `[POOL, SIZE * SIZE * C]` and labels."""
    config = PhantomConfig(train=POOL, val=10, test=10)
    images, labels = draw_split(name, config, SIZE, "train")
    return images.reshape(len(images), -1) / 255 - 0.5, labels


def probabilities(
    train: tuple[Array, NDArray[np.int64]], test: Array, width: int, seed: int
) -> Array:
    """Scores of a network with ``width`` random features, fitted by ridge regression."""
    images, labels = train
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1 / np.sqrt(images.shape[1]), (images.shape[1], width))
    bias = rng.normal(0, 0.3, width)
    known, new = (np.maximum(x @ hidden + bias, 0) for x in (images, test))
    target = np.eye(labels.max() + 1)[labels] - 0.5
    weights = np.linalg.solve(known.T @ known + 0.1 * np.eye(width), known.T @ target)
    scores: Array = np.clip(new @ weights + 0.5, 0.01, 0.99)
    return scores


def study(
    rng: np.random.Generator,
    pools: dict[str, tuple[Array, NDArray[np.int64]]],
    folder: Path,
    shared: Shared,
) -> list[Record]:
    """Cells of one repetition, with their predictions in ``folder``."""
    records = []
    for dataset, (images, labels) in pools.items():
        order = rng.permutation(len(images))
        test, train, left = order[:TEST], order[TEST : TEST + TRAIN], order[TEST + TRAIN :]
        drawn = {
            (arm, seed): rng.choice(left, ADDED, replace=False)
            for arm in ARMS
            for seed in (range(SEEDS) if shared == "seed" else [0] if shared == "arm" else [])
        }
        for (network, width), seed in ((n, s) for n in NETWORKS.items() for s in range(SEEDS)):
            first = int(rng.integers(2**31))  # arms of a cell start alike
            for arm in ARMS:
                added = drawn.get((arm, seed if shared == "seed" else 0))
                added = rng.choice(left, ADDED, replace=False) if added is None else added
                rows = np.concatenate([train, added])
                scores = probabilities((images[rows], labels[rows]), images[test], width, first)
                value = float(balanced_accuracy_score(labels[test], scores.argmax(axis=1)))
                record = Record(
                    key=f"{dataset}-{network}-{arm}-{seed}", kind="fit_downstream", status="done",
                    dataset=dataset, network=network, arm=arm, seed=seed, split="test",
                    metrics={"balanced_accuracy": value},
                )  # fmt: skip
                (folder / record.key).mkdir(exist_ok=True)
                save_file(
                    {"probabilities": np.ascontiguousarray(scores), "labels": labels[test]},
                    folder / record.key / PREDICTIONS,
                )
                records.append(record)
    return records


def verdicts(repetitions: int, shared: Shared = "", seed: int = 0) -> Counter[str]:
    """How many repetitions say each verdict: that of the headline, and ``any`` of three."""
    rng = np.random.default_rng(seed)
    pools = {name: pool(name) for name in DATASETS}
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(repetitions):
            records = study(rng, pools, folder, shared)
            context = ReportContext(
                study_name="null", config_yaml="", command="", started="", seconds=0.0,
                artefact=lambda record: folder / record.key,
                draws="images" if shared == "seed" else "one",
            )  # fmt: skip
            report = Builder(folder / "report", records, context)
            found[report.primary[0].verdict] += 1
            found["any"] += any(contrast.direction for contrast in report.primary)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=300)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--one-draw", action="store_const", dest="shared", const="arm", default="")
    group.add_argument("--draws", action="store_const", dest="shared", const="seed", default="")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = verdicts(options.repetitions, options.shared, options.seed)
    for verdict, count in found.most_common():
        print(f"{verdict:<30}{count:>6}{100 * count / options.repetitions:>8.1f} %")
    print(json.dumps({"repetitions": options.repetitions, "shared": options.shared, **found}))


if __name__ == "__main__":
    main()
