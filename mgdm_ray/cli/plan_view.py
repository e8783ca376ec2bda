"""What ``--plan`` prints: the jobs, what they share, and what the rest of them will cost."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_ray.config import StudyConfig
from mgdm_ray.evaluation.power_analysis import resolution
from mgdm_ray.pipeline.cost_model import (
    Effort,
    Estimate,
    Figures,
    Node,
    add_probe,
    effort,
    figures_in,
    images_of,
    probe_figures,
)
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.plan import CELLS, FITS, SAMPLINGS, SCORINGS, Job, Plan
from mgdm_ray.pipeline.requests import Request, request_of, shortages, trials_at_once
from mgdm_ray.pipeline.timeline import Task, makespan
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.remote.objects import is_url
from mgdm_ray.storage.store import Store

if TYPE_CHECKING:
    from mgdm_ray.pipeline.tasks.base import Context

START_UP_S = 16.0
"""Ray's start, the first imports of its workers, and report and MLflow at the end: 10 to 20 s."""
BETWEEN_S = 0.3
"""From the end of a job to the start of the next one in its place."""


@dataclass(frozen=True)
class PlanEstimate:
    """A study's plan, what the storage holds of it, and the machine that would run the rest."""

    config: StudyConfig
    plan: Plan
    store: Store
    manifests: Mapping[str, Mapping[str, Any]]
    """Of all finished artefacts of the storage, by key."""
    failures: Mapping[str, Record]
    probes: list[dict[str, Any]]
    train_images: Mapping[str, int]
    """Training images by dataset; those whose data is absent are left out."""
    node: Mapping[str, float]
    """CPU and GPU of this machine."""
    retry_failed: bool = False
    test_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Test images per class, by dataset; those whose data is absent are left out."""

    @cached_property
    def todo(self) -> dict[str, Job]:
        passed = set() if self.retry_failed else set(self.failures)
        passed |= set(self.refused)
        return {
            key: job
            for key, job in self.plan.jobs.items()
            if key not in self.manifests and key not in passed
        }

    @cached_property
    def refused(self) -> dict[str, str]:
        """Why the study's limits refuse a job, of those whose gate has been judged."""
        found: dict[str, str] = {}
        for key, job in self.plan.jobs.items():
            if job.gate and job.gate in self.manifests:
                gate = Record.from_dict(self.manifests[job.gate]["record"])
                reason = refusal(gate, self.config.limits)
                found |= {key: reason} if reason else {}
        return found

    @cached_property
    def nodes(self) -> dict[str, Node]:
        return {key: Node.of(job) for key, job in self.plan.jobs.items()}

    @cached_property
    def efforts(self) -> dict[str, Effort | None]:
        return {key: effort(self.nodes[key], self.nodes, self.train_images) for key in self.todo}

    @cached_property
    def requests(self) -> dict[str, Request]:
        at_once = trials_at_once(self.config, self.node)
        return {
            key: request_of(job, self.config.resources, at_once) for key, job in self.todo.items()
        }

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Of the jobs to do; those of which nothing is known are left out."""
        figures = Figures(
            figures_in(self.store, self.manifests, self.train_images), probe_figures(self.probes)
        )
        found = {}
        for key, its in self.efforts.items():
            fits = self.todo[key].kind in FITS
            share = self.config.resources.least_train_workers if fits else self.requests[key].lanes
            estimate = its and figures.estimate(its, share)
            if estimate:
                found[key] = estimate
        return found

    def images(self, job: Job) -> float:
        """How many images a sampling job or the score of a setting takes, 0 for other kinds; of
        jobs whose effort is known."""
        if job.kind in (*SAMPLINGS, *SCORINGS):
            return images_of(self.nodes[job.key], self.nodes, self.train_images)
        return 0.0

    @property
    def unknown(self) -> list[Job]:
        return [job for key, job in self.todo.items() if key not in self.estimates]

    @cached_property
    def shortages(self) -> list[str]:
        return shortages(self.todo.values(), self.config.resources, [self.node])

    def seconds(self) -> float:
        """Wall time of the jobs whose times are known, on this machine, from start to report."""
        jobs = [job for job in self.todo.values() if job.key in self.estimates]
        tasks = [
            Task(
                job.key,
                self.estimates[job.key].seconds + BETWEEN_S,
                self.requests[job.key].cpus,
                self.requests[job.key].gpus,
                self.requests[job.key].lanes,
                job.waits_for,
                urgent=job.kind in FITS,
                patient=not job.needs and job.kind not in FITS,
            )
            for job in sorted(jobs, key=lambda job: job.kind not in FITS)
        ]
        return START_UP_S + makespan(tasks, self.node["CPU"], self.node["GPU"])

    def hours(self, jobs: Collection[Job]) -> tuple[float, float]:
        """CPU and GPU hours that ``jobs`` hold; those of which nothing is known count nothing."""
        cpu = gpu = 0.0
        for key in (job.key for job in jobs if job.key in self.estimates):
            request = self.requests[key]
            seconds = request.lanes * self.estimates[key].seconds
            cpu += request.cpus * seconds / 3600
            gpu += request.gpus * seconds / 3600
        return cpu, gpu

    def bytes(self, jobs: Collection[Job]) -> float | None:
        """Of the artefacts of ``jobs``, as far as it is known; None where nothing is."""
        sizes = [self.estimates[job.key].bytes for job in jobs if job.key in self.estimates]
        known = [size for size in sizes if size is not None]
        return sum(known) if known else None


def measure(plan_estimate: PlanEstimate, context: Context) -> bool:
    """Probe what nothing is known of and add it to the storage; False where there is nothing to
    probe, or where the study cannot run here."""
    if plan_estimate.shortages:
        print("nothing is probed, for the study cannot run on this machine\n")
        return False
    first: dict[tuple[str, str], Job] = {}
    for job in plan_estimate.unknown:
        its = plan_estimate.efforts[job.key]
        if its is not None:
            first.setdefault((its.kind, its.family), job)
    if not first:
        return False
    from mgdm_ray.pipeline.tasks.probe import probe  # imports torch, which a plan need not

    plan_estimate.store.root.mkdir(parents=True, exist_ok=True)
    resources = plan_estimate.config.resources
    gpu = resources.gpus_per_task or resources.gpus_per_worker
    context = replace(context, device="cuda" if gpu else "cpu")
    for number, ((kind, family), job) in enumerate(first.items(), start=1):
        print(f"probe {number} of {len(first)}: {job.label}", flush=True)
        seconds, size = probe(
            job,
            plan_estimate.plan.jobs,
            plan_estimate.images(job),
            context,
            threads=max(1, int(resources.cpus_per_task)),  # as the engine gives them
        )
        row = {"kind": kind, "family": family, "seconds_per_work": seconds, "bytes_per_item": size}
        add_probe(plan_estimate.store.root, row)
    print()
    return True


def show(plan_estimate: PlanEstimate) -> None:
    """Print the whole plan."""
    c, plan = plan_estimate.config, plan_estimate.plan
    print(
        f"study {c.name}: {len(c.datasets)} datasets x {len(c.arms)} arms x "
        f"{len(c.networks)} networks x {len(c.seeds)} seeds = {len(plan.cells())} cells, "
        f"{len(plan.jobs)} jobs"
    )
    print(f"storage {plan_estimate.store.location}")
    print("\n".join(resolution(c, plan_estimate.test_counts, plan_estimate.manifests.values())))
    absent = [d.name for d in c.datasets if d.name not in plan_estimate.train_images]
    if absent:
        print(f"not on this machine yet (fetched or asked for at the start): {', '.join(absent)}")
    print()
    _show_table(plan_estimate)
    print(f"\n{sharing(plan)}")
    _show_failures(plan_estimate)
    _show_refused(plan_estimate)
    if not plan_estimate.todo:
        print("nothing left to do")
        return
    _show_cost(plan_estimate)
    _show_fit(plan_estimate)


def _show_table(plan_estimate: PlanEstimate) -> None:
    plan, done, lost = plan_estimate.plan, plan_estimate.manifests, plan_estimate.failures
    heads = ("kind", "jobs", "done", "failed", "to do", "s each", "CPU h", "GPU h", "MB", "from")
    print(_line(*heads))
    groups = {kind: [j for j in plan.jobs.values() if j.kind == kind] for kind in plan.counts()}
    for kind, jobs in {**groups, "all": list(plan.jobs.values())}.items():
        left = [job for job in jobs if job.key in plan_estimate.todo]
        known = [
            plan_estimate.estimates[job.key] for job in left if job.key in plan_estimate.estimates
        ]
        # What failed and is tried again is to do.
        failed = sum(job.key in lost and job.key not in plan_estimate.todo for job in jobs)
        each, basis = "", ""
        if kind != "all" and left:
            each = f"{sum(e.seconds for e in known) / len(known):.1f}" if known else "unknown"
            basis = _basis(known, len(left))
        costs = ["", "", ""]
        if known:
            costs = [f"{hours:.2f}" for hours in plan_estimate.hours(left)]
            size = plan_estimate.bytes(left)
            costs.append("unknown" if size is None else f"{size / 1e6:.1f}")
        numbers = [len(jobs), sum(job.key in done for job in jobs), failed, len(left)]
        print(_line(kind, *map(str, numbers), each, *costs, basis))


def _line(kind: str, *rest: str) -> str:
    *numbers, last = rest
    widths = (6, 6, 8, 7, 9, 8, 8, 8)
    cells = "".join(f"{text:>{width}}" for text, width in zip(numbers, widths, strict=True))
    return f"{kind:<15}{cells}  {last}".rstrip()


def _basis(known: Collection[Estimate], jobs: int) -> str:
    """What the estimates of a kind rest on, in words; numbers in brackets where not all do."""
    found = Counter(
        {"equal jobs": "", "scaled": "scaled from ", "probe": "a probe"}[e.basis] for e in known
    )
    words = []
    for start, count in found.items():
        rest = {e.jobs for e in known if e.jobs and (e.basis == "scaled") == bool(start)}
        few, most = min(rest, default=0), max(rest, default=0)
        between = f"{most}" if few == most else f"{few} to {most}"
        jobs_each = f"{between} finished job{'s' if most > 1 else ''} each" if rest else ""
        text = start + (jobs_each if start != "a probe" else "")
        words.append(text if count == jobs else f"{text} ({count})")
    if known and len(known) < jobs:
        words.append(f"unknown ({jobs - len(known)})")
    return "; ".join(words)


def sharing(plan: Plan) -> str:
    """How many cells each kind of job serves, and what it would be if none were shared."""
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
    rows = [f"{counts[kind]} {kind} {serves[kind]}" for kind in counts if serves[kind]]
    if not rows:
        return "shared: nothing, every cell is on its own"
    trials = sum(job.inputs["trials"] for job in plan.jobs.values() if job.kind == "search")
    tried = f"; {counts['encode']} encode give the latents of {trials} trials" if trials else ""
    # What serves no cell is there once in either case.
    total = sum(alone.values()) + sum(n for kind, n in counts.items() if not serves[kind])
    return (
        f"shared (jobs, and the cells they serve): {', '.join(rows)}{tried}\n"
        f"if every cell computed its own, {len(plan.jobs)} jobs would be {total}"
    )


def _show_failures(plan_estimate: PlanEstimate) -> None:
    if not plan_estimate.failures:
        return
    roots = [r for r in plan_estimate.failures.values() if not r.reason.startswith("needs ")]
    first = (roots or list(plan_estimate.failures.values()))[0]
    what = "are tried again" if plan_estimate.retry_failed else "are not tried again"
    hint = "" if plan_estimate.retry_failed else "; mend the cause, then --retry-failed"
    print(
        f"{len(plan_estimate.failures)} failed before and {what} (the first: "
        f"{plan_estimate.plan.jobs[first.key].label}: {first.reason[:120]}){hint}"
    )


def _show_refused(plan_estimate: PlanEstimate) -> None:
    if plan_estimate.refused:
        key, reason = next(iter(plan_estimate.refused.items()))
        count, first = len(plan_estimate.refused), plan_estimate.plan.jobs[key].label
        print(f"{count} are refused by the study's limits (the first: {first}: {reason})")


def _show_cost(plan_estimate: PlanEstimate) -> None:
    jobs, unknown = list(plan_estimate.todo.values()), plan_estimate.unknown
    here = f"{plan_estimate.node['CPU']:g} cores and {plan_estimate.node['GPU']:g} GPUs"
    wall = (
        "" if plan_estimate.shortages else f"about {_duration(plan_estimate.seconds())} on {here}"
    )
    if not unknown:
        print(f"\nestimated time: {wall or 'unknown, for it cannot run here'}")
    else:
        kinds = Counter(job.kind for job in unknown)
        lacking = ", ".join(kinds)
        print(f"\nestimated time: unknown (no {lacking} like these has run in this storage)")
        if wall and plan_estimate.estimates:
            print(f"the {len(jobs) - len(unknown)} other jobs: {wall}")
        if not plan_estimate.shortages:
            print("--plan --probe measures them in a few minutes")
    known = " of what is known" if unknown else ""
    if plan_estimate.estimates:
        cpu, gpu = plan_estimate.hours(jobs)
        print(f"to be computed{known}: {cpu:.2f} CPU hours, {gpu:.2f} GPU hours")
    free, size = free_bytes(plan_estimate.store.root), plan_estimate.bytes(jobs)
    written = "unknown" if size is None else f"{_size(size)} of artefacts{known}"
    print(f"to be written: {written}; {_size(free)} free")
    # Of a store elsewhere there is only a cache here.
    if size is not None and size > free and not is_url(plan_estimate.store.location):
        print(f"warning: {plan_estimate.store.root} has too little space; give another --storage")


def _show_fit(plan_estimate: PlanEstimate) -> None:
    here = f"this machine ({plan_estimate.node['CPU']:g} cores, {plan_estimate.node['GPU']:g} GPUs)"
    if not plan_estimate.shortages:
        print(f"every job fits on {here}; with --address the cluster is checked at the start")
        return
    print(f"it cannot run on {here}; with --address the cluster is checked at the start:")
    for message in plan_estimate.shortages:
        print(f"  {message}")


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
