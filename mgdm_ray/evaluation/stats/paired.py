"""Spread and paired contrasts over cells; numpy only.

Two arms are compared on the same cells (dataset x network x seed), and a contrast answers two
questions, each with its own interval and its own family of tests: on these datasets, over their
test images and cells (``images``), and on datasets in general, over the means of whole datasets.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mgdm_ray.evaluation.stats.intervals import (
    Claim,
    Floats,
    Interval,
    claims,
    over_cells,
    over_datasets,
)

CellId = tuple[str, str, str, int]
"""Dataset, network, arm, seed."""
Pair = tuple[str, str]
"""Of arms."""

PRIMARY = (("disturb", "duplicate"), ("disturb", "generate"), ("disturb", "roundtrip"))
"""The primary contrasts: one family for Holm's adjustment."""
HERE, GENERAL = "here", "in general"
TIE = 1e-12
"""Differences up to this size are ties: scores are ratios of small integers."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of ``n`` values; ``sd`` is nan for one value."""

    mean: float
    sd: float
    n: int

    def text(self, digits: int = 3) -> str:
        """``0.812 ± 0.014``; without the spread for a single value."""
        if math.isnan(self.sd):
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Contrast:
    """``arm_a`` minus ``arm_b`` over ``n`` paired cells.

    ``here``: mean over cells, for these datasets; ``general``: mean over dataset means, for
    datasets in general; each None where it cannot be estimated. ``wins``: cells in which ``arm_a``
    is better. ``dz``: mean over standard deviation of the differences, nan if that is 0 or unknown.
    ``rank_biserial``: in [-1, 1]. ``datasets``: those that share no images. ``note``: caveats in
    plain words. ``margin``: the study's, of a difference that does not matter.

    ``missing``: planned cells without a result, as (dataset, network, arm, seed), of ``planned``
    pairs; with any, the numbers cover the rest and are no answer. With ``n == 0`` there are none.
    """

    difference: float
    wins: int
    ties: int
    losses: int
    dz: float
    n: int
    note: str = ""
    arm_a: str = "a"
    arm_b: str = "b"
    datasets: int = 1
    rank_biserial: float = math.nan
    missing: tuple[CellId, ...] = ()
    planned: int = 0
    here: Claim | None = None
    general: Claim | None = None
    margin: float | None = None

    @property
    def pair(self) -> Pair:
        return self.arm_a, self.arm_b

    @property
    def name(self) -> str:
        return f"{self.arm_a} \N{MINUS SIGN} {self.arm_b}"

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, either with `` here``, ``no difference larger than X here`` or
        ``in general``, ``not resolvable``, ``incomplete`` or ``no data``.

        All but the last three need a complete grid. ``better`` holds for datasets in general and,
        if it could be tested, for these; ``here``: for these datasets and images only.
        """
        if self.n == 0 or self.missing:
            return "incomplete" if self.n else "no data"
        if self.direction:
            return self.direction + (" here" if self.is_local else "")
        return self.equivalence or "not resolvable"

    @property
    def direction(self) -> str:
        """``better``, ``worse`` or empty, of a complete contrast."""
        return next((word for word, where in self._directions() if where), "")

    @property
    def is_local(self) -> bool:
        """Whether the direction, if there is one, is known for these datasets only."""
        return all(where != GENERAL for _, where in self._directions())

    @property
    def equivalence(self) -> str:
        """``no difference larger than X``, with where that holds; empty if it does not."""
        where = self._holds(lambda claim: claim.is_within(self.margin))
        return f"no difference larger than {self.margin:g} {where}" if where else ""

    def _directions(self) -> Iterator[tuple[str, str]]:
        """Each direction, and where it holds."""
        yield "better", self._holds(lambda c: c.is_resolved and c.estimate.difference > 0)
        yield "worse", self._holds(lambda c: c.is_resolved and c.estimate.difference < 0)

    def _holds(self, claim: Callable[[Claim], bool]) -> str:
        """Where a claim holds: in general (then here too, if that was tested), here, or nowhere."""
        here = self.here if self.here and self.here.estimate.is_known else None
        if self.general and claim(self.general) and (here is None or claim(here)):
            return GENERAL
        return HERE if here and claim(here) else ""


NOTHING = Contrast(math.nan, 0, 0, 0, math.nan, 0, "no common cells")


def summarise(values: Iterable[float]) -> Summary:
    """Mean and sample standard deviation; ValueError for no values or values not finite."""
    data = np.asarray(list(values), dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"summarise needs at least one value, all finite; got {data.tolist()}")
    sd = float(data.std(ddof=1)) if data.size > 1 else math.nan
    return Summary(float(data.mean()), sd, int(data.size))


def paired_contrast(
    cells_a: Sequence[float] | Floats,
    cells_b: Sequence[float] | Floats,
    clusters: Sequence[str],
    draws: Sequence[int] | None = None,
) -> Contrast:
    """Contrast two equally long lists of scores; ``clusters`` names each pair's dataset.

    Variants of a dataset share test images and must have one name. ``here`` takes the test images
    as fixed, and without ``draws``, one per pair, the synthetic images as well. Swapping the arms
    flips signs only. ValueError for unequal lengths, no pairs, or scores that are not finite.
    """
    a, b = np.asarray(cells_a, dtype=np.float64), np.asarray(cells_b, dtype=np.float64)
    if not (a.ndim == b.ndim == 1 and len(a) == len(b) == len(clusters) > 0):
        raise ValueError(
            "cells_a, cells_b and clusters must be equally long and not empty; got "
            f"{len(a)}, {len(b)} and {len(clusters)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("scores must be finite")
    d = a - b
    d[np.abs(d) <= TIE] = 0.0
    names = sorted(set(clusters))
    rows = [np.array([c == name for c in clusters]) for name in names]
    groups = [d[mine] for mine in rows]
    drawn = None if draws is None else [np.array(draws)[mine] for mine in rows]
    sd = float(d.std(ddof=1)) if len(d) > 1 else math.nan
    return Contrast(
        difference=float(d.mean()),
        wins=int((d > 0).sum()),
        ties=int((d == 0).sum()),
        losses=int((d < 0).sum()),
        dz=float(d.mean()) / sd if sd > TIE else math.nan,
        n=len(d),
        datasets=len(names),
        rank_biserial=rank_biserial(d),
        here=claims([over_cells(groups, drawn)])[0],
        general=claims([over_datasets(groups)])[0],
    )


def contrast_table(
    cells: Mapping[CellId, float],
    pairs: Sequence[Pair],
    expected: Iterable[CellId] = (),
    origins: Mapping[str, str] | None = None,
    reasons: Mapping[CellId, str] | None = None,
    over_images: Callable[[Pair], Interval | None] = lambda pair: None,  # noqa: ARG005
    margin: float | None = None,
    drawn: Collection[str] = (),
) -> list[Contrast]:
    """Contrasts of ``pairs`` over the planned cells ``expected``, adjusted as one family.

    By default every combination of the names that occur is planned. Numbers cover the cells that
    both arms have, ``missing`` names the others and ``note`` their ``reasons``; a pair that lacks
    some is not tested, but counts in the family. No common cells: ``n == 0``. ``origins`` maps a
    variant to its dataset: variants are one cluster. ``over_images`` gives a pair's contrast over
    cells and test images; without it ``here`` is over cells alone. Arms in ``drawn`` have images of
    their own for each seed.
    """
    there = {(d, n, s) for d, n, _, s in cells}
    every = itertools.product(*map(set, zip(*there, strict=True))) if there else ()
    # Sorted: sums must not depend on the order of the cells.
    grid = sorted({(d, n, s) for d, n, _, s in expected} or every)
    found = []
    for pair in pairs:
        lost = [(d, n, a, s) for a in sorted(pair) for d, n, s in grid if (d, n, a, s) not in cells]
        common = [(d, n, s) for d, n, s in grid if not {(d, n, a, s) for a in pair} - cells.keys()]
        a, b = ([cells[d, n, arm, s] for d, n, s in common] for arm in pair)
        clusters = [(origins or {}).get(dataset, dataset) for dataset, _, _ in common]
        draws = [s for _, _, s in common] if set(pair) & set(drawn) else None
        contrast = paired_contrast(a, b, clusters, draws) if common else NOTHING
        if images := over_images(pair):
            contrast = replace(contrast, here=claims([images])[0])
        why = Counter((reasons or {}).get(cell, "not run") for cell in lost).most_common(3)
        causes = "; ".join(f"{cause} ({count})" for cause, count in why)
        notes = [_caveats(contrast), f"missing because: {causes}" if lost else ""]
        found.append(
            replace(
                contrast, arm_a=pair[0], arm_b=pair[1], note="; ".join(filter(None, notes)),
                missing=tuple(lost), planned=len(grid), margin=margin,
            )
        )  # fmt: skip
    # Claims on these datasets and claims in general are a family each.
    here = claims([c.here.estimate if c.here and not c.missing else None for c in found])
    general = claims([c.general.estimate if c.general and not c.missing else None for c in found])
    return [
        replace(contrast, here=_untested(contrast.here), general=_untested(contrast.general))
        if contrast.missing
        else replace(contrast, here=one, general=two)
        for contrast, one, two in zip(found, here, general, strict=True)
    ]


def pooled_variance(groups: Sequence[Floats]) -> float:
    """Variance within groups; 0 where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return squares / freedom if freedom else 0.0


def rank_biserial(differences: Sequence[float] | Floats) -> float:
    """Matched-pairs rank-biserial correlation: (positive - negative rank sum) / total, zeros out.

    In [-1, 1]; nan if no pair differs. Source: Kerby (2014), Comprehensive Psychology 3, 11.IT.3.1.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[np.abs(d) > TIE]
    if len(d) == 0:
        return math.nan
    size = np.abs(d)
    below = (size[None, :] < size[:, None] - TIE).sum(axis=1)
    equal = (np.abs(size[None, :] - size[:, None]) <= TIE).sum(axis=1)
    ranks = below + (equal + 1) / 2
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def _untested(found: Claim | None) -> Claim | None:
    return found and replace(found, p=math.nan, bound=math.nan)


def _caveats(contrast: Contrast) -> str:
    notes = []
    if not contrast.n:
        return contrast.note
    if contrast.here is None:
        notes.append("one pair of cells in a dataset: no interval on these datasets")
    elif not contrast.here.estimate.images:
        notes.append("no stored predictions: the interval takes the test images as fixed")
    elif not contrast.here.estimate.is_known and contrast.here.estimate.groups:
        notes.append("no variance over patients can be seen: no interval on these datasets")
    if contrast.datasets < 2:
        notes.append("one dataset only: no interval for datasets in general")
    return "; ".join(notes)
