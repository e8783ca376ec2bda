"""What a study could resolve, said by ``--plan`` before anything is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mgdm_ray.config import DatasetConfig, StudyConfig
from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import ALPHA, PRIMARY, Design, detectable
from mgdm_ray.evaluation.stats.power import CELL_SD, COMMON, DISAGREE, POWER

MOST_SEEDS = 20
"""More are not advised: other test images or datasets tell more."""
FEWEST = 6
"""Pairs of finished cells from which their spread is taken instead of the assumed one."""


def resolution(
    config: StudyConfig,
    test_counts: Mapping[str, Sequence[int]],
    manifests: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Lines to print. ``test_counts``: test images per class, by dataset whose data is at hand;
    ``manifests``: of the storage's finished artefacts, whose cells show how much cells vary."""
    pairs = [pair for pair in PRIMARY if set(pair) <= set(config.arms)]
    if not pairs:
        return ["what it can resolve: not said, for it has none of the primary contrasts ("
                + ", ".join(f"{a} against {b}" for a, b in PRIMARY) + ")"]  # fmt: skip
    here = [dataset for dataset in config.datasets if dataset.name in test_counts]
    cells = len(config.networks) * len(config.seeds)
    if not here or cells < 2:
        why = "a single pair of cells per dataset" if here else "no test images at hand yet"
        return [f"what it can resolve: not known, with {why}"]
    measured = spread(manifests, pairs)
    designs = _designs(here, test_counts, measured, cells)
    alone = ", ".join(f"{name} {detectable([design]):.3f}" for name, design in designs.items())
    together = detectable(_together(here, designs), tests=len(pairs))
    origins = len({d.origin for d in config.datasets})
    count = f"{len(pairs)} primary contrast{'s' if len(pairs) > 1 else ''}"
    lines = [
        f"what it can resolve in {POWER:.0%} of such studies ({count}, {cells} pairs of cells per "
        "dataset): differences in balanced accuracy of",
        f"  {_datasets(here)} {together:.3f}; each alone, not adjusted: {alone}",
    ]
    lines += _limits(len(pairs), cells * len(here), origins)
    return [*lines, *_assumed(designs, measured)]


def seeds_to_see(
    difference: float,
    config: StudyConfig,
    test_counts: Mapping[str, Sequence[int]],
    manifests: Iterable[Mapping[str, Any]],
) -> int | None:
    """How many seeds, more than the study has, would show ``difference`` on its datasets.

    In POWER of such studies, as the first of all primary contrasts. None where MOST_SEEDS are too
    few: then the test images limit, which seeds do not add to. Arguments as of ``resolution``.
    """
    pairs = [pair for pair in PRIMARY if set(pair) <= set(config.arms)]
    here = [dataset for dataset in config.datasets if dataset.name in test_counts]
    measured = spread(manifests, pairs)
    for seeds in range(len(config.seeds) + 1, MOST_SEEDS + 1):
        designs = _designs(here, test_counts, measured, len(config.networks) * seeds)
        # nan, of no datasets or a single cell, is never small enough
        if detectable(_together(here, designs), tests=len(pairs)) <= difference:
            return seeds
    return None


def _designs(
    here: Iterable[DatasetConfig],
    test_counts: Mapping[str, Sequence[int]],
    measured: Mapping[str, tuple[float, int]],
    cells: int,
) -> dict[str, Design]:
    return {
        d.name: Design(test_counts[d.name], cells, measured.get(d.name, (None, 0))[0]) for d in here
    }


def spread(
    manifests: Iterable[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[float, int]]:
    """Per dataset the standard deviation over cells of paired differences, and from how many.

    Pairs are cells that differ in nothing but the arm and its images; every contrast has its own
    mean, and those of all contrasts and downstream settings are pooled.
    """
    scores: dict[tuple[str, str], dict[tuple[str, int, str], float]] = {}
    for manifest in manifests:
        record, inputs = manifest.get("record", {}), manifest.get("inputs", {})
        if record.get("kind") != "fit_downstream" or METRIC not in record.get("metrics", {}):
            continue
        alike = json.dumps([inputs.get("dataset"), inputs.get("downstream")], sort_keys=True)
        cells = scores.setdefault((record["dataset"], alike), {})
        cells[record["network"], record["seed"], record["arm"]] = record["metrics"][METRIC]
    squares: dict[str, list[tuple[float, int]]] = {}
    for (dataset, _), cells in scores.items():
        for a, b in pairs:
            values = [
                value - cells[network, seed, b]
                for (network, seed, arm), value in cells.items()
                if arm == a and (network, seed, b) in cells
            ]
            if len(values) > 1:
                square = float(np.var(values, ddof=1)) * (len(values) - 1)
                squares.setdefault(dataset, []).append((square, len(values)))
    found = {}
    for dataset, rows in squares.items():
        number, total = sum(n for _, n in rows), sum(square for square, _ in rows)
        if number >= FEWEST and total > 0:  # networks that all learnt nothing tie, and show nothing
            free = sum(n - 1 for _, n in rows)
            found[dataset] = (math.sqrt(total / free), number)
    return found


def _together(datasets: Sequence[DatasetConfig], designs: Mapping[str, Design]) -> list[Design]:
    """One design per origin: variants share their test images, and add cells only."""
    groups: dict[str, list[Design]] = {}
    for dataset in datasets:
        groups.setdefault(dataset.origin, []).append(designs[dataset.name])
    return [
        Design(
            group[0].test_counts,
            sum(one.cells for one in group),
            math.sqrt(sum(one.cell_sd**2 for one in group) / len(group)),
        )
        for group in groups.values()
    ]


def _datasets(here: Sequence[DatasetConfig]) -> str:
    if len(here) == 1:
        return f"on {here[0].name}"
    return f"on these {len(here)} datasets, if they agree,"


def _limits(family: int, cells: int, origins: int) -> list[str]:
    lines = []
    least = min(1.0, family * 2 / 2**cells)
    if least > ALPHA:
        lines.append(
            f"  but {cells} pairs of cells cannot give a p below {least:.2g}: nothing will be "
            "called better; add seeds or networks"
        )
    needed = math.ceil(math.log2(2 * family / ALPHA))  # 2 of 2^n sign patterns, Holm
    if origins < needed:
        lines.append(
            f"  on datasets in general: nothing, however large; that takes {needed} datasets "
            f"that share no images, and here are {origins}"
        )
    return lines


def _assumed(designs: Mapping[str, Design], measured: Mapping[str, tuple[float, int]]) -> list[str]:
    """Where the numbers come from."""
    known = {name: measured[name] for name in designs if name in measured}
    images = f"{COMMON:.0%} of that alike in all cells"
    assumed = f"networks of two arms differ on {DISAGREE:.0%} of test images, {images}"
    if not known:
        return [f"  assumed: {assumed}; true differences vary by {CELL_SD:g} over cells"]
    shown = ", ".join(f"{name} {sd:.3f} ({n})" for name, (sd, n) in known.items())
    text = f"  measured in this storage: standard deviation over pairs of cells {shown}"
    rest = "" if len(known) == len(designs) else f" and differences vary by {CELL_SD:g} over cells"
    where = "" if len(known) == len(designs) else " elsewhere"
    return [text, f"  assumed{where}: {assumed}{rest}"]
