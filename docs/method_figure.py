"""Draws docs/method.png and prints the table of docs/method.md (python -m docs.method_figure)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mgdm_ray.config import GuidanceSetting
from mgdm_ray.diffusion.guidance import MEASUREMENTS, guided
from tests.diffusion.mixture import GRID, SCHEDULE, TWO_CLASSES, distance, quantiles, sampled

LABELS = torch.ones(2000, dtype=torch.int64)
JOINT = TWO_CLASSES.log_joint(GRID, 1.0)
BINS = np.linspace(-4, 5, 91)


def by_classifier(scale: float) -> tuple[Tensor, Tensor]:
    """(log of the tilted density on GRID, quantiles of the guided samples)."""
    eps = guided(
        lambda x, t: TWO_CLASSES.eps(x, t),
        TWO_CLASSES.guide,
        LABELS,
        SCHEDULE,
        classifier_scale=scale,
    )
    return JOINT.logsumexp(dim=1) + scale * JOINT.log_softmax(dim=1)[:, 1], sampled(eps)


def by_classifier_free(scale: float) -> tuple[Tensor, Tensor]:
    def free(x: Tensor, t: int) -> Tensor:
        without, with_label = TWO_CLASSES.eps(x, t), TWO_CLASSES.eps(x, t, 1)
        return without + scale * (with_label - without)

    return by_classifier(scale)[0], sampled(free)


def by_entropy(gamma: float) -> tuple[Tensor, Tensor]:
    setting = GuidanceSetting(measurement="entropy", uncertainty_scale=gamma, gradient="raw")
    eps = guided(
        lambda x, t: TWO_CLASSES.eps(x, t, 1), TWO_CLASSES.guide, LABELS, SCHEDULE, setting=setting
    )
    return JOINT[:, 1] + gamma * _entropy(GRID), sampled(eps)


def _entropy(x: Tensor) -> Tensor:
    return MEASUREMENTS["entropy"](TWO_CLASSES.log_joint(x, 1.0), x, 0, LABELS)


def main() -> None:
    rows = [
        ("classifier guidance", by_classifier, (1.0, 2.0, 4.0)),
        ("classifier-free guidance", by_classifier_free, (1.0, 2.0, 4.0)),
        ("entropy guidance of class 1", by_entropy, (0.5, 1.0, 2.0, 4.0)),
    ]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    print("| guidance | scale | distance to p exp(scale M) | entropy: samples | tilted density |")
    print("| --- | --- | --- | --- | --- |")
    for axes, (name, make, scales) in zip(panels, rows, strict=True):
        axes.set(title=name, xlabel="x", xlim=(-4, 5))
        data = (JOINT.logsumexp(dim=1)).exp().numpy()
        axes.fill_between(GRID.numpy(), data, color="#dddddd", label="data, both classes")
        for colour, scale in zip(
            ("#30638e", "#d1495b", "#edae49", "#3d7d52"), scales, strict=False
        ):
            log_tilted, samples = make(scale)
            target = quantiles(log_tilted)
            density = (log_tilted - log_tilted.max()).exp()
            density /= density.sum() * (GRID[1] - GRID[0])
            axes.plot(GRID, density, "--", color=colour, lw=1)
            axes.hist(
                samples.numpy(),
                BINS,
                density=True,
                histtype="step",
                color=colour,
                label=f"{scale:g}",
            )
            print(
                f"| {name} | {scale:g} | {distance(samples, target):.3f} "
                f"| {float(_entropy(samples).mean()):.3f} | {float(_entropy(target).mean()):.3f} |"
            )
        axes.legend(fontsize=8)
    panels[0].set_ylabel("density (dashed: tilted)")
    panels[0].set_ylim(0, 1.6)
    figure.savefig(Path(__file__).with_name("method.png"), dpi=110)


if __name__ == "__main__":
    main()
