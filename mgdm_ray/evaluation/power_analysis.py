"""The minimum detectable difference of a study, for ``--plan``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mgdm_ray.config import DatasetConfig, Defaults, StudyConfig
from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats.intervals import Floats
from mgdm_ray.evaluation.stats.paired import PRIMARY, pooled_variance
from mgdm_ray.evaluation.stats.power import (
    BETWEEN,
    CELL_SD,
    COMMON,
    DISAGREE,
    DRAW_SD,
    POWER,
    Design,
    detectable,
    detectable_in_general,
)

DETECTABLE = "minimum detectable difference in balanced accuracy"
MOST_SEEDS = 20
"""More seeds are not advised: test images or datasets add more."""
FEWEST_DATASETS = 3
"""From this many datasets on, their measured spread replaces the assumed one."""
FEWEST = 6
"""From this many pairs of finished cells on, their spread replaces the assumed one."""


def resolution(
    config: StudyConfig,
    test_counts: Mapping[str, Sequence[int]],
    manifests: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Lines to print.

    ``test_counts``: patients (test images where unknown) per class, by dataset at hand.
    ``manifests``: of finished artefacts; the spread of their cells replaces the assumed one.
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
    manifests = list(manifests)
    measured = spread(manifests, pairs)
    designs = _designs(here, test_counts, measured, config)
    alone = ", ".join(f"{name} {detectable([design]):.3f}" for name, design in designs.items())
    together = _together(here, designs)
    count = f"{len(pairs)} primary contrast{'s' if len(pairs) > 1 else ''}"
    which = f"these {len(here)} datasets" if len(here) > 1 else here[0].name
    lines = [
        f"{DETECTABLE} at {100 * POWER:.0f} % power ({count}, {cells} pairs of cells per dataset):",
        f"  on {which}: {detectable(together, tests=len(pairs)):.3f}",
        _in_general(together, between(manifests, pairs, config.datasets), len(pairs)),
        f"  each dataset alone, not adjusted: {alone}",
    ]
    return [*lines, *_assumed(designs, measured)]


def _in_general(designs: Sequence[Design], known: tuple[float, int] | None, tests: int) -> str:
    if len(designs) < 2:
        return (
            f"  in general: needs at least 2 independent datasets (this study has {len(designs)})"
        )
    sd, origin = BETWEEN, "assumed"
    if known:
        sd, origin = known[0], f"measured on {known[1]} datasets"
    found = detectable_in_general(designs, sd, tests)
    shown = f"{found:.3f}" if found < 1 else "none below 1; add datasets"
    return (
        f"  in general: {shown} (the true difference varies over datasets with a standard "
        f"deviation of {sd:.3f}, {origin})"
    )


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
        more = config.model_copy(update={"seeds": tuple(range(seeds))})
        designs = _designs(here, test_counts, measured, more)
        # nan, of no datasets or a single cell, is never small enough
        if detectable(_together(here, designs), tests=len(pairs)) <= difference:
            return seeds
    return None


def _designs(
    here: Iterable[DatasetConfig],
    test_counts: Mapping[str, Sequence[int]],
    measured: Mapping[str, tuple[float, int]],
    config: StudyConfig,
) -> dict[str, Design]:
    seeds = len(config.seeds)
    draws = seeds if seeds > 1 and config.draws != "one" else 0
    sds = {d.name: measured.get(d.name, (None, 0))[0] for d in here}
    cells = len(config.networks) * seeds
    return {name: Design(test_counts[name], cells, sd, draws) for name, sd in sds.items()}


def spread(
    manifests: Iterable[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> dict[str, tuple[float, int]]:
    """Standard deviation of paired differences over cells, and the number of pairs, per dataset.

    Pairs differ only in the arm and its images. Contrasts and downstream settings are pooled, each
    with its own mean.
    """
    groups: dict[str, list[Floats]] = {}
    for (dataset, _, _, _), values in _differences(manifests, pairs).items():
        groups.setdefault(dataset, []).append(values)
    found = {name: (math.sqrt(pooled_variance(g)), sum(map(len, g))) for name, g in groups.items()}
    # 0: all networks at chance
    return {name: (sd, n) for name, (sd, n) in found.items() if n >= FEWEST and sd > 0}


def between(
    manifests: Iterable[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
    datasets: Iterable[DatasetConfig] = (),
) -> tuple[float, int] | None:
    """Standard deviation of the true difference over datasets, and their number.

    That of dataset means without what their cells add, pooled over contrasts. None below
    FEWEST_DATASETS; variants of one of ``datasets`` count once.
    """
    origins = {dataset.name: dataset.origin for dataset in datasets}
    groups: dict[tuple[str, str], dict[str, Floats]] = {}
    for (dataset, _, setting, pair), values in _differences(manifests, pairs).items():
        groups.setdefault((setting, pair), {})[origins.get(dataset, dataset)] = values
    wide = [list(group.values()) for group in groups.values() if len(group) >= FEWEST_DATASETS]
    if not wide:
        return None
    variances = [
        np.var([values.mean() for values in group], ddof=1)
        - np.mean([values.var(ddof=1) / len(values) for values in group])
        for group in wide
    ]
    return math.sqrt(max(0.0, float(np.mean(variances)))), min(map(len, wide))


def _differences(
    manifests: Iterable[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[str, str, str, str], Floats]:
    """Paired differences by dataset, its settings, those of the networks, and contrast; of at
    least two cells."""
    scores: dict[tuple[str, str, str], dict[tuple[str, int, str], float]] = {}
    for manifest in manifests:
        record, inputs = manifest.get("record", {}), manifest.get("inputs", {})
        if record.get("kind") != "fit_downstream" or METRIC not in record.get("metrics", {}):
            continue
        trained = inputs.get("downstream")
        if isinstance(trained, dict):  # one study trains its networks by recipes of their own
            trained = {name: trained[name] for name in trained if name not in Defaults._fields}
        data, setting = (
            json.dumps(one, sort_keys=True) for one in (inputs.get("dataset"), trained)
        )
        cells = scores.setdefault((record["dataset"], data, setting), {})
        cells[record["network"], record["seed"], record["arm"]] = record["metrics"][METRIC]
    found = {}
    for group, cells in scores.items():
        for a, b in pairs:
            values = [
                value - cells[network, seed, b]
                for (network, seed, arm), value in cells.items()
                if arm == a and (network, seed, b) in cells
            ]
            if len(values) > 1:
                found[*group, f"{a} {b}"] = np.array(values)
    return found


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
            group[0].draws,
        )
        for group in groups.values()
    ]


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
    if any(design.draws for design in designs.values()):
        assumed += f"; standard deviation over draws of synthetic images {DRAW_SD:g}"
    return [*lines, f"  assumed: {assumed}"]
