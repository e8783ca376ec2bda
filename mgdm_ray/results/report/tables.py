"""Small functions over records: which cells there are, and the numbers that tables show.

All statistics come from ``stats``; nothing here draws or writes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from mgdm_ray.pipeline.trials import TRIALS_FILE, Trial, best_trial, read_trials
from mgdm_ray.storage.records import Record

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
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

HELD_UP = re.compile(r"^(?:needs \w+ [0-9a-f]+, which \w+: )+")
"""How the reason of a job begins that was not started because a need of its failed."""

CellId = tuple[str, str, str, int]
"""Dataset, network, arm, seed."""


@dataclass(frozen=True)
class Tested:
    """A contrast, its Holm-adjusted p within its family, and what it comes to."""

    contrast: Contrast
    p_adjusted: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not resolvable``, ``incomplete`` or ``no data``, by the rule of
        ``sentence``.

        ``better here`` and ``worse here`` speak of these datasets and images only.
        """
        if self.contrast.n == 0:
            return "no data"
        if self.contrast.missing:
            return "incomplete"
        if self.contrast.spans_zero or not self.p_adjusted <= ALPHA:
            return "not resolvable"
        verdict = "better" if self.contrast.difference > 0 else "worse"
        return f"{verdict} here" if self.contrast.scope else verdict


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
    """Of every cell that is not done: its status and the reason at the root."""
    return {
        cell_id(record): f"{record.status}: {HELD_UP.sub('', record.reason)}"
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
    cells: Mapping[CellId, float], arm: str, dataset: str, base: str = "real"
) -> dict[tuple[str, int], float]:
    """``arm`` minus ``base`` per (network, seed) that has both."""
    gains = {}
    for (_, network, _, seed), value in select(cells, dataset, arm=arm).items():
        reference = cells.get((dataset, network, base, seed))
        if reference is not None:
            gains[network, seed] = value - reference
    return gains


def contrasts(
    cells: Mapping[CellId, float],
    pairs: Sequence[tuple[str, str]],
    arms: Sequence[str],
    expected: Iterable[CellId] = (),
    origins: Mapping[str, str] | None = None,
    why: Mapping[CellId, str] | None = None,
    over_images: Callable[[tuple[str, str]], ImageContrast | None] = lambda pair: None,  # noqa: ARG005
) -> list[Tested]:
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
    return [Tested(contrast, p) for contrast, p in zip(found, adjusted, strict=True)]


def result_rows(records: Sequence[Record], metric: str = METRIC) -> list[list[str]]:
    """Header and one row per arm: per dataset mean ± sd over networks and seeds, gain over real.

    A ``*`` marks means over fewer cells than another arm has; gains are always paired.
    """
    cells = scores(records, metric)
    datasets = sorted({record.dataset or "?" for record in records if record.is_cell})
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
            gains = paired_gains(cells, arm, dataset)
            mark = "*" if found and found.n < most[dataset] else ""
            row.append(found.text() + mark if found else "-")
            gain = f"{summarise(gains.values()).mean:+.3f}" if gains and arm != "real" else ""
            row.append(gain)
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


def trials(records: Sequence[Record], artefact: Callable[[Record], Path | None]) -> list[Trial]:
    """What the searches tried: from each search's ``trials.json``, else from the trial records."""
    found: list[Trial] = []
    for record in sorted(records, key=lambda r: (r.kind, r.dataset or "", r.key)):
        folder = artefact(record) if record.kind == "search" else None
        if folder is not None and (folder / TRIALS_FILE).is_file():
            found += read_trials(folder, where_of(record))
    single = [record for record in records if record.kind == "trial"]
    return found or [Trial.of_record(r, number, where_of(r)) for number, r in enumerate(single)]


def where_of(record: Record) -> str:
    """How a search is called: by its dataset, or by dataset and network."""
    return " · ".join(part for part in (record.dataset, record.network) if part) or "?"


def best_trials(found: Iterable[Trial]) -> dict[str, Trial]:
    """``best_trial`` per search."""
    grouped: dict[str, list[Trial]] = {}
    for trial in found:
        grouped.setdefault(trial.where, []).append(trial)
    best = {where: best_trial(trials) for where, trials in grouped.items()}
    return {where: trial for where, trial in best.items() if trial is not None}


def problems(
    records: Iterable[Record], expected: Iterable[CellId]
) -> list[tuple[str, str, list[str]]]:
    """(status, reason, names) of everything that is not done, equal reasons together.

    Jobs that only fell because a need of theirs did are ``held up``, under the reason at the root.
    Pruned trials are no problem and are left out; planned cells without a record are ``not run``.
    """
    records = list(records)
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.status in ("failed", "refused"):
            root = HELD_UP.sub("", record.reason)
            status = record.status if root == record.reason else "held up"
            groups.setdefault((status, root), []).append(title(record))
    there = {cell_id(record) for record in records if record.is_cell}
    absent = [cell for cell in expected if cell not in there]
    if absent:
        names = [f"cell {f' {TIMES} '.join(cell[:3])}, seed {cell[3]}" for cell in absent]
        groups["not run", "no record: the study ended before it got there"] = names
    order = ["failed", "refused", "held up", "not run"]
    return [
        (status, reason, names)
        for (status, reason), names in sorted(
            groups.items(), key=lambda group: (order.index(group[0][0]), group[0])
        )
    ]


def title(record: Record) -> str:
    """``cell breastmnist × resnet18 × disturb, seed 0``."""
    kind = "cell" if record.is_cell else record.kind
    parts = [part for part in (record.dataset, record.network, record.arm) if part]
    seed = "" if record.seed is None else f", seed {record.seed}"
    return f"{kind} {f' {TIMES} '.join(parts)}{seed}".strip()


def costs(records: Iterable[Record]) -> list[tuple[str, int, int, float, float]]:
    """(kind, done, not done, total seconds, longest) per job kind, the dearest first."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.kind, []).append(record)
    table = []
    for kind, group in rows.items():
        seconds = [record.seconds for record in group]
        done = Counter(record.status for record in group)["done"]
        table.append((kind, done, len(group) - done, sum(seconds), max(seconds)))
    return sorted(table, key=lambda row: -row[3])


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def setting_text(setting: Mapping[str, Any]) -> str:
    """``entropy, γ 0.12, guidance 1.5``; scales that are off are left out."""
    words = []
    if setting.get("measurement"):
        words += [
            str(setting["measurement"]),
            f"{GAMMA} {setting.get('uncertainty_scale', 0.0):.3g}",
        ]
    if setting.get("gradient", "normalised") != "normalised":
        words.append(f"{setting['gradient']} gradient")
    if setting.get("over_t", "constant") != "constant":
        words.append(f"times {setting['over_t']}")
    if setting.get("label_scale"):
        words.append(f"label {setting['label_scale']:g}")
    first, last = setting.get("interval") or (0, 999)
    if (first, last) != (0, 999):
        words.append(f"t {first} to {last}")
    if setting.get("guidance_scale") is not None:
        words.append(f"guidance {setting['guidance_scale']:g}")
    if setting.get("classifier_scale"):
        words.append(f"classifier {setting['classifier_scale']:g}")
    if setting.get("decode_guidance_scale", 1) != 1:
        words.append(f"guidance while decoding {setting['decode_guidance_scale']:g}")
    return ", ".join(words)
