"""Cells of a study, what failed, and the numbers that tables show, as functions over records.

All statistics come from ``evaluation.stats``; nothing here draws or writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mgdm_ray.evaluation import METRIC
from mgdm_ray.evaluation.stats.paired import CellId, Summary, summarise
from mgdm_ray.results.report.words import DASH, GAMMA, cell_title, job_title, signed
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
DRAWN = ("duplicate", *SYNTHETIC)
"""Arms whose images differ between seeds, if each seed has a draw of its own."""
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


def cell_id(record: Record) -> CellId:
    seed = -1 if record.seed is None else record.seed
    return record.dataset or "?", record.network or "?", record.arm or "?", seed


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


def problems(
    records: Iterable[Record], expected: Iterable[CellId]
) -> list[tuple[str, str, list[str]]]:
    """(status, reason, names) of everything that is not done, equal reasons together.

    Jobs that did not run because one that they need failed are ``blocked``, under its reason.
    Pruned trials are left out; planned cells without a record are ``not run``.
    """
    records = list(records)
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status in ("failed", "refused"):
            root = BLOCKED.sub("", record.reason)
            status = record.status if root == record.reason else "blocked"
            groups.setdefault((status, root), []).append(job_title(record))
    there = {cell_id(record) for record in records if record.is_cell}
    absent = [cell for cell in expected if cell not in there]
    if absent:
        names = [f"cell {cell_title(cell)}" for cell in absent]
        groups["not run", "no record: the study stopped early"] = names
    order = ["failed", "refused", "blocked", "not run"]
    found = [(status, reason, names) for (status, reason), names in groups.items()]
    return sorted(found, key=lambda problem: (order.index(problem[0]), problem))


def in_order(arms: Iterable[str]) -> list[str]:
    """Distinct arms in the order of ARM_MEANING, unknown ones last by name."""
    known = list(ARM_MEANING)
    return sorted(set(arms), key=lambda a: (known.index(a) if a in known else len(known), a))


def select(
    cells: Iterable[CellId], dataset: str, arm: str, network: str | None = None
) -> list[CellId]:
    """Those of an arm on a dataset; of all networks by default."""
    return [c for c in cells if c[0] == dataset and c[2] == arm and network in (None, c[1])]


def mean(
    cells: Mapping[CellId, float], dataset: str, arm: str, network: str | None = None
) -> Summary | None:
    """Over the cells of an arm on a dataset; None without any."""
    found = select(cells, dataset, arm, network)
    return summarise(cells[cell] for cell in found) if found else None


def paired_gains(
    cells: Mapping[CellId, float],
    arm: str,
    dataset: str,
    base: str = "real",
    network: str | None = None,
) -> dict[tuple[str, int], float]:
    """``arm`` minus ``base`` per (network, seed) that has both; of all networks by default."""
    return {
        (name, seed): cells[dataset, name, arm, seed] - cells[dataset, name, base, seed]
        for _, name, _, seed in select(cells, dataset, arm, network)
        if (dataset, name, base, seed) in cells
    }


def mean_gain(
    cells: Mapping[CellId, float], arm: str, dataset: str, network: str | None = None
) -> float | None:
    """The mean paired gain over ``real``; None without a pair."""
    gains = paired_gains(cells, arm, dataset, network=network)
    return summarise(gains.values()).mean if gains else None


def result_rows(records: Sequence[Record], metric: str = METRIC) -> list[list[str]]:
    """Header and one row per arm: per dataset mean ± sd over networks and seeds, gain over real;
    datasets in the order of their records.

    A ``*`` marks means over fewer cells than another arm has; gains are always paired.
    """
    cells = scores(records, metric)
    datasets = list(dict.fromkeys(record.dataset or "?" for record in records if record.is_cell))
    arms = in_order(record.arm or "?" for record in records if record.is_cell)
    rows = [["arm", *(name for dataset in datasets for name in (dataset, "vs real"))]]
    for arm in arms:
        row = [arm]
        for dataset in datasets:
            most = max(len(select(cells, dataset, other)) for other in arms)
            found, gain = mean(cells, dataset, arm), mean_gain(cells, arm, dataset)
            mark = "*" if found and found.n < most else ""
            row.append(found.text() + mark if found else DASH)
            row.append("" if gain is None or arm == "real" else signed(gain))
        rows.append(row)
    return rows


def result_table(records: Sequence[Record], metric: str = METRIC) -> str:
    """``result_rows`` as plain text for a terminal; one line where no cell is there yet."""
    rows = result_rows(records, metric)
    if len(rows) == 1:
        return "no cell has been evaluated yet"
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    if any("*" in line for line in lines):
        lines.append("* some cells are missing: compare by 'vs real', which is paired")
    return "\n".join(lines)
