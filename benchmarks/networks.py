"""The ten networks in both precisions: python -m benchmarks.networks [--device cuda].

One thread, as a cell has; 28 px, colour, batch 32. Each row is of pairs of runs in turn.
"""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

from benchmarks.measure import arguments, describe, seconds, synchronise
from mgdm_ray.classifiers.fit import Recipe, fit, predict
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import NETWORKS, Training
from mgdm_ray.precision import precision_of

SIZE, BATCH, STEPS, IMAGES = 28, 32, 4, 256
PRECISIONS = ("float32", "bfloat16")
DATA = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(IMAGES) % 5


def training(network: nn.Module, precision: str, device: str) -> float:
    """Seconds of a step, without what comes before and after all steps."""
    marks: list[float] = []

    def mark(step: int, loss: float) -> None:  # noqa: ARG001
        synchronise(device)
        marks.append(time.perf_counter())

    config = Training.model_validate(
        {"steps": STEPS + 1, "batch_size": BATCH, "precision": precision}
    )
    fit(network, DATA, LABELS, Recipe(config, 5, ("benchmark",), device=device), on_step=mark)
    return (marks[-1] - marks[0]) / STEPS


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    describe(options.device)
    print(
        "| network | step, ms: float32 | bfloat16 | ratio | 1000 images, ms: float32 | bfloat16 "
        "| `auto` |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in NETWORKS:
        network = build_network(name, 5, 3, SIZE, "benchmark").to(options.device)
        network = network.to(memory_format=torch.channels_last)
        steps: list[tuple[float, ...]] = []
        looks: list[tuple[float, ...]] = []
        for _ in range(options.repeats):
            steps.append(tuple(training(network, p, options.device) for p in PRECISIONS))
            looks.append(
                tuple(
                    seconds(
                        lambda p=p, n=network: predict(n, DATA, 5, BATCH, options.device, p),
                        options.device,
                    )
                    * (1000 / IMAGES)
                    for p in PRECISIONS
                )
            )
        step = [1000 * median(row[i] for row in steps) for i in (0, 1)]
        look = [1000 * median(row[i] for row in looks) for i in (0, 1)]
        ratio = median(a / b for a, b in steps)
        chosen = precision_of(network, "auto", torch.device(options.device))
        print(
            f"| {name} | {step[0]:.0f} | {step[1]:.0f} | {ratio:.2f} | {look[0]:.0f} | "
            f"{look[1]:.0f} | {chosen} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
