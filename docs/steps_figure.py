"""Draws docs/steps.png and prints its table: python -m docs.steps_figure STORAGE KEY.

STORAGE is that of a finished study and KEY its fit_denoiser artefact. Images come from the same
noise each time; the networks are trained on them alone and tested on real validation images.
"""

from __future__ import annotations

import math
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.metrics import score
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import DatasetConfig, SamplingConfig, Training
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source, to_tensor
from mgdm_ray.diffusion.pipeline import Sampler
from mgdm_ray.pipeline.tasks.base import Context
from mgdm_ray.pipeline.tasks.models import load_denoiser
from mgdm_ray.storage.store import Store

STEPS = (3, 5, 8, 15, 25, 50)
SOLVERS = ("ddim", "second_order")
COMPARED, TRAINED_ON = 64, 192
NETWORKS, SEEDS = ("googlenet", "resnet18"), (0, 1)
CONFIG = Training(steps=40, batch_size=32)


class Bench:
    def __init__(self, storage: str, key: str) -> None:
        inputs = Store(storage).manifest("fit_denoiser", key)["inputs"]["dataset"]
        fields = DatasetConfig.model_fields
        given = {k: v for k, v in inputs.items() if k in fields}
        self.dataset = DatasetConfig.model_validate(given)
        self.info = dataset_info(self.dataset, None)
        self.denoiser = load_denoiser(Context(storage, storage, {}), key)
        self.labels = np.arange(TRAINED_ON) % self.info.num_classes
        self.val = data_source(self.dataset).load("val")

    def images(self, count: int, steps: int, solver: str, precision: str) -> torch.Tensor:
        config = SamplingConfig.model_validate(
            {
                "num_inference_steps": steps,
                "solver": solver,
                "guidance_scale": 1.0,
                "precision": precision,
            }
        )
        sampler = Sampler(self.denoiser, None, config)
        return sampler.generate(torch.from_numpy(self.labels[:count]), range(count))

    def accuracy(self, images: torch.Tensor) -> list[float]:
        """Balanced, on real validation images, of each network and seed trained on ``images``."""
        found = []
        for network_name, seed in product(NETWORKS, SEEDS):
            parts = ("steps", network_name, seed)
            size, classes = images.shape[-1], self.info.num_classes
            network = build_network(network_name, classes, self.info.channels, size, *parts)
            labels, recipe = torch.from_numpy(self.labels), Recipe(CONFIG, classes, parts)
            result = fit(network, images, labels, recipe, {"val": to_tensor(self.val.images)})
            scores = score(result.probabilities["val"], self.val.labels, self.info.task)
            found.append(scores["balanced_accuracy"])
        return found


def main() -> None:
    bench, started = Bench(sys.argv[1], sys.argv[2]), time.monotonic()
    exact = bench.images(COMPARED, 250, "second_order", "float32")
    rows: dict[tuple[str, str], list[tuple[int, float, float, float]]] = {}
    wanted = [(solver, steps, "float32") for solver, steps in product(SOLVERS, STEPS)]
    wanted.append(("second_order", 15, "bfloat16"))
    at_15: list[torch.Tensor] = []
    for solver, steps, precision in wanted:
        images = bench.images(TRAINED_ON, steps, solver, precision)
        if (solver, steps) == ("second_order", 15):
            at_15.append(images)
        distance = float((images[:COMPARED] - exact).square().mean().sqrt())
        accuracy = bench.accuracy(images)
        row = (steps, distance, float(np.mean(accuracy)), float(np.std(accuracy)))
        rows.setdefault((solver, precision), []).append(row)
        print(
            f"{time.monotonic() - started:6.0f} s  {solver} {precision}: {steps} steps, distance "
            f"{distance:.4f}, accuracy {row[2]:.3f} (sd {row[3]:.3f})",
            file=sys.stderr,
            flush=True,
        )
    mse = float((at_15[0] - at_15[1]).square().mean())  # of a range of 2
    print(f"bfloat16 against float32, 15 steps: PSNR {10 * math.log10(4 / mse):.1f} dB\n")
    print("| solver | precision | forwards | distance to 250 | balanced accuracy | sd |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (solver, precision), found in rows.items():
        for steps, distance, accuracy, spread in found:
            print(
                f"| `{solver}` | {precision} | {steps} | {distance:.4f} | {accuracy:.3f} "
                f"| {spread:.3f} |"
            )
    draw(rows, bench.dataset.name)


def draw(rows: dict[tuple[str, str], list[tuple[int, float, float, float]]], name: str) -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for solver, mark in zip(SOLVERS, "os", strict=True):
        found = rows[(solver, "float32")]
        steps = [row[0] for row in found]
        left.plot(steps, [row[1] for row in found], marker=mark, label=solver)
        right.errorbar(
            steps,
            [row[2] for row in found],
            [row[3] for row in found],
            marker=mark,
            capsize=3,
            label=solver,
        )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="forwards",
        ylabel="rms distance to 250 steps",
        title=name,
    )
    right.set(
        xscale="log",
        xlabel="forwards",
        ylabel="balanced accuracy",
        title="networks trained on these images alone",
    )
    for axes in (left, right):
        axes.set_xticks(STEPS, [str(step) for step in STEPS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(Path(__file__).with_name("steps.png"), dpi=120)


if __name__ == "__main__":
    main()
