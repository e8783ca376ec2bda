"""Contrasts over a grid of cells, refused where cells are missing, and what they say."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mgdm_ray.evaluation.stats.paired import ALPHA, Contrast, holm, paired_contrast

CellKey = tuple[str, str, int]
"""Dataset, network, seed."""
ArmCell = tuple[str, str, str, int]
"""Arm, dataset, network, seed."""
PRIMARY = (("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "roundtrip"))
"""The contrasts that a study is made for: one Holm family."""
SHOWN = 4


class IncompleteGrid(ValueError):
    """Cells that the contrasts need are missing.

    ``missing`` holds them as (arm, dataset, network, seed).
    """

    def __init__(self, missing: Sequence[ArmCell]) -> None:
        self.missing = tuple(missing)
        names = [f"{a}: {d} x {n} x seed {s}" for a, d, n, s in self.missing[:8]]
        more = f" and {len(self.missing) - 8} more" if len(self.missing) > 8 else ""
        super().__init__(
            f"the grid lacks {len(self.missing)} cells: {'; '.join(names)}{more}. Run them, or "
            "pass drop_incomplete=True to compare the cells that both arms have."
        )


def contrast_table(
    rows: Iterable[Mapping[str, Any]],
    pairs: Sequence[tuple[str, str]],
    drop_incomplete: bool = False,
    n_boot: int = 10_000,
    seed: int = 0,
    expected: Iterable[CellKey] = (),
    origins: Mapping[str, str] | None = None,
    reasons: Mapping[ArmCell, str] | None = None,
) -> list[Contrast]:
    """One contrast (arm_a - arm_b) per pair of arms, in the order of ``pairs``.

    ``rows`` have ``dataset``, ``network``, ``seed``, ``arm`` and ``value``; their order does not
    matter. The grid is ``expected``, (dataset, network, seed) of what was planned, else every
    combination of the datasets, networks and seeds that occur in any row. Raises IncompleteGrid if
    an arm of ``pairs`` lacks a cell of it, unless ``drop_incomplete``: then the numbers are those
    of the cells that both arms of a pair have, for orientation, and ``missing`` names the others
    of that pair; ``note`` gives their ``reasons``. A pair without common cells has ``n == 0``.
    ``origins`` names the dataset of which one is a variant: variants are one cluster.
    ``p_datasets`` is adjusted (Holm) over the pairs. Raises ValueError for a cell given twice.
    """
    values = _by_arm(rows)
    keys = [key for cells in values.values() for key in cells]
    every = itertools.product({k[0] for k in keys}, {k[1] for k in keys}, {k[2] for k in keys})
    # Sorted, so that the interval does not depend on the order of the rows.
    grid: list[CellKey] = sorted(set(expected) or set(every))
    arms = sorted({arm for pair in pairs for arm in pair})
    missing = [(arm, *key) for arm in arms for key in grid if key not in values.get(arm, {})]
    if not grid:
        missing = [(arm, "(any)", "(any)", 0) for arm in arms]
    if missing and not drop_incomplete:
        raise IncompleteGrid(missing)
    missing = missing if grid else []  # then nothing is planned that could be missing
    clusters = {name: (origins or {}).get(name, name) for name in (key[0] for key in grid)}
    found = []
    for pair in pairs:
        contrast = _contrast_of(values, pair, grid, clusters, (n_boot, seed, len(pairs)))
        lost = tuple(cell for cell in missing if cell[0] in pair)
        notes = [contrast.note, _why(lost, reasons or {})]
        note = "; ".join(note for note in notes if note)
        found.append(replace(contrast, missing=lost, planned=len(grid), note=note))
    # The boldest claim, beyond these datasets, is one of a family as well.
    general = holm([math.nan if c.missing else c.p_datasets for c in found])
    return [
        contrast if math.isnan(p) else replace(contrast, p_datasets=p)
        for contrast, p in zip(found, general, strict=True)
    ]


def sentence(
    contrast: Contrast, p_adjusted: float | None = None, metric: str = "balanced accuracy"
) -> str:
    """What a contrast says, in plain language; ``p_adjusted`` (Holm) takes the place of its p.

    An arm is called better only if no cell is missing, every interval excludes 0 *and* p <= 0.05;
    and without "on these datasets" only if the permutation over whole datasets agrees.
    """
    a, b = contrast.arm_a, contrast.arm_b
    if contrast.missing:
        return _refusal(contrast, metric)
    if contrast.n == 0:
        return f"{a} against {b}: nothing to compare ({contrast.note or 'no common cells'})."
    p = contrast.p_tested if p_adjusted is None else p_adjusted
    shown = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    if p_adjusted is not None:
        shown = f"adjusted {shown}"
    cells = f"{contrast.n} paired cell{'s' if contrast.n > 1 else ''}"
    if math.isnan(contrast.low):
        return (
            f"{a} against {b} is not resolvable: {contrast.difference:+.3f} {metric} in a single "
            "pair gives no interval."
        )
    interval = f"95% interval {contrast.low:+.3f} to {contrast.high:+.3f}"
    evidence = f"{contrast.difference:+.3f} {metric} ({interval}, {shown}, {cells})"
    if contrast.spans_zero:
        which = "the interval spans 0"
        if contrast.here is not None and (contrast.low > 0 or contrast.high < 0):
            here = contrast.here
            which = "the interval over test images and cells does not exclude 0"
            if not math.isnan(here.low):
                which += f" ({here.low:+.3f} to {here.high:+.3f})"
        return f"{a} against {b} is not resolvable: {which}; {evidence}."
    if p > ALPHA:
        return (
            f"{a} against {b} is not resolvable: the interval excludes 0, but the test does not; "
            f"{evidence}."
        )
    verdict = "better" if contrast.difference > 0 else "worse"
    return (
        f"{' '.join([a, 'is', verdict, 'than', b, contrast.scope]).rstrip()}: {evidence}; "
        f"it wins {contrast.wins}, ties {contrast.ties}, loses {contrast.losses}."
    )


def _refusal(contrast: Contrast, metric: str) -> str:
    a, b, lost = contrast.arm_a, contrast.arm_b, contrast.missing
    cells = "cell" if len(lost) == 1 else "cells"
    text = (
        f"{a} against {b} is not answered: {len(lost)} of the {2 * contrast.planned} planned cells "
        f"{'is' if len(lost) == 1 else 'are'} missing ({_names(lost)}). Run the {cells}, or take "
        "what cannot be run out of the study."
    )
    if contrast.n == 0:
        return text
    pairs = "pair" if contrast.n == 1 else "pairs"
    return (
        f"{text} What is there, for orientation only: {contrast.difference:+.3f} {metric} over "
        f"{contrast.n} complete {pairs}, which may differ from the others in more than luck."
    )


def _by_arm(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[CellKey, float]]:
    values: dict[str, dict[CellKey, float]] = {}
    for row in rows:
        key = (str(row["dataset"]), str(row["network"]), int(row["seed"]))
        cells = values.setdefault(str(row["arm"]), {})
        if key in cells:
            raise ValueError(f"cell given twice: {row['arm']}, {' x '.join(map(str, key))}")
        cells[key] = float(row["value"])
    return values


def _contrast_of(
    values: Mapping[str, Mapping[CellKey, float]],
    pair: tuple[str, str],
    grid: Sequence[CellKey],
    clusters: Mapping[str, str],
    options: tuple[int, int, int],
) -> Contrast:
    """Over the cells that both arms have."""
    a, b = (values.get(arm, {}) for arm in pair)
    common = [key for key in grid if key in a and key in b]
    if not common:
        nan = math.nan
        return Contrast(nan, nan, nan, nan, 0, 0, 0, nan, 0, "no common cells", *pair)
    n_boot, seed, family = options
    contrast = paired_contrast(
        [a[key] for key in common],
        [b[key] for key in common],
        [clusters[key[0]] for key in common],
        n_boot=n_boot,
        seed=seed,
        family=family,
    )
    return replace(contrast, arm_a=pair[0], arm_b=pair[1])


def _why(missing: Sequence[ArmCell], reasons: Mapping[ArmCell, str]) -> str:
    counts = Counter(reasons.get(cell, "not run") for cell in missing)
    if not counts:
        return ""
    return "missing because: " + "; ".join(f"{why} ({n})" for why, n in counts.most_common(3))


def _names(missing: Sequence[ArmCell]) -> str:
    names = [f"{a}: {d} x {n} x seed {s}" for a, d, n, s in missing[:SHOWN]]
    more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return "; ".join(names) + more
