"""Coverage of every interval and false rate of every verdict of a report, on studies with a known
truth.

Simulated predictions with the spread of docs/results/grid-cpu go through the functions that a
report uses. Networks are right on an image where a normal score exceeds a threshold: the score is
the sum of what image, cell and arm share, so the true difference of every dataset is known.

    python -m benchmarks.statistics [--studies 2000] [--datasets 1 2 3 4 8] [--cells 6 3]
    python -m benchmarks.statistics --grouped
    python -m benchmarks.statistics --draws 0 0.01 0.019 [--one-draw]

With ``--draws`` every seed has a draw of synthetic images, which all its networks share and whose
true difference varies by that standard deviation; a table each. Truth is the mean over draws. With
``--one-draw`` all seeds share one draw, as in studies with ``draws: one``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mgdm_ray.evaluation.stats.images import PairedPredictions, image_contrast
from mgdm_ray.evaluation.stats.intervals import Claim, Floats, Interval, claims, over_datasets
from mgdm_ray.evaluation.stats.paired import GENERAL, Contrast

RAW = argparse.RawDescriptionHelpFormatter
CLASSES = ((42, 114), (174, 46, 92, 68, 20), (234, 390), (23, 66, 103, 29, 220, 223, 1341))
"""Test images per class: breastmnist, retinamnist, pneumoniamnist, ham10000. Classes
are cut to CUT images."""
CUT = 80
CELL_SD = (0.05, 0.02, 0.07, 0.03)
"""Standard deviation of a cell's true difference over seeds, by dataset."""
NETWORK_SD = 0.01
"""Of a network's own effect on a dataset."""
BETWEEN = 0.015
"""Of the true difference over datasets."""
LEVELS = (0.55, 0.35, 0.7, 0.35)
"""Share of images that are right."""
IMAGE, ARM_IMAGE = 0.85, 0.005
"""Variance of the score that both arms' networks share image by image, and that an arm's cells
share; the rest belongs to cell, arm and image."""
GROUPED_IMAGE = 0.03
"""The latter where test images are grouped: test images then make up two thirds of the variance."""
SAME_PATIENT = 0.7
"""Correlation of scores between two images of a patient."""
NETWORKS, SEEDS, MARGIN = 6, 3, 0.02
Grouping = Literal["", "four per patient", "1 to 12 per patient", "every image twice"]
Counts = Counter[str]
Images = NDArray[np.float32]


@dataclass(frozen=True)
class World:
    """What is true of a simulated study: mean differences over datasets in general by contrast,
    their standard deviation over datasets, that of a network's own effect on a dataset, and what
    test images belong together."""

    effects: tuple[float, ...] = (0.0, 0.0, 0.0)
    between: float = 0.0
    networks: float = 0.0
    grouping: Grouping = ""


@dataclass(frozen=True)
class Drawn:
    """Standard deviation of the true difference over draws, and whether each seed has its own."""

    sd: float
    each: bool = True


SPREAD = World(between=BETWEEN, networks=NETWORK_SD)
NULL = World()
"""No arm differs from another on any dataset."""
AT_MARGIN = World((MARGIN, -MARGIN, MARGIN))
AT_MARGIN_SPREAD = World((MARGIN, -MARGIN, MARGIN), BETWEEN, NETWORK_SD)
WORLDS = (SPREAD, NULL, AT_MARGIN, AT_MARGIN_SPREAD)
GROUPED = tuple(World(grouping=name) for name in get_args(Grouping) if name)
"""Like NULL, but test images are fewer than they seem."""


@dataclass(frozen=True)
class Study:
    """Predictions `[contrast][dataset]` and the true differences `[datasets, networks, contrasts]`.

    Cells are in the order of networks, then seeds.
    """

    predictions: list[list[PairedPredictions]]
    truth: Floats

    @property
    def cells(self) -> list[list[Floats]]:
        """Differences in balanced accuracy of the cells, by contrast and dataset."""
        return [[one.cells() for one in groups] for groups in self.predictions]


def draw(
    rng: np.random.Generator,
    datasets: int,
    world: World,
    cells: tuple[int, int],
    drawn: Drawn | None = None,
) -> Study:
    """A study of ``cells`` = (networks, seeds); all contrasts share their first arm."""
    from scipy.special import ndtr, ndtri

    networks, seeds = cells
    n, contrasts = networks * seeds, len(world.effects)
    found: list[list[PairedPredictions]] = [[] for _ in world.effects]
    own = np.array(world.effects) + rng.normal(0, world.between, (datasets, 1, contrasts))
    truth: Floats = own + rng.normal(0, world.networks, (datasets, networks, contrasts))
    effects, draws = np.zeros((datasets, contrasts + 1, n)), None
    if drawn:  # each arm's images have an effect of their own
        images = rng.normal(0, drawn.sd / math.sqrt(2), (datasets, contrasts + 1, seeds))
        effects += np.tile(images if drawn.each else images[..., :1].repeat(seeds, -1), networks)
        draws = np.tile(np.arange(seeds), networks) if drawn.each else None
    for place in range(datasets):
        kind = place % len(CLASSES)
        counts = [min(count, CUT) for count in CLASSES[kind]]
        labels = np.repeat(np.arange(len(counts)), counts)
        score = Scores.of(rng, labels, world.grouping)
        z = float(ndtri(LEVELS[kind]))
        seed_sd = CELL_SD[kind] * math.sqrt(math.pi) * math.exp(z * z / 2)  # over phi(z) sqrt(2)
        wide = math.sqrt(1 + seed_sd**2)
        base = score.draw(IMAGE) + score.draw((1 - IMAGE) / 2, n)
        first = _arm(score, base, seed_sd, -ndtri(ndtr(z) + effects[place, -1]) * wide)
        for index in range(contrasts):
            # Where the second arm is right on a share that is smaller by the true difference.
            less = np.repeat(truth[place, :, index], seeds) + effects[place, index]
            other = _arm(score, base, seed_sd, -ndtri(ndtr(z) - less) * wide)
            found[index].append(PairedPredictions(first - other, labels, score.groups, draws))
    return Study(found, truth)


@dataclass(frozen=True)
class Scores:
    """Draws normal scores of test images; those of a group are alike."""

    rng: np.random.Generator
    groups: NDArray[np.int64]
    """`[images]`"""
    alike: float
    """Correlation within a group."""
    common: float
    """Variance of the score that an arm's cells share image by image."""

    @staticmethod
    def of(rng: np.random.Generator, labels: NDArray[np.int64], grouping: Grouping) -> Scores:
        n = len(labels)
        if grouping == "1 to 12 per patient":  # in any class
            sizes = rng.integers(1, 13, n)
            groups = rng.permutation(np.repeat(np.arange(n), sizes)[:n])
        else:
            size = {"": 1, "four per patient": 4, "every image twice": 2}[grouping]
            starts = np.searchsorted(labels, labels)  # images of a class are consecutive
            groups = n * labels + (np.arange(n) - starts) // size
            groups = np.unique(groups, return_inverse=True)[1]
        alike = {"": 0.0, "every image twice": 1.0}.get(grouping, SAME_PATIENT)
        return Scores(rng, groups, alike, GROUPED_IMAGE if grouping else ARM_IMAGE)

    def draw(self, variance: float, cells: int = 1) -> Images:
        """`[cells, images]`"""
        own = self.rng.standard_normal((cells, len(self.groups)), np.float32)
        if not self.alike:
            return math.sqrt(variance) * own
        shared = self.rng.standard_normal((cells, self.groups.max() + 1), np.float32)
        both = math.sqrt(self.alike) * shared[:, self.groups] + math.sqrt(1 - self.alike) * own
        return math.sqrt(variance) * both


def _arm(score: Scores, base: Images, seed_sd: float, threshold: Floats) -> Floats:
    """Whether an arm's networks are right; ``base`` `[cells, images]` is what arms share."""
    common = score.draw(score.common)
    alone = score.draw((1 - IMAGE) / 2 - score.common, len(base))
    limit = (seed_sd * score.rng.standard_normal(len(base)) + threshold).astype(np.float32)
    return (base + common + alone > limit[:, None]).astype(float)


def contrasts_of(study: Study) -> list[Contrast]:
    """One family, as ``contrast_table`` makes it."""
    here = claims([image_contrast(groups) for groups in study.predictions])
    general = claims([over_datasets(groups) for groups in study.cells])
    return [
        Contrast(0.0, 0, 0, 0, math.nan, 1, here=one, general=two, margin=MARGIN)
        for one, two in zip(here, general, strict=True)
    ]


def observe(study: Study, world: World, cells: tuple[int, int], counts: Counts) -> None:
    """Count what the report says of a study, and how often it is wrong."""
    found = contrasts_of(study)
    here = study.truth.mean(axis=(0, 1))
    spread = world.between > 0
    if world in (SPREAD, NULL):
        name = "" if spread else ", null"
        for index, contrast in enumerate(found):
            _cover(counts, f"here{name}", contrast.here, here[index])
            if spread:
                _cover(counts, "general", contrast.general, world.effects[index])
    if world == SPREAD:
        _by_part(study, cells, counts)
        _false(counts, "better", any(c.direction and not c.is_local for c in found))
    if world == NULL:
        _false(counts, "better here", any(c.direction for c in found))
    if world.grouping:
        apart = [
            image_contrast([PairedPredictions(one.difference, one.labels) for one in groups])
            for groups in study.predictions
        ]
        for contrast, blind in zip(found, apart, strict=True):
            _cover(counts, f"here, {world.grouping}", contrast.here, 0.0)
            _cover(counts, f"here, {world.grouping}, by image", blind, 0.0)
        _false(counts, f"better here, {world.grouping}", any(c.direction for c in found))
        wrong = any(claim and claim.is_resolved for claim in claims(apart))
        _false(counts, f"better here, {world.grouping}, by image", wrong)
    if world == AT_MARGIN:
        _false(counts, "no larger here", any(c.equivalence for c in found))
    if world == AT_MARGIN_SPREAD:
        _false(counts, "no larger", any(c.equivalence.endswith(GENERAL) for c in found))


def _by_part(study: Study, cells: tuple[int, int], counts: Counts) -> None:
    """Intervals of single datasets, and of single networks over all datasets."""
    networks, seeds = cells
    for place, one in enumerate(study.predictions[0]):
        _cover(counts, "one dataset", image_contrast([one]), study.truth[place, :, 0].mean())
    for network in range(min(networks, 2)):
        rows = slice(network * seeds, (network + 1) * seeds)
        mine = [
            replace(
                g, difference=g.difference[rows], draws=None if g.draws is None else g.draws[rows]
            )
            for g in study.predictions[0]
        ]
        _cover(counts, "one network", image_contrast(mine), study.truth[:, network, 0].mean())


def _cover(counts: Counts, name: str, found: Claim | Interval | None, truth: float) -> None:
    one = found.estimate if isinstance(found, Claim) else found
    if one is None:
        return
    counts[f"covered: {name}"] += 1 if one.low <= truth <= one.high else 0
    counts[f"of: covered: {name}"] += 1


def _false(counts: Counts, name: str, said: bool) -> None:
    counts[f"false: {name}"] += int(said)
    counts[f"of: false: {name}"] += 1


def simulate(
    studies: int,
    datasets: int,
    cells: tuple[int, int] = (NETWORKS, SEEDS),
    seed: int = 0,
    worlds: tuple[World, ...] = WORLDS,
    drawn: Drawn | None = None,
) -> dict[str, float]:
    """Shares by name: ``covered: here``, ``false: better`` and so on; see ``observe``.

    ``false`` is that of any of three contrasts.
    """
    rng = np.random.default_rng([seed, datasets, *cells])
    counts: Counts = Counter()
    for _ in range(studies):
        for world in worlds:
            observe(draw(rng, datasets, world, cells, drawn), world, cells, counts)
    return {
        name: counts[name] / total
        for key, total in counts.items()
        if key.startswith("of: ") and (name := key.removeprefix("of: "))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--datasets", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--cells", type=int, nargs=2, default=(NETWORKS, SEEDS),
                        help="networks and seeds")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grouped", action="store_true",
                        help="several test images per patient, and duplicated ones")  # fmt: skip
    parser.add_argument("--draws", type=float, nargs="+", metavar="SD", default=[None])
    parser.add_argument("--one-draw", action="store_true", help="shared by all seeds")
    options = parser.parse_args()
    for sd in options.draws:
        table(options, None if sd is None else Drawn(sd, not options.one_draw))


def table(options: argparse.Namespace, drawn: Drawn | None) -> None:
    worlds = GROUPED if options.grouped else WORLDS
    rows: dict[int, dict[str, float]] = {}
    cells = tuple(options.cells)
    print(drawn or "no draws")
    for datasets in options.datasets:
        started = time.perf_counter()
        rows[datasets] = simulate(options.studies, datasets, cells, options.seed, worlds, drawn)
        print(f"{datasets} datasets: {time.perf_counter() - started:.0f} s", flush=True)
    names = sorted({name for row in rows.values() for name in row})
    width = max(map(len, names))
    print(f"\n{'datasets':<{width}}" + "".join(f"{count:>8}" for count in rows))
    for name in names:
        shown = (f"{100 * row[name]:.1f} %" if name in row else "" for row in rows.values())
        print(f"{name:<{width}}" + "".join(f"{text:>8}" for text in shown))
    shown = {"studies": options.studies, "cells": options.cells, "draws": drawn and vars(drawn)}
    print(json.dumps({**shown, "shares": rows}))


if __name__ == "__main__":
    main()
