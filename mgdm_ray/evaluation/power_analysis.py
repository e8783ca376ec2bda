"""The minimum detectable difference of a study, for ``--plan``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mgdm_ray.config import DatasetConfig, Defaults, StudyConfig
from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats.images import Floats
from mgdm_ray.evaluation.stats.paired import ALPHA, PRIMARY, datasets_needed, pooled_variance
from mgdm_ray.evaluation.stats.power import CELL_SD, COMMON, DISAGREE, POWER, Design, detectable

DETECTABLE = "minimum detectable difference in balanced accuracy"
MOST_SEEDS = 20
"""More seeds are not advised: test images or datasets add more."""
FEWEST = 6
"""From this many pairs of finished cells on, their spread replaces the assumed one."""


def resolution(
    config: StudyConfig,
    test_counts: Mapping[str, Sequence[int]],
    manifests: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Lines to print.

    ``test_counts``: test images per class, by dataset whose data is available. ``manifests``: of
    finished artefacts; the spread of their cells replaces the assumed one.
    """
    pairs = [pair for pair in PRIMARY if set(pair) <= set(config.arms)]
    if not pairs:
        names = ", ".join(f"{a} against {b}" for a, b in PRIMARY)
        return [f"{DETECTABLE}: undefined, no primary contrast in this study ({names})"]
    here = [dataset for dataset in config.datasets if dataset.name in test_counts]
    cells = len(config.networks) * len(config.seeds)
    if not here or cells < 2:
        why = "one pair of cells per dataset" if here else "no test images on this machine yet"
        return [f"{DETECTABLE}: unknown ({why})"]
    measured = spread(manifests, pairs)
    designs = _designs(here, test_counts, measured, cells)
    alone = ", ".join(f"{name} {detectable([design]):.3f}" for name, design in designs.items())
    together = detectable(_together(here, designs), tests=len(pairs))
    origins = len({d.origin for d in config.datasets})
    count = f"{len(pairs)} primary contrast{'s' if len(pairs) > 1 else ''}"
    several = f"all {len(here)} datasets, if they agree"
    lines = [
        f"{DETECTABLE} at {100 * POWER:.0f} % power ({count}, {cells} pairs of cells per dataset):",
        f"  {several if len(here) > 1 else here[0].name}: {together:.3f}",
        f"  each dataset alone, not adjusted: {alone}",
    ]
    lines += _limits(len(pairs), cells * len(here), origins)
    return [*lines, *_assumed(designs, measured)]


def seeds_to_see(
    difference: float,
    config: StudyConfig,
    test_counts: Mapping[str, Sequence[int]],
    manifests: Iterable[Mapping[str, Any]],
) -> int | None:
    """The number of seeds, above the study's, that would detect ``difference`` on its datasets.

    At power POWER, adjusted for all primary contrasts; None if MOST_SEEDS are too few, because the
    test images limit. Other arguments as in ``resolution``.
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
    """Standard deviation of paired differences over cells, and the number of pairs, per dataset.

    Pairs differ only in the arm and its images. Contrasts and downstream settings are pooled, each
    with its own mean.
    """
    scores: dict[tuple[str, str], dict[tuple[str, int, str], float]] = {}
    for manifest in manifests:
        record, inputs = manifest.get("record", {}), manifest.get("inputs", {})
        if record.get("kind") != "fit_downstream" or METRIC not in record.get("metrics", {}):
            continue
        trained = inputs.get("downstream")
        if isinstance(trained, dict):  # one study trains its networks by recipes of their own
            trained = {name: trained[name] for name in trained if name not in Defaults._fields}
        alike = json.dumps([inputs.get("dataset"), trained], sort_keys=True)
        cells = scores.setdefault((record["dataset"], alike), {})
        cells[record["network"], record["seed"], record["arm"]] = record["metrics"][METRIC]
    groups: dict[str, list[Floats]] = {}
    for (dataset, _), cells in scores.items():
        for a, b in pairs:
            values = [
                value - cells[network, seed, b]
                for (network, seed, arm), value in cells.items()
                if arm == a and (network, seed, b) in cells
            ]
            if len(values) > 1:
                groups.setdefault(dataset, []).append(np.array(values))
    found = {name: (math.sqrt(pooled_variance(g)), sum(map(len, g))) for name, g in groups.items()}
    # 0: all networks at chance
    return {name: (sd, n) for name, (sd, n) in found.items() if n >= FEWEST and sd > 0}


def _together(datasets: Sequence[DatasetConfig], designs: Mapping[str, Design]) -> list[Design]:
    """One design per origin: variants share test images and only add cells."""
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


def _limits(family: int, cells: int, origins: int) -> list[str]:
    lines = []
    least = min(1.0, family * 2 / 2**cells)
    if least > ALPHA:
        lines.append(
            f"  {cells} pairs of cells cannot reach p < {least:.2g}: add seeds or networks, "
            "else no arm can be called better"
        )
    needed = datasets_needed(family)
    if origins < needed:
        lines.append(
            f"  generalising to other datasets needs at least {needed} independent ones "
            f"(this study has {origins})"
        )
    return lines


def _assumed(designs: Mapping[str, Design], measured: Mapping[str, tuple[float, int]]) -> list[str]:
    """The measured and the assumed variances."""
    known = {name: measured[name] for name in designs if name in measured}
    lines = []
    assumed = (
        f"two arms disagree on {100 * DISAGREE:.0f} % of test images, "
        f"{100 * COMMON:.0f} % of that variance shared by all cells"
    )
    if known:
        shown = ", ".join(f"{name} {sd:.3f} ({n} pairs)" for name, (sd, n) in known.items())
        lines.append(f"  measured standard deviation over cells: {shown}")
    if len(known) < len(designs):
        assumed += f"; standard deviation over cells{' elsewhere' if known else ''} {CELL_SD:g}"
    return [*lines, f"  assumed: {assumed}"]
