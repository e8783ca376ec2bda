"""Contrasts over a complete grid of cells."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from mgdm_ray.evaluation.stats.images import ImageContrast
from mgdm_ray.evaluation.stats.paired import CellId, Contrast, holm, paired_contrast

Pair = tuple[str, str]
PRIMARY = (("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "roundtrip"))
"""The primary contrasts: one Holm family."""
NAN = math.nan
NOTHING = Contrast(NAN, NAN, NAN, NAN, 0, 0, 0, NAN, 0, "no common cells")


def contrast_table(
    cells: Mapping[CellId, float],
    pairs: Sequence[Pair],
    expected: Iterable[CellId] = (),
    origins: Mapping[str, str] | None = None,
    reasons: Mapping[CellId, str] | None = None,
    over_images: Callable[[Pair], ImageContrast | None] = lambda pair: None,  # noqa: ARG005
    n_boot: int = 10_000,
) -> list[Contrast]:
    """Contrast each pair of arms (arm_a - arm_b), in the order of ``pairs``: one Holm family.

    The grid is that of the ``expected`` (planned) cells of any arm, else all combinations that
    occur. Numbers cover the cells that both arms have, ``missing`` names the others and ``note``
    their ``reasons``; a pair that lacks some is not tested, but counts in the family. No common
    cells: ``n == 0``. ``origins`` maps a variant to its dataset: variants are one cluster.
    ``over_images`` gives a pair's contrast over cells and test images. ``p_datasets`` is adjusted
    (Holm) over the pairs, as ``p_adjusted`` is.
    """
    there = {(d, n, s) for d, n, _, s in cells}
    every = itertools.product(*map(set, zip(*there, strict=True))) if there else ()
    # Sorted: the interval must not depend on the order of the cells.
    grid = sorted({(d, n, s) for d, n, _, s in expected} or every)
    found = []
    for pair in pairs:
        lost = [(d, n, a, s) for a in sorted(pair) for d, n, s in grid if (d, n, a, s) not in cells]
        common = [(d, n, s) for d, n, s in grid if not {(d, n, a, s) for a in pair} - cells.keys()]
        a, b = ([cells[d, n, arm, s] for d, n, s in common] for arm in pair)
        clusters = [(origins or {}).get(dataset, dataset) for dataset, _, _ in common]
        contrast = NOTHING
        if common:
            contrast = paired_contrast(a, b, clusters, n_boot=n_boot, family=len(pairs))
        why = Counter((reasons or {}).get(cell, "not run") for cell in lost).most_common(3)
        causes = "; ".join(f"{cause} ({count})" for cause, count in why)
        notes = [contrast.note, f"missing because: {causes}" if lost else ""]
        found.append(
            replace(
                contrast, arm_a=pair[0], arm_b=pair[1], note="; ".join(filter(None, notes)),
                missing=tuple(lost), planned=len(grid), here=over_images(pair),
            )
        )  # fmt: skip
    adjusted = holm([NAN if c.missing else c.p_tested for c in found])
    # Claims beyond these datasets are a family too.
    general = holm([NAN if c.missing else c.p_datasets for c in found])
    return [
        replace(c, p_adjusted=p, p_datasets=c.p_datasets if math.isnan(q) else q)
        for c, p, q in zip(found, adjusted, general, strict=True)
    ]
