"""What the console says when a study has ended: results, warnings, failures, next steps."""

from __future__ import annotations

import dataclasses
from collections import Counter

from mgdm_ray.cli import next_steps
from mgdm_ray.cli.next_steps import Step, show
from mgdm_ray.data.info import dataset_info
from mgdm_ray.pipeline.tasks.base import log_path
from mgdm_ray.results.finalize import REPORT_FILE, Finalizer
from mgdm_ray.results.report import result_table
from mgdm_ray.storage.records import Record


def summary(finalizer: Finalizer, known: dict[str, Record]) -> bool:
    """Print what came out and what to do next; False where a job failed or has not run."""
    records = list(known.values())
    print("\nbalanced accuracy on the test split, mean and sd over networks and seeds\n")
    print(result_table(records))
    for warning in filter(None, map(_warning, records)):
        print(f"\nwarning: {warning}")
    _print_refused(records)
    missing = len(finalizer.plan.jobs) - len(records)
    if missing:
        print(f"\n{missing} of {len(finalizer.plan.jobs)} jobs have not run")
    failed = [record for record in records if record.status == "failed"]
    if failed:
        _print_failed(finalizer, failed)
    print(f"\n{show(steps_after(finalizer, records))}")
    return not failed and not missing


def _print_failed(finalizer: Finalizer, failed: list[Record]) -> None:
    print(f"\n{len(failed)} jobs failed:")
    for record in [r for r in failed if not r.reason.startswith("needs ")][:20]:
        job = finalizer.plan.jobs[record.key]
        print(f"  {job.label}: {record.reason}\n    log: {log_path(finalizer.store, job)}")


def steps_after(finalizer: Finalizer, records: list[Record]) -> list[Step]:
    """Where to look, and what to do: what went wrong first, then what would tell more."""
    steps = next_steps.run_again(records, len(finalizer.plan.jobs), finalizer.command)
    steps += next_steps.at_chance(records)
    chance = {
        d.name: 1 / dataset_info(d, finalizer.config.data_dir).num_classes for d in finalizer.read
    }
    steps += next_steps.networks_at_chance(records, chance)
    trials = [row for record in records for row in finalizer.with_trials(record)]
    steps += next_steps.equal_trials(trials)
    steps += next_steps.at_the_edge(records, finalizer.config)
    steps += next_steps.unresolved(
        finalizer.headline(),
        finalizer.config,
        lambda difference: _seeds_to_see(finalizer, difference, records),
    )
    steps.append(Step("report", str(finalizer.folder / REPORT_FILE)))
    steps.append(Step("compare", finalizer.mlflow_command()))
    if address := finalizer.compare_address():
        steps.append(Step("then", address))
    return steps


def _seeds_to_see(finalizer: Finalizer, difference: float, records: list[Record]) -> int | None:
    """How many seeds would show ``difference``, by the spread of this study's own cells."""
    from mgdm_ray.data.load import count_test_images
    from mgdm_ray.evaluation.power_analysis import seeds_to_see

    tests = {d.name: count_test_images(d, finalizer.config.data_dir) for d in finalizer.read}
    cells = [
        {"record": dataclasses.asdict(record), "inputs": finalizer.plan.jobs[record.key].inputs}
        for record in records
        if record.is_cell
    ]
    counts = {name: count for name, count in tests.items() if count is not None}
    return seeds_to_see(difference, finalizer.config, counts, cells)


def _warning(record: Record) -> str:
    """Of a model that knows too little to be of use; empty for all others."""
    if next_steps.guide_at_chance(record):
        share = record.metrics["share_of_t_at_chance"]
        return (
            f"the guide of {record.dataset} is no better than chance at {share:.0%} of the noise "
            "levels: guidance hardly knows the classes there"
        )
    if next_steps.judge_at_chance(record):
        accuracy = record.metrics["val_balanced_accuracy"]
        return (
            f"the judge of {record.dataset} is no better than chance on validation images "
            f"(balanced accuracy {accuracy:.2f}): what it says of synthetic images means little"
        )
    return ""


def _print_refused(records: list[Record]) -> None:
    """How many of each dataset and arm the limits refused, and why."""
    groups = Counter(
        (f"{record.dataset} {record.arm}", record.reason)
        for record in records
        if record.status == "refused"
    )
    if groups:
        print(f"\n{groups.total()} jobs were refused, as the study's limits ask:")
    for (where, reason), count in groups.items():
        print(f"  {where} ({count}): {reason}")
