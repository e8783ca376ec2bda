"""Contrasts over a complete grid of cells, and their verdicts in words."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mgdm_ray.evaluation.stats.paired import ALPHA, Contrast, holm, paired_contrast

CellKey = tuple[str, str, int]
"""Dataset, network, seed."""
ArmCell = tuple[str, str, str, int]
"""Arm, dataset, network, seed."""
Verdict = Literal["better", "worse", "unresolved", "incomplete", "empty"]
PRIMARY = (("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "roundtrip"))
"""The primary contrasts: one Holm family."""
SHOWN = 8
"""Missing cells named in a message."""


class IncompleteGrid(ValueError):
    """Cells that the contrasts need are missing.

    ``missing`` holds them as (arm, dataset, network, seed).
    """

    def __init__(self, missing: Sequence[ArmCell]) -> None:
        self.missing = tuple(missing)
        super().__init__(
            f"the grid lacks {len(self.missing)} cells: {_names(self.missing)}. Run them, or "
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
    """Contrast each pair of arms (arm_a - arm_b), in the order of ``pairs``.

    ``rows`` have ``dataset``, ``network``, ``seed``, ``arm`` and ``value``, in any order. The grid
    is ``expected`` (planned dataset, network, seed), else all combinations that occur. Raises
    IncompleteGrid if an arm lacks a cell, unless ``drop_incomplete``: then numbers cover the common
    cells, ``missing`` names the others and ``note`` their ``reasons``; no common cells: ``n == 0``.
    ``origins`` maps a variant to its dataset: variants are one cluster. ``p_datasets`` is adjusted
    (Holm) over the pairs. Raises ValueError for a duplicate cell.
    """
    values = _by_arm(rows)
    keys = [key for cells in values.values() for key in cells]
    every = itertools.product({k[0] for k in keys}, {k[1] for k in keys}, {k[2] for k in keys})
    # Sorted: the interval must not depend on the order of the rows.
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
    # Claims beyond these datasets are a family too.
    general = holm([math.nan if c.missing else c.p_datasets for c in found])
    return [
        contrast if math.isnan(p) else replace(contrast, p_datasets=p)
        for contrast, p in zip(found, general, strict=True)
    ]


def verdict(contrast: Contrast, p_adjusted: float | None = None) -> Verdict:
    """Return what a contrast shows; ``p_adjusted`` (Holm) replaces its p.

    ``better`` and ``worse`` need a complete grid, every interval excluding 0 and p <= 0.05.
    """
    if contrast.missing or contrast.n == 0:
        return "incomplete" if contrast.missing else "empty"
    p = contrast.p_tested if p_adjusted is None else p_adjusted
    if math.isnan(contrast.low) or contrast.spans_zero or p > ALPHA:
        return "unresolved"
    return "better" if contrast.difference > 0 else "worse"


def sentence(
    contrast: Contrast, p_adjusted: float | None = None, metric: str = "balanced accuracy"
) -> str:
    """Return a contrast's verdict in plain language, with its evidence.

    Without "on these datasets" only if the permutation over whole datasets agrees too.
    """
    a, b, found = contrast.arm_a, contrast.arm_b, verdict(contrast, p_adjusted)
    if found == "incomplete":
        return _refusal(contrast, metric)
    if found == "empty":
        return f"{a} against {b}: nothing to compare ({contrast.note or 'no common cells'})."
    if math.isnan(contrast.low):
        return (
            f"{a} against {b} is not resolvable: {_signed(contrast.difference)} {metric} in a "
            "single pair gives no interval."
        )
    p = contrast.p_tested if p_adjusted is None else p_adjusted
    shown = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    shown = shown if p_adjusted is None else f"adjusted {shown}"
    cells = f"{contrast.n} paired cell{'s' if contrast.n > 1 else ''}"
    interval = f"95 % interval {_signed(contrast.low)} to {_signed(contrast.high)}"
    evidence = f"{_signed(contrast.difference)} {metric} ({interval}, {shown}, {cells})"
    if found == "unresolved":
        return f"{a} against {b} is not resolvable: {_why_unresolved(contrast)}; {evidence}."
    return (
        f"{' '.join([a, 'is', found, 'than', b, contrast.scope]).rstrip()}: {evidence}; "
        f"it wins {contrast.wins}, ties {contrast.ties}, loses {contrast.losses}."
    )


def _why_unresolved(contrast: Contrast) -> str:
    if not contrast.spans_zero:
        return "the interval excludes 0, but the test does not"
    here = contrast.here
    if here is None or not (contrast.low > 0 or contrast.high < 0):
        return "the interval spans 0"
    bounds = "" if math.isnan(here.low) else f" ({_signed(here.low)} to {_signed(here.high)})"
    return f"the interval over test images and cells does not exclude 0{bounds}"


def _signed(value: float) -> str:
    return f"{value:+z.3f}".replace("-", "\N{MINUS SIGN}")


def _refusal(contrast: Contrast, metric: str) -> str:
    a, b, lost = contrast.arm_a, contrast.arm_b, contrast.missing
    cells = "cell" if len(lost) == 1 else "cells"
    text = (
        f"{a} against {b} is not answered: {len(lost)} of the {2 * contrast.planned} planned cells "
        f"{'is' if len(lost) == 1 else 'are'} missing ({_names(lost)}). Run the {cells}, or remove "
        "what cannot run from the study."
    )
    if contrast.n == 0:
        return text
    pairs = "pair" if contrast.n == 1 else "pairs"
    return (
        f"{text} For orientation only: {_signed(contrast.difference)} {metric} over "
        f"{contrast.n} complete {pairs}, which may differ systematically from the missing ones."
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
