"""What the console shows at the end of a study: results, warnings, failures, next steps."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from mgdm_ray.cli import next_steps
from mgdm_ray.cli.next_steps import Step, show
from mgdm_ray.data.info import dataset_info
from mgdm_ray.pipeline.tasks.base import log_path
from mgdm_ray.results.finalize import REPORT_FILE, Finalizer
from mgdm_ray.results.mlflow import ui_command
from mgdm_ray.results.report.artefacts import Judge, guide_at_chance, json_of, judges
from mgdm_ray.results.report.cells import result_table
from mgdm_ray.storage.records import Record

MOST_SHOWN = 20
"""Failures with a line each; a broken dataset fails hundreds."""
BLOCKED_BY = re.compile(r"needs \w+ (\w+), which \w+: ")
"""In the reason of a blocked job, once per job between it and its root cause."""


def summary(finalizer: Finalizer, known: dict[str, Record]) -> bool:
    """Print results and next steps; False if a job failed or has not run."""
    records = [known[key] for key in finalizer.plan.jobs if key in known]
    _print_block([finalizer.answer()])
    print("\nbalanced accuracy on the test split, mean and sd over networks and seeds\n")
    print(result_table(records))
    for record in records:
        if warning := warning_of(record, finalizer.artefact):
            print(f"\nwarning: {warning}")
    _print_block(refused_lines(records))
    planned = len(finalizer.plan.jobs)
    missing = planned - len(records)
    if missing:
        print(f"\n{missing} of {planned} jobs not run yet")
    failed = [record for record in records if record.status == "failed"]
    _print_block(failure_lines(finalizer, failed))
    print(f"\n{show(steps_after(finalizer, records))}")
    return not failed and not missing


def _print_block(lines: list[str]) -> None:
    if any(lines):
        print("\n" + "\n".join(lines))


def counted(number: int, noun: str = "job") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def failure_lines(finalizer: Finalizer, failed: Iterable[Record]) -> list[str]:
    """Failed jobs with their logs; blocked jobs are grouped by their root cause."""
    roots, blocked = list[Record](), defaultdict[str, list[Record]](list)
    for record in failed:
        if through := BLOCKED_BY.findall(record.reason):
            blocked[through[-1]].append(record)
        else:
            roots.append(record)
    if not roots and not blocked:
        return []
    total = sum(map(len, blocked.values()))
    lines = [f"{counted(len(roots))} failed" + (f", {counted(total)} blocked:" if total else ":")]
    for record in roots[:MOST_SHOWN]:
        job = finalizer.plan.jobs[record.key]
        lines.append(f"  {job.label}: {record.reason}")
        lines.append(f"    log: {log_path(finalizer.store, job)}")
        if found := blocked.pop(record.key[:8], None):
            lines.append(f"    blocks {_kinds(found)}")
    # Blocked by a job that was refused, or is not shown above.
    lines += [f"  {_kinds(found)}: {found[0].reason}" for found in blocked.values()]
    if len(roots) > MOST_SHOWN:
        lines.append(f"  and {len(roots) - MOST_SHOWN} more: {finalizer.folder / REPORT_FILE}")
    return lines


def _kinds(records: Sequence[Record]) -> str:
    kinds = Counter(record.kind for record in records)
    return f"{counted(len(records))} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"


def refused_lines(records: Iterable[Record]) -> list[str]:
    """How many jobs of each dataset and arm the study's limits refused, and why."""
    groups = Counter(
        (f"{record.dataset} {record.arm}", record.reason)
        for record in records
        if record.status == "refused"
    )
    if not groups:
        return []
    lines = [f"  {where} ({count}): {reason}" for (where, reason), count in groups.items()]
    return [f"{counted(groups.total())} refused by the study's limits:", *lines]


def steps_after(finalizer: Finalizer, records: list[Record]) -> list[Step]:
    """What to fix first, then what would sharpen the answer, then where to look."""
    trials = [row for record in records for row in finalizer.with_trials(record)]
    chance = {
        d.name: 1 / dataset_info(d, finalizer.config.data_dir).num_classes for d in finalizer.read
    }
    steps = [
        *next_steps.run_again(records, len(finalizer.plan.jobs), finalizer.command),
        *next_steps.at_chance(records, judges(records, finalizer.artefact).values()),
        *next_steps.train_networks(records, chance, finalizer.config.arms),
        *next_steps.equal_trials(trials),
        *next_steps.at_the_edge(records, finalizer.config, _contradicted(finalizer, records)),
        *next_steps.unresolved(
            finalizer.headline(),
            finalizer.config,
            lambda difference: _seeds_to_see(finalizer, difference, records),
        ),
        Step("report", str(finalizer.folder / REPORT_FILE)),
        Step("compare", ui_command(finalizer.mlflow_uri)),
    ]
    if address := finalizer.compare_address():
        steps.append(Step("then", address))
    return steps


def _contradicted(finalizer: Finalizer, records: Iterable[Record]) -> set[str]:
    """Datasets whose chosen setting has a lower fresh score than another one."""
    from mgdm_ray.evaluation.selection_bias import Confirmed

    found = set()
    for record in records:
        if record.kind == "confirm" and record.status == "done":
            content = json_of(record, finalizer.artefact, "confirm.json")
            if content and Confirmed.of(content).is_contradicted:
                found.add(str(record.dataset))
    return found


def _seeds_to_see(finalizer: Finalizer, difference: float, records: list[Record]) -> int | None:
    """Seeds that would resolve ``difference``, from the spread of this study's own cells."""
    from mgdm_ray.data.load import data_source
    from mgdm_ray.evaluation.power_analysis import seeds_to_see

    sources = {d.name: data_source(d, finalizer.config.data_dir) for d in finalizer.read}
    cells = [
        {"record": asdict(record), "inputs": finalizer.plan.jobs[record.key].inputs}
        for record in records
        if record.is_cell
    ]
    counts = {name: n for name, source in sources.items() if (n := source.units("test"))}
    return seeds_to_see(difference, finalizer.config, counts, cells)


def warning_of(record: Record, artefact: Callable[[Record], Path | None]) -> str:
    """A warning about a guide or judge at chance level; empty for all other records."""
    if guide_at_chance(record):
        share = 100 * record.metrics["share_of_t_at_chance"]
        draw = f" (seed {record.seed})" if record.seed else ""
        return (
            f"the guide of {record.dataset}{draw} is at chance at {share:.0f} % of the noise "
            "levels: guidance carries little class information at these noise levels"
        )
    judge = Judge.of(record, artefact)
    if judge and judge.at_chance:
        where = " and ".join(f"{split} images" for split in judge.at_chance)
        shown = ", ".join(f"{value:.2f}" for value in judge.at_chance.values())
        return (
            f"the judge of {record.dataset} is at chance on {where} (balanced accuracy {shown}): "
            "its assessment of synthetic images is unreliable"
        )
    return ""
