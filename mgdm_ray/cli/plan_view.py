"""What ``--plan`` prints: the jobs, what they share, and what is left to compute."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mgdm_ray.classifiers import weights
from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.cli.plan_estimate import PlanEstimate
from mgdm_ray.evaluation.power_analysis import resolution
from mgdm_ray.pipeline.cost_model import Estimate, add_probe
from mgdm_ray.pipeline.job import CELLS, Job
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.storage.remote.objects import is_url

if TYPE_CHECKING:
    from mgdm_ray.pipeline.tasks.base import Context

COLUMNS = ("kind", "jobs", "done", "failed", "to do", "s each", "CPU h", "GPU h", "MB", "from")
WIDTHS = (-15, 6, 6, 8, 7, 9, 8, 8, 8)
"""Of all columns but the last, in characters; negative: aligned left."""


def show_plan(study: OpenedStudy, *, probe: bool, retry_failed: bool) -> None:
    """Print the plan; with ``probe`` measure jobs without timing history first."""
    weights.require_timm(study.config)
    study.check_own_files()
    estimate = PlanEstimate.of(study, retry_failed=retry_failed)
    if probe:
        study.prepare_data()
        if measure(estimate, study.context()):
            estimate = PlanEstimate.of(study, retry_failed=retry_failed)
    show(estimate)


def measure(estimate: PlanEstimate, context: Context) -> bool:
    """Probe one job of each kind without timing history; False if nothing was measured."""
    if estimate.shortages:
        print("probe skipped: not enough resources for this study\n")
        return False
    first: dict[tuple[str, str], Job] = {}
    for job in estimate.unknown:
        effort = estimate.efforts[job.key]
        if effort is not None:
            first.setdefault((effort.kind, effort.family), job)
    if not first:
        return False
    from mgdm_ray.pipeline.tasks.probe import probe  # imports torch

    root, resources = estimate.store.root, estimate.config.resources
    root.mkdir(parents=True, exist_ok=True)
    gpu = resources.gpus_per_task or resources.gpus_per_worker
    context = replace(context, device="cuda" if gpu else "cpu")
    threads = max(1, int(resources.cpus_per_task))  # as the engine gives them
    for number, ((kind, family), job) in enumerate(first.items(), start=1):
        print(f"probe {number} of {len(first)}: {job.label}", flush=True)
        images = estimate.images(job)
        seconds, size = probe(job, estimate.plan.jobs, images, context, threads=threads)
        row = {"kind": kind, "family": family, "seconds_per_work": seconds, "bytes_per_item": size}
        add_probe(root, row)
    print()
    return True


def show(estimate: PlanEstimate) -> None:
    """Print the whole plan."""
    c, plan = estimate.config, estimate.plan
    axes = {"dataset": c.datasets, "arm": c.arms, "network": c.networks, "seed": c.seeds}
    product = " x ".join(_counted(len(values), name) for name, values in axes.items())
    cells, jobs = _counted(len(plan.cells()), "cell"), _counted(len(plan.jobs), "job")
    print(f"study {c.name}: {product} = {cells}, {jobs}")
    print(f"storage {estimate.store.location}")
    print("\n".join(resolution(c, estimate.test_counts, estimate.manifests.values())))
    absent = [d.name for d in c.datasets if d.name not in estimate.train_images]
    if absent:
        print(f"not on this machine yet, downloaded at the start: {', '.join(absent)}")
    print()
    _show_table(estimate)
    print(f"\n{sharing(plan)}")
    _show_failures(estimate)
    if not estimate.todo:
        print("nothing left to do")
        return
    _show_cost(estimate)
    _show_fit(estimate)


def _show_table(estimate: PlanEstimate) -> None:
    print(_line(*COLUMNS))
    plan = estimate.plan
    for kind in plan.counts():
        _show_row(estimate, kind, [job for job in plan.jobs.values() if job.kind == kind])
    _show_row(estimate, "all", list(plan.jobs.values()))


def _show_row(estimate: PlanEstimate, kind: str, jobs: list[Job]) -> None:
    left = [job for job in jobs if job.key in estimate.todo]
    known = [estimate.estimates[job.key] for job in left if job.key in estimate.estimates]
    # A failed job that will be tried again counts as to do.
    failed = sum(job.key in estimate.failures and job.key not in estimate.todo for job in jobs)
    each = basis = ""
    if kind != "all" and left:
        each = f"{sum(e.seconds for e in known) / len(known):.1f}" if known else "unknown"
        basis = _basis(known, len(left))
    costs = ["", "", ""]
    if known:
        size = estimate.bytes(left)
        costs = [f"{hours:.2f}" for hours in estimate.hours(left)]
        costs.append("unknown" if size is None else f"{size / 1e6:.1f}")
    done = sum(job.key in estimate.manifests for job in jobs)
    print(_line(kind, *map(str, (len(jobs), done, failed, len(left))), each, *costs, basis))


def _line(*texts: str) -> str:
    columns = zip(texts[:-1], WIDTHS, strict=True)
    cells = [f"{text:<{-w}}" if w < 0 else f"{text:>{w}}" for text, w in columns]
    return f"{''.join(cells)}  {texts[-1]}".rstrip()


def _basis(known: Collection[Estimate], jobs: int) -> str:
    """What the estimates rest on; counts in brackets where not all rest on the same."""
    words = []
    for basis, count in Counter(e.basis for e in known).items():
        rest = {e.jobs for e in known if e.jobs and e.basis == basis}
        few, most = min(rest, default=0), max(rest, default=0)
        between = f"{most}" if few == most else f"{few} to {most}"
        finished = f"{between} finished job{'s' if most > 1 else ''} each"
        text = {"probe": "a probe", "scaled": f"scaled from {finished}"}.get(basis, finished)
        words.append(text if count == jobs else f"{text} ({count})")
    if known and len(known) < jobs:
        words.append(f"unknown ({jobs - len(known)})")
    return "; ".join(words)


def sharing(plan: Plan) -> str:
    """How many cells each kind of job serves, and how many jobs there were without sharing."""
    serves: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    above: dict[str, frozenset[str]] = {}
    for key, job in plan.jobs.items():  # needs come first
        needs = set(job.needs.values())
        above[key] = frozenset(needs.union(*(above[need] for need in needs)))
        if job.kind in CELLS:
            kinds = Counter(plan.jobs[need].kind for need in above[key])
            serves.update(kinds.keys())
            alone.update(kinds)
    counts = plan.counts()
    rows = {kind: f"{n} {kind} by {serves[kind]}" for kind, n in counts.items() if serves[kind]}
    if not rows:
        return "shared: nothing, all cells are independent"
    trials = sum(job.inputs["trials"] for job in plan.jobs.values() if job.kind == "search")
    if trials and "encode" in rows:
        rows["encode"] += f" (and by {trials} trials)"
    # Jobs that serve no cell exist once either way.
    total = sum(alone.values()) + sum(n for kind, n in counts.items() if not serves[kind])
    return (
        f"shared by cells: {', '.join(rows.values())}\n"
        f"without sharing, {len(plan.jobs)} jobs would be {total}"
    )


def _show_failures(estimate: PlanEstimate) -> None:
    """Jobs that failed before, and those that the study's limits refuse."""
    jobs, failures = estimate.plan.jobs, list(estimate.failures.values())
    if failures:
        first = next((r for r in failures if not r.reason.startswith("needs ")), failures[0])
        what = "; fix the cause, then rerun with --retry-failed"
        print(
            f"{len(failures)} failed before (the first: {jobs[first.key].label}: "
            f"{first.reason[:120]}){', tried again' if estimate.retry_failed else what}"
        )
    if estimate.refused:
        key, reason = next(iter(estimate.refused.items()))
        count, first_label = len(estimate.refused), jobs[key].label
        print(f"{count} are refused by the study's limits (the first: {first_label}: {reason})")


def _show_cost(estimate: PlanEstimate) -> None:
    jobs, unknown = list(estimate.todo.values()), estimate.unknown
    wall = ""
    if not estimate.shortages:
        wall = f"about {_duration(estimate.seconds())} on {_machine(estimate)}"
    if not unknown:
        print(f"\nestimated time: {wall or 'unknown, not enough resources here'}")
    else:
        kinds = f" for {', '.join(Counter(job.kind for job in unknown))}"
        which = kinds if estimate.estimates else ""
        print(f"\nestimated time: unknown (no timing history in this storage{which})")
        if wall and estimate.estimates:
            print(f"the {len(jobs) - len(unknown)} other jobs: {wall}")
        if wall:
            print("add --probe to measure them in a few minutes")
    known = " (known part)" if unknown else ""
    if estimate.estimates:
        cpu, gpu = estimate.hours(jobs)
        print(f"to be computed{known}: {cpu:.2f} CPU hours, {gpu:.2f} GPU hours")
    free, size = free_bytes(estimate.store.root), estimate.bytes(jobs)
    written = "unknown" if size is None else f"{_size(size)} of artefacts{known}"
    print(f"to be written: {written}; {_size(free)} free")
    # A remote storage has only a cache here.
    if size is not None and size > free and not is_url(estimate.store.location):
        print(f"warning: too little space at {estimate.store.root}; choose another --storage")


def _show_fit(estimate: PlanEstimate) -> None:
    verb = "cannot run" if estimate.shortages else "every job fits"
    end = "with --address the cluster is checked at the start"
    print(f"{verb} on this machine ({_machine(estimate)}); {end}")
    for message in estimate.shortages:
        print(f"  {message}")


def _machine(estimate: PlanEstimate) -> str:
    cpu, gpu = estimate.node["CPU"], estimate.node["GPU"]
    return f"{_counted(cpu, 'core')} and {_counted(gpu, 'GPU')}"


def _counted(number: float, noun: str) -> str:
    return f"{number:.10g} {noun}{'' if number == 1 else 's'}"


def free_bytes(folder: Path) -> int:
    """Free space at ``folder``, or where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
