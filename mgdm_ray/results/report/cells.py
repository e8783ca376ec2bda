"""Cells of a study and the numbers that its tables show, as functions over records.

All statistics come from ``evaluation.stats``; nothing here draws or writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats import (
    ALPHA,
    Contrast,
    ImageContrast,
    Summary,
    contrast_table,
    holm,
    summarise,
)
from mgdm_ray.results.report.words import GAMMA, MINUS
from mgdm_ray.storage.records import Record

ARM_MEANING = {
    "real": "nothing: the real training set as it is",
    "augment": "nothing, but classical augmentation of the real images",
    "duplicate": "copies of real images, as many per class as the synthetic arms add",
    "generate": "images drawn by the diffusion model (stage 1)",
    "roundtrip": f"the same images, encoded to noise and decoded without guidance ({GAMMA} = 0)",
    "perturb": "the same, each decoded along one random direction, as strong as the guidance",
    "disturb": "the same, decoded under measurement guidance",
}
"""What each arm adds to the real training set; the order is that of all tables."""
SYNTHETIC = ("generate", "roundtrip", "perturb", "disturb")
SECONDARY = (
    ("disturb", "perturb"),
    ("disturb", "real"),
    ("generate", "duplicate"),
    ("generate", "real"),
    ("duplicate", "real"),
    ("augment", "real"),
)
BLOCKED = re.compile(r"^(?:needs \w+ [0-9a-f]+, which \w+: )+")
"""Start of the reason of a job that did not run because one that it needs failed."""

CellId = tuple[str, str, str, int]
"""Dataset, network, arm, seed."""


@dataclass(frozen=True)
class AdjustedContrast:
    """A contrast and its Holm-adjusted p within its family."""

    contrast: Contrast
    p_adjusted: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.contrast.arm_a, self.contrast.arm_b

    @property
    def name(self) -> str:
        return pair_name(self.pair)

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not resolvable``, ``incomplete`` or ``no data``.

        The rule is that of ``stats.sentence``; ``better here`` and ``worse here`` hold for these
        datasets and images only.
        """
        if self.contrast.n == 0:
            return "no data"
        if self.contrast.missing:
            return "incomplete"
        if self.contrast.spans_zero or not self.p_adjusted <= ALPHA:
            return "not resolvable"
        verdict = "better" if self.contrast.difference > 0 else "worse"
        return f"{verdict} here" if self.contrast.scope else verdict


def pair_name(pair: tuple[str, str]) -> str:
    return f"{pair[0]} {MINUS} {pair[1]}"


def cell_id(record: Record) -> CellId:
    return (
        record.dataset or "?",
        record.network or "?",
        record.arm or "?",
        -1 if record.seed is None else record.seed,
    )


def scores(records: Iterable[Record], metric: str = METRIC) -> dict[CellId, float]:
    """The metric of every done cell that has it."""
    return {
        cell_id(record): record.metrics[metric]
        for record in records
        if record.is_cell and record.status == "done" and metric in record.metrics
    }


def reasons(records: Iterable[Record]) -> dict[CellId, str]:
    """Status and root cause of every cell that is not done."""
    return {
        cell_id(record): f"{record.status}: {BLOCKED.sub('', record.reason)}"
        for record in records
        if record.is_cell and record.status != "done"
    }


def in_order(arms: Iterable[str]) -> list[str]:
    """Distinct arms in the order of ARM_MEANING, unknown ones last by name."""
    known = list(ARM_MEANING)
    return sorted(set(arms), key=lambda a: (known.index(a) if a in known else len(known), a))


def select(
    cells: Mapping[CellId, float],
    dataset: str | None = None,
    network: str | None = None,
    arm: str | None = None,
) -> dict[CellId, float]:
    wanted = (dataset, network, arm)
    return {
        key: value
        for key, value in cells.items()
        if all(want is None or want == have for want, have in zip(wanted, key[:3], strict=True))
    }


def summary(cells: Mapping[CellId, float]) -> Summary | None:
    return summarise(cells.values()) if cells else None


def paired_gains(
    cells: Mapping[CellId, float],
    arm: str,
    dataset: str,
    base: str = "real",
    network: str | None = None,
) -> dict[tuple[str, int], float]:
    """``arm`` minus ``base`` per (network, seed) that has both; of all networks by default."""
    gains = {}
    for (_, name, _, seed), value in select(cells, dataset, network, arm).items():
        reference = cells.get((dataset, name, base, seed))
        if reference is not None:
            gains[name, seed] = value - reference
    return gains


def mean_gain(gains: Mapping[tuple[str, int], float]) -> float | None:
    return summarise(gains.values()).mean if gains else None


def contrasts(
    cells: Mapping[CellId, float],
    pairs: Sequence[tuple[str, str]],
    arms: Sequence[str],
    expected: Iterable[CellId] = (),
    origins: Mapping[str, str] | None = None,
    why: Mapping[CellId, str] | None = None,
    over_images: Callable[[tuple[str, str]], ImageContrast | None] = lambda pair: None,  # noqa: ARG005
) -> list[AdjustedContrast]:
    """The contrasts of those pairs whose arms the study has, as one Holm family.

    A pair that lacks some of the ``expected`` cells is not tested, but counts in the family;
    ``why`` has the reasons. ``over_images`` gives a pair's contrast over cells and test images.
    """
    rows = [
        {"dataset": d, "network": n, "arm": a, "seed": s, "value": v}
        for (d, n, a, s), v in cells.items()
    ]
    wanted = [pair for pair in pairs if set(pair) <= set(arms)]
    if not wanted:
        return []
    planned = [(d, n, s) for d, n, _, s in expected]
    reasons = {(a, d, n, s): reason for (d, n, a, s), reason in (why or {}).items()}
    found = [
        replace(contrast, here=over_images((contrast.arm_a, contrast.arm_b)))
        for contrast in contrast_table(
            rows,
            wanted,
            drop_incomplete=True,  # here they are marked, and their numbers are for orientation
            expected=planned,
            origins=origins,
            reasons=reasons,
        )
    ]
    adjusted = holm([math.nan if c.missing else c.p_tested for c in found])
    return [AdjustedContrast(contrast, p) for contrast, p in zip(found, adjusted, strict=True)]
