"""What a plan is expected to cost: which jobs are left, and how long they take on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.config import StudyConfig
from mgdm_ray.data.load import data_source
from mgdm_ray.environment import cores, gpus
from mgdm_ray.pipeline.cost_model import (
    Effort,
    Estimate,
    Figures,
    Node,
    effort,
    figures_in,
    images_of,
    manifests_in,
    probe_figures,
    read_probes,
)
from mgdm_ray.pipeline.job import FITS, SAMPLINGS, SCORINGS, Job
from mgdm_ray.pipeline.limits import refusal
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.pipeline.requests import Request, Shortage, request_of, shortages, trials_at_once
from mgdm_ray.pipeline.timeline import Task, makespan
from mgdm_ray.storage.records import Record
from mgdm_ray.storage.store import Store

START_UP_S = 16.0
"""Seconds for Ray's start, the workers' imports, and report and MLflow at the end: 10 to 20."""
BETWEEN_S = 0.3
"""Seconds from the end of a job to the start of the next one on the same worker."""


@dataclass(frozen=True)
class PlanEstimate:
    """A plan, the finished part of it, and the machine that would run the rest."""

    config: StudyConfig
    plan: Plan
    store: Store
    manifests: Mapping[str, Mapping[str, Any]]
    """Of all finished artefacts in the storage, by key."""
    failures: Mapping[str, Record]
    probes: list[dict[str, Any]]
    train_images: Mapping[str, int]
    """Training images by dataset; absent datasets are missing."""
    node: Mapping[str, float]
    """CPU and GPU of this machine."""
    retry_failed: bool = False
    test_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Patients (test images where unknown) per class by dataset; absent datasets are missing."""

    @staticmethod
    def of(study: OpenedStudy, *, retry_failed: bool) -> PlanEstimate:
        """The estimate for this machine and the storage as it is now."""
        sources = {d.name: data_source(d, study.config.data_dir) for d in study.config.datasets}
        train = {name: source.train_images() for name, source in sources.items()}
        tests = {name: source.units("test") for name, source in sources.items()}
        manifests = manifests_in(study.store)
        failures = study.status.lasting_failures()
        return PlanEstimate(
            study.config,
            study.plan,
            study.store,
            manifests,
            {key: record for key, record in failures.items() if key not in manifests},
            read_probes(study.store.root),
            {name: count for name, count in train.items() if count is not None},
            {"CPU": float(cores()), "GPU": float(gpus())},
            retry_failed=retry_failed,
            test_counts={name: found for name, found in tests.items() if found is not None},
        )

    @cached_property
    def todo(self) -> dict[str, Job]:
        passed = set(self.refused) if self.retry_failed else {*self.refused, *self.failures}
        passed |= set(self.manifests)
        return {key: job for key, job in self.plan.jobs.items() if key not in passed}

    @cached_property
    def refused(self) -> dict[str, str]:
        """Reasons by key of jobs that the study's limits refuse, as far as judged."""
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
        """Of the jobs to do; those without timing history are missing."""
        measured = figures_in(self.store, self.manifests, self.train_images)
        figures = Figures(measured, probe_figures(self.probes))
        found = {}
        for key, its in self.efforts.items():
            fits = self.todo[key].kind in FITS
            share = self.config.resources.least_train_workers if fits else self.requests[key].lanes
            if its and (estimate := figures.estimate(its, share)):
                found[key] = estimate
        return found

    def images(self, job: Job) -> float:
        """Images that a sampling or scoring job makes, 0 for other kinds; its effort is known."""
        if job.kind in (*SAMPLINGS, *SCORINGS):
            return images_of(self.nodes[job.key], self.nodes, self.train_images)
        return 0.0

    @property
    def unknown(self) -> list[Job]:
        return [job for key, job in self.todo.items() if key not in self.estimates]

    @cached_property
    def shortages(self) -> list[Shortage]:
        return shortages(self.todo.values(), self.config.resources, [self.node])

    def seconds(self) -> float:
        """Wall time on this machine, from start to report, of jobs with an estimate."""
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
        """CPU and GPU hours of those of ``jobs`` that have an estimate."""
        cpu = gpu = 0.0
        for key in (job.key for job in jobs if job.key in self.estimates):
            request = self.requests[key]
            seconds = request.lanes * self.estimates[key].seconds
            cpu += request.cpus * seconds / 3600
            gpu += request.gpus * seconds / 3600
        return cpu, gpu

    def bytes(self, jobs: Collection[Job]) -> float | None:
        """Size of the artefacts of ``jobs``, as far as known; None if none is known."""
        found = (self.estimates.get(job.key) for job in jobs)
        known = [one.bytes for one in found if one and one.bytes is not None]
        return sum(known) if known else None
