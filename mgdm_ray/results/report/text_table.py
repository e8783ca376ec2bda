"""The results as a plain-text table for the console."""

from __future__ import annotations

from collections.abc import Sequence

from mgdm_ray.evaluation import METRIC
from mgdm_ray.results.report.cells import in_order, mean_gain, paired_gains, scores, select, summary
from mgdm_ray.results.report.words import DASH, signed
from mgdm_ray.storage.records import Record


def result_rows(records: Sequence[Record], metric: str = METRIC) -> list[list[str]]:
    """Header and one row per arm: per dataset mean ± sd over networks and seeds, gain over real;
    datasets in the order of their records.

    A ``*`` marks means over fewer cells than another arm has; gains are always paired.
    """
    cells = scores(records, metric)
    datasets = list(dict.fromkeys(record.dataset or "?" for record in records if record.is_cell))
    arms = in_order(record.arm or "?" for record in records if record.is_cell)
    most = {
        dataset: max((len(select(cells, dataset, arm=arm)) for arm in arms), default=0)
        for dataset in datasets
    }
    rows = [["arm", *(name for dataset in datasets for name in (dataset, "vs real"))]]
    for arm in arms:
        row = [arm]
        for dataset in datasets:
            found = summary(select(cells, dataset, arm=arm))
            gain = mean_gain(paired_gains(cells, arm, dataset))
            mark = "*" if found and found.n < most[dataset] else ""
            row.append(found.text() + mark if found else DASH)
            row.append("" if gain is None or arm == "real" else signed(gain))
        rows.append(row)
    return rows


def result_table(records: Sequence[Record], metric: str = METRIC) -> str:
    """``result_rows`` as plain text for a terminal; one line where no cell is there yet."""
    rows = result_rows(records, metric)
    if len(rows) == 1:
        return "no cell has been evaluated yet"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (text.rjust(width) for text, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    if any("*" in line for line in lines):
        lines.append("* some cells are missing: compare by 'vs real', which is paired")
    return "\n".join(lines)
