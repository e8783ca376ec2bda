"""What ``--plan`` prints: the jobs, what they share, and what is left to compute."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mgdm_ray.classifiers import weights
from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.cli.plan_estimate import PlanEstimate
from mgdm_ray.config import SAMPLED_ARMS
from mgdm_ray.evaluation.power_analysis import resolution
from mgdm_ray.pipeline.cost_model import Estimate, add_probe
from mgdm_ray.pipeline.gpu_memory import described, needs
from mgdm_ray.pipeline.job import CELLS, DRAWN, Job
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.storage.remote.objects import is_url
from mgdm_ray.templates import templates

if TYPE_CHECKING:
    from mgdm_ray.pipeline.tasks.base import Context

COLUMNS = ("kind", "jobs", "done", "failed", "to do", "s each", "CPU h", "GPU h", "MB", "from")
ROW = "{:<15}{:>6}{:>6}{:>8}{:>7}{:>9}{:>8}{:>8}{:>8}  {}"


def show_plan(study: OpenedStudy, *, probe: bool, retry_failed: bool) -> None:
    """Print the plan; with ``probe`` measure jobs without timing history first."""
    weights.require_timm(study.config)
    study.check_own_files()
    study.check_gpu_memory()
    if lost := study.lost_by_draws():
        print(f"warning: {lost}\n")
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
    """Print the whole plan: plan.txt.j2."""
    c, jobs, node = estimate.config, list(estimate.todo.values()), estimate.node
    axes = {"dataset": c.datasets, "arm": c.arms, "network": c.networks, "seed": c.seeds}
    failures = list(estimate.failures.values())
    blocking = (r for r in failures if not r.reason.startswith("needs "))
    machine = f"{_counted(node['CPU'], 'core')} and {_counted(node['GPU'], 'GPU')}"
    fits = bool(jobs) and not estimate.shortages
    text = (
        templates(__file__, keep_trailing_newline=True)
        .get_template("plan.txt.j2")
        .render(
            counted=_counted,
            size_text=_size,
            name=c.name,
            estimate=estimate,
            plan=estimate.plan,
            product=" x ".join(_counted(len(values), name) for name, values in axes.items()),
            resolution=resolution(c, estimate.test_counts, estimate.manifests.values()),
            memory=list(map(described, needs(estimate.plan.jobs, c.resources))),
            absent=[d.name for d in c.datasets if d.name not in estimate.train_images],
            table=_table(estimate),
            sharing=sharing(estimate.plan),
            draws=draws(estimate),
            failures=failures,
            first=next(blocking, failures[0]) if failures else None,
            jobs=jobs,
            unknown=estimate.unknown,
            estimates=estimate.estimates,
            machine=machine,
            wall=f"about {_duration(estimate.seconds())} on {machine}" if fits else "",
            known=" (known part)" if estimate.unknown else "",
            hours=estimate.hours(jobs),
            size=estimate.bytes(jobs),
            free=free_bytes(estimate.store.root),
            remote=is_url(estimate.store.location),
        )
    )
    print(text, end="")


def _table(estimate: PlanEstimate) -> Iterator[str]:
    yield ROW.format(*COLUMNS)
    plan = estimate.plan
    for kind in plan.counts():
        yield _row(estimate, kind, [job for job in plan.jobs.values() if job.kind == kind])
    yield _row(estimate, "all", list(plan.jobs.values()))


def _row(estimate: PlanEstimate, kind: str, jobs: list[Job]) -> str:
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
    return ROW.format(kind, len(jobs), done, failed, len(left), each, *costs, basis).rstrip()


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


def draws(estimate: PlanEstimate) -> str:
    """What the draws of synthetic images cost beyond a single one; empty if they cannot differ."""
    config = estimate.config
    if len(config.seeds) == 1 or not set(SAMPLED_ARMS) & set(config.arms):
        return ""
    if config.draws == "one":
        return "draws: one for all seeds; no interval on these datasets will cover another"
    # Draw 0 has no seed.
    more = [
        job
        for job in estimate.plan.jobs.values()
        if job.kind in DRAWN and job.seed not in (None, config.first_draw)
    ]
    kinds = Counter(job.kind for job in more)
    text = f"draws: {len(config.seeds)} ({config.draws}), {_counted(len(more), 'job')} more than "
    text += f"with draws: one ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
    every = sum(estimate.hours(list(estimate.todo.values())))
    added = sum(estimate.hours([job for job in more if job.key in estimate.todo]))
    if 0 < added < every:
        text += f"; {100 * added / (every - added):.0f} % more CPU and GPU hours to be computed"
    return text


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
