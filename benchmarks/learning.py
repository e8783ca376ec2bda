"""What the networks learn of real images, by recipe: python -m benchmarks.learning --help.

A row per training goes to a log; the same command again continues there. Recipes are chosen by
validation; ``--test`` is for the figures of the chosen ones.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import NETWORKS, DatasetConfig, DownstreamConfig, Training
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SplitName
from mgdm_ray.data.pixels import to_pixels

SHOWN = ("accuracy", "balanced_accuracy", "auroc")


def dataset(name: str, folder: Path) -> DatasetConfig:
    """MedMNIST's, or NAME.npz of the folder."""
    try:
        return DatasetConfig.model_validate({"name": name})
    except ValueError:
        path = str(folder / f"{name}.npz")
        return DatasetConfig.model_validate({"name": name, "path": path})


def row(
    config: DatasetConfig,
    folder: Path,
    network: str,
    given: dict[str, Any],
    seed: int,
    split: SplitName,
) -> dict[str, Any]:
    """What one training gave."""
    info, source = dataset_info(config, folder), data_source(config, str(folder))
    real, judged = source.load("train"), source.load(split)
    inputs = DownstreamConfig.model_validate(given).inputs(network)
    training = Training.of({"downstream": inputs}, network, len(real))
    parts = ("cell", config.name, network, seed)
    model = build_network(network, info.num_classes, info.channels, config.size, *parts)
    recipe = Recipe(training, info.num_classes, parts)
    images, labels = to_pixels(real.images), torch.from_numpy(real.labels)
    started = time.process_time()
    result = fit(model, images, labels, recipe, {split: to_pixels(judged.images)})
    seconds = time.process_time() - started
    found = result.probabilities[split]
    truth = found[np.arange(len(judged)), judged.labels].clip(1e-9)
    scores = score(found, judged.labels, info.task)
    return {
        "learning_rate": training.learning_rate,
        "batch": training.batch_size,
        "steps": training.steps,
        **{name: round(scores[name], 4) for name in SHOWN if name in scores},
        "likelihood": round(float(np.log(truth).mean()), 4),
        "cpu_s": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("learning.jsonl"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MGDM_DATA_DIR", ".")))
    parser.add_argument("--datasets", nargs="+", default=["breastmnist"])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rates", nargs="+", type=float, help="default: the recipe's")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="the test split instead of validation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    split: SplitName = "test" if options.test else "val"
    done = set()
    if options.log.exists():
        done = {json.loads(line)["key"] for line in options.log.read_text().splitlines()}
    trainings = product(
        options.datasets, options.networks, options.rates or [None], range(options.seeds)
    )
    for name, network, rate, seed in trainings:
        key = f"{name} {network} {rate} {options.steps} {seed} {split}"
        if key in done:
            continue
        given = {"steps": options.steps, "learning_rate": rate}
        config = dataset(name, options.data)
        found = {"key": key, **row(config, options.data, network, given, seed, split)}
        with options.log.open("a") as log:
            log.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
