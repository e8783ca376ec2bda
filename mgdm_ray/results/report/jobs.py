"""Jobs of a study: the trials of its searches, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mgdm_ray.evaluation.stats.paired import CellId
from mgdm_ray.pipeline.trials import TRIALS_FILE, Trial, best_trial, read_trials
from mgdm_ray.results.report.cells import BLOCKED, cell_id
from mgdm_ray.results.report.words import cell_title, job_title
from mgdm_ray.storage.records import Record


def trials(records: Sequence[Record], artefact: Callable[[Record], Path | None]) -> list[Trial]:
    """Trials of all searches: from each one's ``trials.json``, else from the trial records."""
    found: list[Trial] = []
    for record in records:
        folder = artefact(record) if record.kind == "search" else None
        if folder is not None and (folder / TRIALS_FILE).is_file():
            found += read_trials(folder, where_of(record))
    single = [record for record in records if record.kind == "trial"]
    return found or [Trial.of_record(r, number, where_of(r)) for number, r in enumerate(single)]


def where_of(record: Record) -> str:
    """Name of a search: its dataset, or dataset and network."""
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
